"""Backends: where trials run."""

from autocompress.backends import local, ray
from autocompress.backends.base import Ask, Backend, Evaluate, Tell

__all__ = ["Ask", "Backend", "Evaluate", "Tell", "local", "ray"]
