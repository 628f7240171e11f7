"""Construction of the backend from the spec; settings that the backend does not support are errors."""

import inspect

from autocompress.backends.base import Backend, TrialLimits
from autocompress.core.registry import BACKENDS
from autocompress.engine.spec import SearchSection, Source
from autocompress.errors import AutocompressError, SpecError, UsageError
from autocompress.training.device import require_device

#: Settings of ``search`` that only some backends take, as arguments of the same name.
SETTINGS = ("resources", "address")


def make_backend(source: Source) -> Backend:
    """Return the backend that a spec names, not yet open.

    Raises:
        SpecError: The backend is unknown or does not support a setting, or a graphics card is requested on a machine
            without one; the message names the line.
    """
    search = source.spec.search
    try:
        backend = BACKENDS.get(search.backend)
        settings = {name: getattr(search, name) for name in SETTINGS if getattr(search, name) is not None}
        for name in settings.keys() - inspect.signature(backend).parameters.keys():
            others = [other for other in BACKENDS if name in inspect.signature(BACKENDS.get(other)).parameters]
            hint = f"search.backend={others[0]} does" if others else "no backend does"
            raise source.make_error(("search", name), f"the backend {search.backend} does not take {name}; {hint}")
        result: Backend = backend(search.workers, limits=_trial_limits(search), **settings)
    except SpecError:
        raise
    except AutocompressError as error:
        raise source.make_error(("search", "backend"), str(error)) from None
    # Only workers on this machine train on its devices.
    if not result.is_remote:
        try:
            require_device(search.training_device)
        except UsageError as error:
            raise source.make_error(("search", "device"), str(error)) from None
    return result


def _trial_limits(search: SearchSection) -> TrialLimits:
    return TrialLimits(None if search.trial_minutes is None else search.trial_minutes * 60, search.memory)
