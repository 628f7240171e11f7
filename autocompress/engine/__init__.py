"""The search: spec, space, driver, samplers and schedulers."""

import warnings

# Optuna imports tqdm, which complains in a notebook without ipywidgets; nothing here shows a bar of tqdm.
warnings.filterwarnings("ignore", message="IProgress not found")
