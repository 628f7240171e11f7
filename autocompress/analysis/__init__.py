"""Reading a finished run: Pareto front, selection, ranking, significance. Nothing here imports torch."""
