from autocompress.analysis.thresholds import describe_thresholds
from autocompress.core.run_info import ObjectiveSpec, RunInfo, TeacherInfo

INFO = RunInfo(
    setup={"thresholds": {"mail": None, "urgent": 0.7}},
    labels={"mail": ("other", "spam")},
    objectives=(ObjectiveSpec("f1_macro@mail", "maximize"), ObjectiveSpec("bytes", "minimize", kind="cost")),
    splits={"search_val": 1200},
    teacher=TeacherInfo(thresholds={"mail": 0.25, "urgent": 0.7}),
)


def test_a_sentence_says_how_each_threshold_was_chosen() -> None:
    chosen, requested = describe_thresholds({"thresholds": {"mail": 0.312, "urgent": 0.7}}, INFO)
    assert chosen == (
        "threshold 0.312 for 'spam' of mail, the best one for macro F1 on the 1,200 examples of search_val (the "
        "teacher's is 0.25)"
    )
    assert requested == "threshold 0.7 for the second class of urgent, as requested"


def test_candidates_at_a_half_have_no_sentence() -> None:
    assert describe_thresholds({}, RunInfo()) == describe_thresholds(None, RunInfo()) == []
