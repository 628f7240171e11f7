"""Fault injection: `python -m benchmarks.faults [--rows 1 2 3]`.

Each row injects a fault into a search and counts the losses. Where training does not matter, trials are
mocked; driver, sampler, store, workers and files are real. A killed driver runs in its own process and is killed with
SIGKILL. After the last kill the search runs to its end, and its store is compared with its earlier content.
"""
