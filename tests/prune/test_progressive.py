from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.core.method import Context, MethodState
from autocompress.errors import CompressionError
from autocompress.models import CNN, CNNConfig
from autocompress.prune import Progressive, ProgressiveConfig

METHOD = Progressive()
EXAMPLE = (torch.zeros(1, 1, 8, 8),)


def net():
    torch.manual_seed(0)
    return CNN(CNNConfig(width=20, depth=1, stages=2, block="plain"), 1, {"label": 4}).eval()


def channels(model):
    return model.stem[0].weight.shape[0]


class Judge:
    """Scores models by a table of what each number of stem channels is worth, and counts the trainings."""

    def __init__(self, worth):
        self.worth, self.trained = worth, []

    def score(self, model):
        return self.worth(channels(model))

    def tune(self, model, epochs, learning_rate, after_step):
        self.trained.append((channels(model), epochs, learning_rate))
        with torch.no_grad():
            model.stem[0].weight += 1

    def context(self):
        inputs = (torch.randn(8, *EXAMPLE[0].shape[1:], generator=torch.Generator().manual_seed(1)),)
        return Context(EXAMPLE, (inputs,), fine_tune=self.tune, score=self.score)


def run(worth, **knobs):
    judge = Judge(worth)
    pruned, state = METHOD.apply(
        net(), ProgressiveConfig(**{"step": 0.1, "pruning_ratio": 0.5, **knobs}), judge.context()
    )
    return judge, pruned, state


@pytest.mark.parametrize(
    ("ratio", "step", "found"),
    [(0.3, 0.1, [0.1, 0.2, 0.3]), (0.25, 0.1, [0.1, 0.2, 0.25]), (0.05, 0.1, [0.05]), (0.9, 0.9, [0.9])],
)
def test_the_last_cut_reaches_the_ratio(ratio, step, found):
    assert ProgressiveConfig(pruning_ratio=ratio, step=step).step_ratios() == found


def test_it_goes_all_the_way_while_the_score_holds():
    judge, pruned, state = run(lambda left: 0.9)
    assert channels(pruned) == 10
    assert [row["pruning_ratio"] for row in state.report["path"]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert all(row["kept"] for row in state.report["path"])
    assert [left for left, *_ in judge.trained] == [18, 16, 14, 12, 10]
    assert state.report["sparsity"] == pytest.approx(0.5, abs=0.02)


def test_the_cut_below_the_floor_is_undone():
    _, pruned, state = run(lambda left: 0.9 if left >= 14 else 0.8, floor=0.05)
    assert channels(pruned) == 14
    assert [(row["pruning_ratio"], row["kept"]) for row in state.report["path"][-2:]] == [(0.3, True), (0.4, False)]
    assert state.report["path"][-1]["score"] == 0.8


def test_the_floor_itself_is_still_allowed():
    _, pruned, _ = run(lambda left: 0.75 if left < 20 else 1.0, floor=0.25)
    assert channels(pruned) == 10


def test_a_first_cut_below_the_floor_is_an_error_with_the_figures():
    with pytest.raises(
        CompressionError,
        match=r"10% of the channels and lowers the score from 0\.9000 to 0\.5000, below the limit of 0\.8800",
    ):
        run(lambda left: 0.9 if left == 20 else 0.5)


def test_each_cut_is_trained_as_asked():
    judge, *_ = run(lambda left: 0.9, step=0.25, step_epochs=7, recovery_learning_rate=0.125)
    assert judge.trained == [(15, 7, 0.125), (10, 7, 0.125)]


def test_the_result_is_rebuilt_from_its_history():
    _, pruned, state = run(lambda left: 0.9)
    fresh = METHOD.restore(net(), ProgressiveConfig(), MethodState(history=state.history))
    fresh.load_state_dict(pruned.state_dict())
    x = torch.randn(3, *EXAMPLE[0].shape[1:])
    assert torch.equal(fresh(x), pruned(x))


def test_a_context_that_cannot_measure_is_refused():
    with pytest.raises(CompressionError, match="measures and trains after each step"):
        METHOD.apply(net(), ProgressiveConfig(), Context(EXAMPLE))


def test_a_model_without_channels_to_spare_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(CompressionError, match="no channel can be removed"):
        METHOD.apply(model, ProgressiveConfig(), Context(EXAMPLE, score=lambda _: 1.0, fine_tune=lambda *_: None))


def test_the_floor_holds_for_each_head_and_not_for_their_mean():
    judge = Judge(lambda left: 0.9)
    # The mean rises, because the easy head gains more than the hard one loses.
    by_head = {20: (0.5, 0.9), 18: (0.6, 0.89), 16: (0.7, 0.85), 14: (0.8, 0.6)}

    def score_heads(model):
        return dict(zip(("easy", "hard"), by_head[channels(model)], strict=True))

    context = replace(judge.context(), score_heads=score_heads)
    pruned, state = METHOD.apply(net(), ProgressiveConfig(step=0.1, pruning_ratio=0.5, floor=0.06), context)
    assert channels(pruned) == 16
    last = state.report["path"][-1]
    assert last["kept"] is False
    assert (last["score@easy"], last["score@hard"]) == (0.8, 0.6)
    assert last["score"] == pytest.approx(0.7) == state.report["path"][0]["score"]
    with pytest.raises(CompressionError, match=r"from 0\.9000 to 0\.8900 on head 'hard', below the limit of 0\.8950"):
        METHOD.apply(net(), ProgressiveConfig(step=0.1, pruning_ratio=0.5, floor=0.005), context)
