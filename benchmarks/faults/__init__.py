"""What must hold whatever goes wrong: `python -m benchmarks.faults [--rows 1 2 3]`.

Each row does harm to a search and counts what is lost. Where training does not matter, trials are pretended: driver,
sampler, store, workers and files are the real ones. A driver that is killed is a process of its own, killed with
SIGKILL; after the last kill the search runs to its end, and its store is compared with what was in it before.
"""
