"""Every exception of autocompress, with the exit code that the command line gives it.

AutocompressError                 1  something failed
├── UsageError                    2  the caller asked for something impossible
│   ├── UnknownNameError          2  a name that nothing is registered under
│   ├── PluginError               2  a plugin that cannot be loaded, or a part that does not fit its interface
│   ├── KnobError                 2  a value outside its knob's range
│   ├── SpecError                 2  a search-space file that cannot be used
│   └── RunFolderError            2  a run folder that is missing, foreign, in use or changed
│       └── UnfinishedRunError    2  the same search was begun there and not ended
├── CompressionError              1  a method cannot compress this model
│   └── NothingRemovedError       1  a pruning ratio that removes no channel
├── TrialError                    1  a trial cannot produce candidates
├── SearchFailedError             1  every trial failed
├── WorkersError                  1  no worker starts
├── ArtifactError                 1  an exported folder is damaged or cannot be written
│   └── VerificationError         1  the exported model does not behave as the searched one
├── OverloadError                 1  a service takes no further request now
├── NoCandidateError              3  no candidate satisfies what was asked
└── StorageError                  3  no space, or a folder that cannot be written
"""

from collections.abc import Iterable
from difflib import get_close_matches


class AutocompressError(Exception):
    """Root of the tree; the message is one line that names the place and the fix.

    Attributes:
        excerpt: Lines that the command line prints below the message, such as a filter with its wrong word marked.
    """

    excerpt = ""
    # Scripts tell a failure (1) from a wrong request (2) and from a lack of candidates or space (3).
    exit_code = 1


class UsageError(AutocompressError):
    """The caller asked for something impossible."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that nothing is registered under."""


class PluginError(UsageError):
    """A plugin that cannot be loaded, or a part that does not fit the interface of its kind."""


class KnobError(UsageError):
    """A value outside its knob's range, or of the wrong type."""


class SpecError(UsageError):
    """A search-space file that cannot be used."""


class RunFolderError(UsageError):
    """A run folder that is missing, foreign, in use or changed."""


class UnfinishedRunError(RunFolderError):
    """The same search was begun there and not ended."""


class CompressionError(AutocompressError):
    """A method cannot compress this model."""


class NothingRemovedError(CompressionError):
    """A pruning ratio is so small that it removes no channel of this model."""


class TrialError(AutocompressError):
    """A trial cannot produce candidates."""


class SearchFailedError(AutocompressError):
    """Every trial failed."""


class WorkersError(AutocompressError):
    """No worker starts."""


class ArtifactError(AutocompressError):
    """An exported folder is damaged or cannot be written."""


class VerificationError(ArtifactError):
    """The exported model does not behave as the searched one."""


class OverloadError(AutocompressError):
    """A service takes no further request now: its queue is full, or it is shutting down."""


class NoCandidateError(AutocompressError):
    """No candidate satisfies what was asked."""

    exit_code = 3


class StorageError(AutocompressError):
    """No space is left, or a folder cannot be written."""

    exit_code = 3


# Names in a hint: a table of candidates has more than a hundred columns.
MOST_NAMES = 30


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'digits'?``, or the list of known names.

    Example:
        >>> did_you_mean("digit", ["digits", "langid"])
        "did you mean 'digits'?"
        >>> did_you_mean("zzz", ["digits", "langid"])
        'known: digits, langid'
    """
    # Sorted, so that the hint does not depend on the order of registration.
    names = sorted(names)
    # str, because a name from YAML may be a number; 0.6 is the default of difflib.
    close = get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    others = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"known: {', '.join(names[:MOST_NAMES]) or 'none'}{others}"
