"""From the spec to the backend: a setting that the chosen backend cannot keep is refused, not ignored."""

import inspect

from autocompress.backends.base import Backend, TrialLimits
from autocompress.core.registry import BACKENDS
from autocompress.engine.spec import SearchSection, Source
from autocompress.errors import AutocompressError, SpecError, UsageError
from autocompress.training.device import refuse_missing

#: Settings of ``search`` that not every backend takes; each is given by its name where it is set.
SETTINGS = ("resources", "address")


def make_backend(source: Source) -> Backend:
    """Return the backend that a spec asks for, not yet opened.

    Raises:
        SpecError: There is no such backend, it cannot keep a setting, or trainings were to run on a graphics card that
            is not there; the message names the line.
    """
    search = source.spec.search
    try:
        backend = BACKENDS.get(search.backend)
        given = {name: getattr(search, name) for name in SETTINGS if getattr(search, name) is not None}
        for name in given.keys() - inspect.signature(backend).parameters.keys():
            able = [each for each in BACKENDS if name in inspect.signature(BACKENDS.get(each)).parameters]
            hint = f"search.backend={able[0]} does" if able else "no backend does"
            raise source.error(("search", name), f"the backend {search.backend} does not take {name}; {hint}")
        made: Backend = backend(search.workers, limits=_limits(search), **given)
    except SpecError:
        raise
    except AutocompressError as error:
        raise source.error(("search", "backend"), str(error)) from None
    if not made.elsewhere:
        try:
            refuse_missing(search.trains_on)
        except UsageError as error:
            raise source.error(("search", "device"), str(error)) from None
    return made


def _limits(search: SearchSection) -> TrialLimits:
    return TrialLimits(None if search.trial_minutes is None else search.trial_minutes * 60, search.memory)
