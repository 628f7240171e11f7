"""The search: spec, space, driver, samplers and schedulers."""
