"""The documentation site: `make docs` builds it from the repository's root, so that links are those of the files.

Examples of pages and docstrings are run by the tests (`tests/test_pages.py`, doctest), notebooks here.
"""

import hashlib
import os
import sys
from pathlib import Path

import modelzip_jax

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

project = "modelzip_jax"
author = "the authors of modelzip_jax"
release = version = modelzip_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "extension"]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "*.md"]
exclude_patterns = [
    ".*",
    "runs",
    "benchmarks",
    "build",
    "dist",
    "tests",
    "docs/_build",
    "**/.ipynb_checkpoints",
]

# Docstrings are written for people who read code: single backticks are code.
default_role = "code"
autodoc_preserve_defaults = True
autodoc_default_options = {"show-inheritance": True}
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries = False
add_module_names = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

# Notebooks run once: what they showed is kept until they or the library change. Errors end the build.
SOURCES = b"".join(path.read_bytes() for path in sorted((ROOT / "modelzip_jax").rglob("*.py")))
LIBRARY = hashlib.blake2b(SOURCES, digest_size=8).hexdigest()
nb_execution_mode = "off" if os.environ.get("NOTEBOOKS") == "off" else "cache"
nb_execution_cache_path = str(ROOT / "docs" / "_build" / "notebooks" / LIBRARY)
nb_execution_excludepatterns = ["notebooks/accelerator_tpu.ipynb"]
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = "modelzip_jax"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_last_updated_fmt = None
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # one search field is enough
}
