"""Every family's default compiles for NVIDIA and AMD, in 16 and 32 bits: what each supported Triton version must do."""

import pytest

from grouped_conv.autotune import lrn_pool_model, separable_model
from grouped_conv.autotune.families import MODELS
from grouped_conv.autotune.offline import gpu_target
from grouped_conv.kernels import ConvProblem, Epilogue, GroupLayout
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.launch import Launch, compile_launch
from grouped_conv.kernels.lrn_pool import plan_lrn_pool
from grouped_conv.kernels.lrn_pool_problem import LrnPoolProblem
from grouped_conv.kernels.operands import Operand, channels_last_strides
from grouped_conv.kernels.separable import plan_separable_call
from grouped_conv.kernels.separable_rules import SeparableProblem
from grouped_conv.kernels.validity import why_invalid

RELU = Epilogue("relu", bias=True)
LAYOUTS = {
    "implicit_gemm": GroupLayout.uniform(64, 64, 2),
    "packed_groups": GroupLayout.uniform(64, 64, 16),
    "depthwise": GroupLayout.uniform(64, 64, 64),
    "ragged": GroupLayout.explicit(10, [[0, 3, 5, 9], [1, 2, 4, 6, 7, 8, 9], [0, 9]], [16, 16, 8]),
    "separable": GroupLayout.uniform(64, 64, 64),
}


TARGETS = [("a100", "float16"), ("a100", "float32"), ("h100", "bfloat16"), ("mi300x", "float16")]


def default_launches(family: str, dtype: str, device: DeviceSpec) -> tuple[Launch, ...]:
    """What a call of a small layer launches with the first of the family's defaults that can run it."""
    if family == "lrn_pool":
        problem = LrnPoolProblem.of((2, 64, 13, 13), dtype=dtype)
        shapes = {"input": problem.input_shape, "output": problem.output_shape}
        operands = {name: Operand(channels_last_strides(shape)) for name, shape in shapes.items()}
        return (plan_lrn_pool(problem, lrn_pool_model.choose(problem, device), operands),)
    first = ConvProblem(2, LAYOUTS[family], (13, 13), (3, 3), padding=(1, 1, 1, 1), dtype=dtype, epilogue=RELU)
    if family == "separable":
        block = SeparableProblem(first, 64)
        return plan_separable_call(block, next(iter(separable_model.defaults(block, device))))[0]
    configs = MODELS[family].defaults(first, device)
    return plan_call(first, next(c for c in configs if why_invalid(first, c, device) is None)).launches


@pytest.mark.smoke
@pytest.mark.parametrize(("key", "dtype"), TARGETS)
@pytest.mark.parametrize("family", [*LAYOUTS, "lrn_pool"])
def test_default_compiles(family: str, key: str, dtype: str) -> None:
    device = DeviceSpec.get(key)
    launches = default_launches(family, dtype, device)
    assert launches[-1].name == family
    for launch in launches:
        code = compile_launch(launch, gpu_target(device)).asm
        assert code["cubin" if device.backend == "cuda" else "hsaco"]
