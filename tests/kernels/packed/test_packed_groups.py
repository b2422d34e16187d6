"""The packed-groups kernel in the interpreter, called as a user calls it: right, and every group on its own."""

from dataclasses import replace

import pytest
import torch
from case import Case
from conv_oracle import check_output, convolve, make_tensors, run_call
from packed_cases import BIAS_RELU, all_cases, thin
from torch import Tensor

import grouped_conv
from grouped_conv.autotune.model.families import MODELS
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, DeviceSpec, Epilogue
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.families import KernelConfig, why_invalid
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig

NON_FINITE = (float("inf"), float("-inf"), float("nan"))


def run(problem: ConvProblem, config: PackedGroupsConfig, tensors: dict[str, Tensor]) -> Tensor:
    """Interpret the problem with `config`; the kernel must have run, in one launch besides pack passes."""
    with grouped_conv.interpret(config), grouped_conv.trace() as calls:
        y = convolve(problem, tensors)
    (call,) = calls
    assert call.path == "packed_groups", call
    assert call.config == config
    assert call.launches[-1:] == ("packed_groups",)
    assert set(call.launches[:-1]) <= {"pack_channels_last"}
    return y


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_agrees_with_float64(case: Case) -> None:
    tensors = make_tensors(case.problem)
    tensors["output"] = run(case.problem, case.config, tensors)
    check_output(case.problem, tensors, case.id)


@pytest.mark.parametrize("shuffle", [1, 8])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_the_value_before_it(activation: str, shuffle: int) -> None:
    epilogue = Epilogue(activation, bias=True, scale=True, residual=True, save_preactivation=True, shuffle=shuffle)
    problem = thin(4, 4, 8, (5, 6), padding=1, epilogue=epilogue)
    tensors = make_tensors(problem)
    config = PackedGroupsConfig(pack=4, strip=3, block_m=16)
    run_call(plan_call(problem, config), tensors, interpret_launch)
    check_output(problem, tensors, activation)


