from dataclasses import replace

from autocompress.core.config import CompressionConfig, Part
from autocompress.core.records import Cut, Job
from autocompress.engine.identity import key_of, seed_of

TRAINING = CompressionConfig(Part.of("cnn", width=8), (Part("none"),), Part("adamw"))
JOB = Job(3, TRAINING, (Cut(),))


def test_seeds_depend_on_the_search_and_the_number_alone() -> None:
    assert seed_of(0, 3) == seed_of(0, 3)
    assert len({seed_of(search, number) for search in range(5) for number in range(50)}) == 250


def test_a_cut_belongs_to_a_training_only_where_each_is_one_candidate() -> None:
    cut = replace(JOB, number=4, training=replace(TRAINING, seed=9), cuts=(Cut(quantize=Part("post_training")),))
    assert key_of(JOB, amortized=True) == key_of(cut, amortized=True)
    assert key_of(JOB, amortized=False) != key_of(cut, amortized=False)
    wider = replace(JOB, training=replace(TRAINING, student=Part.of("cnn", width=9)))
    assert key_of(JOB, amortized=True) != key_of(wider, amortized=True)
