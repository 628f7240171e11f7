"""Tasks: data, splits, models, loss and metrics of one learning problem each."""
