"""Trivial baselines: models without gradient descent, which a teacher must beat to be worth compressing."""
