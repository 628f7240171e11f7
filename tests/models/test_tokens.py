import pytest
import torch

from autocompress.core.task import InputSpec
from autocompress.errors import UsageError
from autocompress.models.tokens import POOLING, MaskedPool, TokenMask, require_token_input


def test_the_mask_is_one_at_tokens() -> None:
    tokens = torch.tensor([[3, 0, 1], [0, 0, 0]])
    assert TokenMask(0)(tokens).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert TokenMask(None)(tokens).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_pooling_by_hand() -> None:
    x = torch.tensor([[[1.0, -4.0, 9.0], [-1.0, -2.0, 9.0]]])
    mask = torch.tensor([[[1.0, 1.0, 0.0]]])
    assert MaskedPool("max")(x, mask).tolist() == [[1.0, -1.0]]
    assert MaskedPool("mean")(x, mask).tolist() == [[-1.5, -1.5]]


@pytest.mark.parametrize("how", POOLING)
def test_padding_alone_gives_zeros(how: str) -> None:
    assert not MaskedPool(how)(torch.randn(2, 3, 4), torch.zeros(2, 1, 4)).any()


@pytest.mark.parametrize(
    "inputs",
    [
        (InputSpec((12,)),),
        (InputSpec((), vocabulary=9),),
        (InputSpec((0,), vocabulary=9),),
        (InputSpec((2, 12), vocabulary=9),),
        (InputSpec((12,), vocabulary=9), InputSpec((12,), vocabulary=9)),
        (),
    ],
)
def test_inputs_that_are_no_text_are_refused(inputs: tuple[InputSpec, ...]) -> None:
    with pytest.raises(UsageError, match=r"student 'x' takes one input of whole numbers \(length\)"):
        require_token_input("x", inputs)
