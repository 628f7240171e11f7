"""Shared vocabulary: configurations, hyperparameters, registries, records and the interfaces of tasks and methods."""
