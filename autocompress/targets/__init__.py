"""Targets: the devices and runtimes that a search is made for, one file each."""

from autocompress.targets.base import Model, Target, make_target

__all__ = ["Model", "Target", "make_target"]