def plant(problem: ConvProblem, tensors: dict[str, Tensor], where: str, group: int, value: float) -> dict[str, Tensor]:
    """The tensors with one value of one group's input channels (in the order after the shuffle) or weights replaced."""
    planted = dict(tensors)
    planted[where] = tensors[where].clone()
    if where == "weight":
        planted["weight"][group * problem.k_per_group, problem.c_per_group - 1, 1, 1] = value
    else:
        logical, shuffle = group * problem.c_per_group + 1, problem.input_shuffle
        channel = (logical % shuffle) * (problem.in_channels // shuffle) + logical // shuffle
        planted["input"][0, channel, 3, 4] = value
    return planted


def outputs_of(problem: ConvProblem, group: int) -> Tensor:
    """Which stored channels belong to the group."""
    run_length = problem.out_channels // problem.epilogue.shuffle
    owner = torch.empty(problem.out_channels, dtype=torch.long)
    for channel in range(problem.out_channels):
        stored = (channel % run_length) * problem.epilogue.shuffle + channel // run_length
        owner[stored] = channel // problem.k_per_group
    return owner == group


ISOLATION = [
    ("4 to 4", thin(4, 4, 8, (5, 6), padding=1), PackedGroupsConfig(pack=4, strip=4, block_m=16)),
    ("wide pack, last one half empty", thin(4, 4, 12, (5, 6), padding=1), PackedGroupsConfig(pack=8, block_m=16)),
    ("weights read again", thin(4, 4, 8, (5, 6), padding=1), PackedGroupsConfig(pack=4, strip=1, resident=False)),
    ("3 to 5", thin(3, 5, 6, (5, 6), padding=1), PackedGroupsConfig(pack=4, strip=2, block_m=16)),
    (
        "shuffled",
        thin(4, 4, 8, (5, 6), padding=1, input_shuffle=4, epilogue=Epilogue("relu", bias=True, shuffle=8)),
        PackedGroupsConfig(pack=8, strip=2, block_m=16),
    ),
    (
        "scale, bias, residual",
        thin(8, 8, 4, (5, 6), padding=1, epilogue=Epilogue("silu", bias=True, scale=True, residual=True)),
        PackedGroupsConfig(pack=2, strip=7, block_m=16),
    ),
]


@pytest.mark.parametrize("value", NON_FINITE)
@pytest.mark.parametrize("where", ["input", "weight"])
@pytest.mark.parametrize(("what", "problem", "config"), ISOLATION, ids=[row[0] for row in ISOLATION])
def test_non_finite_values_stay_in_their_group(
    what: str, problem: ConvProblem, config: PackedGroupsConfig, where: str, value: float
) -> None:
    """The other groups are equal to the clean run in every bit, the group itself has torch's values."""
    dtype = dict(zip(map(str, NON_FINITE), ("float16", "bfloat16", "float32"), strict=True))[str(value)]
    problem = replace(problem, dtype=dtype, precision="ieee")
    clean = make_tensors(problem)
    expected = run(problem, config, clean)
    group = problem.groups - 2
    tensors = plant(problem, clean, where, group, value)
    tensors["output"] = run(problem, config, tensors)
    own = outputs_of(problem, group)
    assert torch.equal(tensors["output"][:, ~own], expected[:, ~own])
    assert not torch.equal(tensors["output"][:, own], expected[:, own])
    check_output(problem, tensors, what)


def test_without_isolation_a_nan_leaks_to_the_pack_and_no_further() -> None:
    """What the flag buys: the same kernel without it."""
    problem = thin(4, 4, 8, (5, 6), padding=1)
    config = PackedGroupsConfig(pack=4, strip=4, block_m=16, isolate=False)
    tensors = plant(problem, make_tensors(problem), "input", 1, float("inf"))
    broken = run(problem, config, tensors).isnan().any(3).any(2).any(0)
    assert broken[:4].all() and broken[8:16].all()  # the group itself is infinite, not NaN
    assert not broken[4:8].any() and not broken[16:].any()


def test_configurations_that_cannot_run_say_why() -> None:
    problem = thin(4, 4, 8, (5, 6), padding=1)
    wide = why_invalid(problem, PackedGroupsConfig(pack=32))
    assert wide is not None and "128 channels wide, more than 64" in wide
    big = thin(4, 4, 8, (31, 31), (31, 31))
    unrolled = why_invalid(big, PackedGroupsConfig(strip=1))
    assert unrolled is not None and "961 taps" in unrolled
    assert why_invalid(big, PackedGroupsConfig(strip=1, resident=False)) is None
    with pytest.raises(ValueError, match="strip=4 needs resident weights"):
        PackedGroupsConfig(resident=False)
    with pytest.raises(ValueError, match="num_stages must be 1"):
        PackedGroupsConfig(num_stages=2)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_one_thin_layer_in_every_dtype(dtype: str) -> None:
    """What every supported Triton must run."""
    problem = replace(thin(4, 4, 8, (5, 6), padding=1), dtype=dtype, epilogue=BIAS_RELU)
    config = PackedGroupsConfig(pack=4, strip=4, block_m=16)
    tensors = make_tensors(problem)
    tensors["output"] = run(problem, config, tensors)
    check_output(problem, tensors)


def test_configuration_goes_to_json_and_back() -> None:
    config = PackedGroupsConfig(pack=2, strip=7, max_registers=200)
    assert KernelConfig.from_json(config.to_json()) == config
    assert str(config) == "pack2 32x7 w2 t8 r200"


@pytest.mark.parametrize("device", ["a100", "h100", "mi300x"])
def test_thin_groups_are_packed_by_default(device: str) -> None:
    """ResNeXt-50's first two stages; a dense layer offers no default, and no device gets an invalid one."""
    spec = DeviceSpec.get(device)
    for channels, size in ((4, 56), (8, 28)):
        problem = thin(channels, channels, 32, (size, size), padding=1, batch=128, epilogue=BIAS_RELU)
        chosen = choose(problem, spec)
        assert isinstance(chosen, PackedGroupsConfig), chosen
        prediction = MODELS["packed_groups"].predict(problem, chosen, spec)
        assert prediction.us > prediction.floor_us > 0
        ranked = MODELS["packed_groups"].ranked(problem, spec)
        assert ranked and all(why_invalid(problem, config, spec) is None for config in ranked)
    assert not list(MODELS["packed_groups"].defaults(ConvProblem.of((1, 64, 8, 8), (64, 64, 3, 3)), spec))
