"""Samplers: Optuna's, and the surrogate with expected hypervolume improvement."""
