"""Backends: where trials run."""

from autocompress.backends.base import NO_LIMITS, Ask, Backend, Evaluate, Tell, TrialLimits

__all__ = ["NO_LIMITS", "Ask", "Backend", "Evaluate", "Tell", "TrialLimits"]
