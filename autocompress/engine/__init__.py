"""The search: the spec, the space it opens, the driver that asks and tells, and who goes on."""

from autocompress.engine.scheduler import promotion

__all__ = ["promotion"]
