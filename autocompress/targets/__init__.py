"""Targets: the devices and runtimes that a search is made for, one file each."""

from autocompress.targets.base import Model, Target, approve_programs, make_target, open_stored_target

__all__ = ["Model", "Target", "approve_programs", "make_target", "open_stored_target"]
