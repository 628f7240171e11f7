import pytest
import torch
from torch import nn

from autocompress.errors import CompressionError
from autocompress.prune import reestimate_batch_norm


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))


def test_statistics_are_the_average_over_the_batches():
    model, batches = net(), [(torch.randn(4, 1, 8, 8),), (torch.randn(4, 1, 8, 8) + 3,)]
    reestimate_batch_norm(model, batches)
    with torch.no_grad():
        features = [model[0](x) for (x,) in batches]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    variance = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)


def test_flags_momentum_and_weights_stay():
    model = net().train()
    model[3].eval()
    model[1].momentum = 0.3
    weights = [p.clone() for p in model.parameters()]
    flags = [m.training for m in model.modules()]
    reestimate_batch_norm(model, [(torch.randn(4, 1, 8, 8),)])
    assert [m.training for m in model.modules()] == flags
    assert (model[1].momentum, model[4].momentum) == (0.3, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_flags_are_restored_when_the_model_fails():
    model = net().train()
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(model, [(torch.randn(4, 2, 8, 8),)])
    assert model.training
    assert model[1].momentum == 0.1


def test_a_batch_of_one_is_skipped_and_alone_is_refused():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1))
    one, two = (torch.randn(1, 1, 4, 4),), (torch.randn(2, 1, 4, 4),)
    reestimate_batch_norm(pooled, [two, one])
    torch.testing.assert_close(pooled[1].running_mean, two[0].mean().view(1))
    with pytest.raises(CompressionError, match="two examples"):
        reestimate_batch_norm(pooled, [one])


def test_a_model_without_batch_norm_needs_no_data():
    reestimate_batch_norm(nn.Linear(2, 2), [])
