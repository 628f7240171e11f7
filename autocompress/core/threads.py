"""Threads of the libraries for linear algebra, which torch's settings do not reach."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Let the linear algebra of NumPy and SciPy use one thread, in a ``with`` block or as a decorator.

    Their libraries start a thread for each processor. On small matrices beside busy workers, these threads wait for
    each other: a decision of the surrogate took 1,144 ms in the place of 77 ms.

    Example:
        >>> import numpy as np
        >>> with single_threaded_blas():
        ...     np.linalg.solve(2 * np.eye(2), np.ones(2)).tolist()
        [0.5, 0.5]
    """
    with _find_libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _find_libraries() -> ThreadpoolController:
    # The search for them takes milliseconds, so those count that are loaded at the first call.
    return ThreadpoolController()
