import pytest
import torch

from autocompress.tasks.augment import crop_and_flip, crop_boxes, draw_crops, random_affine, random_shift


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


class TestMoves:
    def test_they_stay_within_the_padding_and_flip_half(self) -> None:
        moves = draw_crops(2000, seed=1, padding=3)
        assert sorted(set(moves[:, 0].tolist())) == sorted(set(moves[:, 1].tolist())) == list(range(7))
        assert float(moves[:, 2].float().mean()) == pytest.approx(0.5, abs=0.05)
        assert int(draw_crops(100, seed=1, padding=3, flip=False)[:, 2].max()) == 0

    def test_a_seed_names_them(self) -> None:
        assert torch.equal(draw_crops(9, seed=1, padding=3), draw_crops(9, seed=1, padding=3))
        assert not torch.equal(draw_crops(9, seed=1, padding=3), draw_crops(9, seed=2, padding=3))

    def test_the_middle_is_the_image_itself(self) -> None:
        images = torch.rand(2, 3, 5, 7)
        assert torch.equal(crop_and_flip(images, torch.tensor([[2, 2, 0]] * 2), 2), images)

    def test_by_hand(self) -> None:
        image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(3, 1, 2, 2)
        moved = crop_and_flip(image, torch.tensor([[0, 1, 0], [1, 2, 0], [1, 1, 1]]), 1)
        assert moved.squeeze(1).tolist() == [[[0, 0], [1, 2]], [[2, 0], [4, 0]], [[2, 1], [4, 3]]]


class TestShift:
    def test_no_motion_is_the_identity(self) -> None:
        signals = torch.rand(4, 2, 30)
        assert torch.equal(random_shift(signals, seed=1, shift=0, scale=0), signals)

    @pytest.mark.parametrize("wrap", [True, False])
    def test_each_signal_moves_its_own_way_within_the_stated_shift(self, wrap: bool) -> None:
        ramp = torch.arange(20.0).expand(300, 1, 20)
        moved = random_shift(ramp, seed=1, shift=0.1, scale=0, wrap=wrap)
        offsets = (ramp - moved)[:, 0, 10]
        assert sorted(set(offsets.tolist())) == [-2, -1, 0, 1, 2]
        left = moved[offsets == 2][0, 0, :3].tolist()
        assert left == ([18, 19, 0] if wrap else [0, 0, 0])

    def test_every_channel_goes_along(self) -> None:
        one = torch.rand(9, 1, 40)
        both = random_shift(torch.cat([one, 2 * one], dim=1), seed=4)
        assert torch.allclose(both[:, 1], 2 * both[:, 0])

    def test_amplitudes_stay_within_the_stated_scale(self) -> None:
        factors = random_shift(torch.ones(500, 1, 4), seed=1, scale=0.2)[:, 0, 0]
        assert 0.8 <= float(factors.min()) < 0.81
        assert 1.19 < float(factors.max()) <= 1.2


class TestBoxes:
    BOX = torch.tensor([[[2.0, 0.25, 0.5, 0.5, 1.0], [-1.0, 0.0, 0.0, 0.0, 0.0]]])

    def crop(self, row: int, column: int, flip: int = 0) -> list[float]:
        """Return the first box of images of 4 x 8 pixels, padded by 4 and cropped at a position."""
        moved = crop_boxes(self.BOX, torch.tensor([[row, column, flip]]), 4, (4, 8))
        assert moved[0, 1].tolist() == [-1, 0, 0, 0, 0]
        box: list[float] = moved[0, 0].tolist()
        return box

    def test_the_middle_is_the_box_itself(self) -> None:
        assert self.crop(4, 4) == self.BOX[0, 0].tolist()

    def test_it_moves_and_is_mirrored_in_shares_of_the_image(self) -> None:
        assert self.crop(6, 2) == [2, 0.5, 0, 0.75, 0.5]
        assert self.crop(4, 4, flip=1) == [2, 0.5, 0.5, 0.75, 1]
        assert self.crop(6, 2, flip=1) == [2, 0.25, 0, 0.5, 0.5]

    def test_it_is_cut_at_the_border_and_gone_where_little_is_left(self) -> None:
        assert self.crop(3, 4) == [2, 0.25, 0.75, 0.5, 1]
        assert self.crop(2, 4) == [-1, 0, 0, 0, 0]
