"""Packed weights compute what the weights compute, and give them back bit for bit."""

import copy
import pickle

import pytest
import torch
from torch.nn.functional import linear

from transformers_lion.cpu_inference.packs import Float16Pack, Float32Pack, WeightPack, make_pack

HALVES = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def random_weight(dtype: torch.dtype, deviation: float = 0.05) -> torch.Tensor:
    weight = (deviation * torch.randn(24, 40, generator=torch.Generator().manual_seed(0))).to(dtype)
    weight[0, :2] = torch.tensor([0.0, -0.0])
    return weight


def is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Bit for bit."""
    kind = HALVES[first.dtype]
    return first.dtype == second.dtype and torch.equal(first.view(kind), second.view(kind))


def output_error(pack: WeightPack, weight: torch.Tensor, bias: torch.Tensor | None) -> float:
    states = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(1))
    expected = linear(states.double(), weight.double(), None if bias is None else bias.double())
    return float((pack(states) - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("dtype", "deviation"),
    [
        *((torch.bfloat16, deviation) for deviation in (1e-6, 0.05, 1e6, 1e30)),
        *((torch.float16, deviation) for deviation in (1e-3, 1e3)),
        (torch.float32, 0.05),
    ],
)
def test_weights_of_any_magnitude_are_exact_and_come_back(dtype: torch.dtype, deviation: float) -> None:
    weight, bias = random_weight(dtype, deviation), random_weight(dtype, deviation)[:, 2]
    pack = make_pack([weight[:8], weight[8:]], bias, "auto")
    assert isinstance(pack, Float32Pack if dtype == torch.float32 else Float16Pack)
    for copied in (pack, copy.deepcopy(pack), pickle.loads(pickle.dumps(pack))):
        assert output_error(copied, weight, bias) < 1e-6
        assert is_same(copied.unpack(), weight)
    assert pack(torch.zeros(0, 40)).shape == (0, 24)


def test_numbers_that_float16_does_not_hold_are_found() -> None:
    weight = torch.ones(100, 100, dtype=torch.bfloat16)
    weight[3, :10] = 2.0**-35  # 32 powers of two fit
    weight[4, 5] = 2.0**14
    pack = Float16Pack([weight], None)
    assert pack.num_lost == 10
    assert is_same(pack.unpack(), weight)
    weight[5] = 2.0**-35
    with pytest.raises(ValueError, match=r"110 of .* 10000 values; at most 0\.1%"):
        Float16Pack([weight], None)
    assert isinstance(make_pack([weight], None, "auto"), Float32Pack)
    weight[0, 0] = float("inf")
    assert make_pack([weight], None, "auto") is None


def test_float32_weights_are_rounded_on_request_only() -> None:
    weight = random_weight(torch.float32)
    assert isinstance(make_pack([weight], None, "auto"), Float32Pack)
    assert isinstance(make_pack([weight.bfloat16().float()], None, "auto"), Float16Pack)  # it holds bfloat16's numbers
    rounded = make_pack([weight], None, "float16")
    assert isinstance(rounded, Float16Pack)
    assert 1e-5 < output_error(rounded, weight, None) < 1e-3
    assert is_same(rounded.unpack(), weight)
    almost = weight.bfloat16().float().repeat(2, 1)
    almost[2, 3] = 0.051  # one number of 1,920, but not a small one
    assert isinstance(make_pack([almost], None, "auto"), Float32Pack)
