"""Linear algebra uses one thread inside the context, and as many as before after it."""

import numpy as np
import threadpoolctl

from autocompress.core.threads import single_threaded_blas
from autocompress.trial.pipeline import reproducible_torch


def count_threads() -> set[int]:
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_a_block_and_a_decorated_function_use_one_thread() -> None:
    np.linalg.inv(np.eye(2))  # the library is loaded
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = count_threads()
        with single_threaded_blas():
            assert count_threads() == {1}
        assert count_threads() == before
        for _ in range(2):
            assert single_threaded_blas()(count_threads)() == {1}
            assert count_threads() == before


def test_a_trial_uses_one_thread() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"), reproducible_torch():
        assert count_threads() == {1}
