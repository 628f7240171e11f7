from dataclasses import replace

from autocompress.config import CompressionConfig, Part
from autocompress.engine.spending import SHARE, Spending
from autocompress.records import Candidate

CONFIG = CompressionConfig(Part.of("cnn", width=8), (Part("none"),), Part.of("adamw", epochs=9))
UNCUT = Candidate("t0r0c0", 0, CONFIG, 1, {}, {"flops": 100.0}, complete=False)


def test_a_training_may_take_half_of_what_all_took() -> None:
    spending = Spending()
    spending.size(0, UNCUT)
    spending.size(1, replace(UNCUT, costs={"flops": 1000.0}))
    spending.spend(0, 1)
    spending.spend(1, 1)
    assert spending.allows(0, SHARE * 11)
    assert not spending.allows(0, SHARE * 11 + 0.01)
    assert not spending.allows(1, 2)
    # The small one goes on again and again, and one day the big one may.
    for _ in range(3):
        spending.spend(0, 9)
    assert not spending.allows(1, 2)
    spending.spend(0, 9)
    assert spending.allows(1, 2)


def test_students_of_unknown_size_are_alike() -> None:
    spending = Spending()
    assert spending.of(3) == 1.0
    assert not spending.allows(3, 1)
    spending.spend(3, 2)
    assert spending.allows(3, 1)
