"""Autocast: the context's dtype, what it leaves alone, and how often a weight is cast."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch_paths import BOTH_PATHS, by

from grouped_conv import grouped_conv2d


def operands(input_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in (input_shape, weight_shape, weight_shape[:1]))


class CountCasts(TorchDispatchMode):
    """Counts casts to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@BOTH_PATHS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_uses_the_contexts_dtype(path: str, dtype: torch.dtype) -> None:
    input, weight, bias = operands((2, 4, 5, 6), (6, 2, 3, 3))
    with torch.autocast("cpu", dtype=dtype), by(path) as calls:
        wanted = F.conv2d(input, weight, bias, groups=2)
        ours = grouped_conv2d(input, weight, bias, groups=2)
    assert ours.dtype == wanted.dtype == dtype
    assert calls[0].problem.dtype == str(dtype).removeprefix("torch.")
    torch.testing.assert_close(ours, wanted, rtol=2e-2, atol=2e-2)


def test_autocast_leaves_float64_and_other_devices_alone() -> None:
    input, weight, bias = (t.double() for t in operands((2, 4, 5, 6), (6, 2, 3, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert grouped_conv2d(input, weight, bias, groups=2).dtype == F.conv2d(input, weight, bias, groups=2).dtype
        with pytest.raises(RuntimeError):
            grouped_conv2d(input, weight.float(), groups=2)
    with warnings.catch_warnings(action="ignore"), torch.autocast("cuda", dtype=torch.float16):
        assert grouped_conv2d(input.float(), weight.float(), groups=2).dtype == torch.float32


def test_autocast_casts_a_weight_used_twice_once() -> None:
    input, weight, bias = operands((2, 4, 5, 6), (4, 2, 3, 3))
    weight, bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def casts(**modes) -> list[tuple[int, ...]]:
        with CountCasts() as counter, torch.autocast("cpu", dtype=torch.bfloat16, **modes):
            hidden = grouped_conv2d(input, weight, bias, groups=2, padding=1)
            grouped_conv2d(hidden, weight, bias, groups=2, padding=1).sum().backward()
        return [shape for shape in counter.shapes if shape in (weight.shape, bias.shape)]

    assert sorted(casts()) == sorted([weight.shape, bias.shape])
    assert sorted(casts(cache_enabled=False)) == sorted([weight.shape, bias.shape] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = grouped_conv2d(input, weight, bias, groups=2, padding=1)
        with torch.no_grad():
            weight.mul_(2)
        second = grouped_conv2d(input, weight, bias, groups=2, padding=1)
    assert not torch.equal(first, second), "a changed weight must be cast again"


def test_operators_below_autocast_keep_their_dtype() -> None:
    input, weight, bias = operands((2, 4, 5, 6), (6, 2, 3, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = torch.ops.grouped_conv.conv2d(input, weight, bias, [1, 1], [0] * 4, [1, 1], "default", "auto")
    assert ours.dtype == torch.float32
