import torch

from autocompress.tasks.augment import random_affine


def test_no_motion_is_the_identity() -> None:
    images = torch.rand(4, 2, 8, 8)
    still = random_affine(images, seed=1, degrees=0, shift=0, scale=0)
    assert torch.allclose(still, images, atol=1e-5)


def test_each_image_moves_its_own_way_within_the_stated_shift() -> None:
    dot = torch.zeros(1, 1, 17, 17)
    dot[..., 8, 8] = 1
    moved = random_affine(dot.expand(200, 1, 17, 17), seed=1, degrees=0, shift=0.12, scale=0)
    flat = moved.flatten(1)
    centres = (flat * torch.arange(17.0).repeat(17)).sum(1) / flat.sum(1) - 8
    assert centres.abs().max() <= 0.12 * 17 + 0.51
    assert centres.std() > 0.5


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    random_affine(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), seed=1)
    assert torch.equal(torch.rand(1), expected)
