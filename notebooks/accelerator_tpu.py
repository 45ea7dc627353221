# %% [markdown]
# # modelzip_jax on a TPU or GPU
#
# Choose *Runtime → Change runtime type → TPU* (or a GPU). First whether this backend computes what the CPU
# does, then how fast decoding, thresholds, wavelets, k-means and int4 products are here: 8 minutes, no data
# to fetch.

# %% [markdown]
# Colab's own jax stays. Then bring the repository, whose benchmarks are no part of the package: upload its
# archive (*Code → Download ZIP* on its page) in the panel at the left, or clone it with `!git clone` and the
# address that its page shows.

# %%
# %pip install --quiet modelzip_jax

# %%
import glob
import os
import zipfile

for archive in glob.glob("modelzip_jax*.zip"):
    zipfile.ZipFile(archive).extractall()
os.chdir(next(folder for folder in glob.glob("modelzip_jax*") if os.path.isdir(folder)))

# %%
# !python -m benchmarks.accelerator

# %%
from pathlib import Path

for record in Path("benchmarks/results").glob("accelerator_*.json"):
    print(record)
    print(record.read_text())
