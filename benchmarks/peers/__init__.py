"""Other compression tools beside this one: `python -m benchmarks.peers`."""
