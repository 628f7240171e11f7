"""Schedulers: asynchronous successive halving, promotion rules and compute costs."""
