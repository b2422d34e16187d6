"""Every family's default compiles for NVIDIA and AMD, in 16 and 32 bits: what each supported Triton version must do."""

import pytest

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code.resources import read_resources
from grouped_conv.autotune.model.families import MODELS
from grouped_conv.autotune.model.lrn_pool import forward as lrn_pool_model
from grouped_conv.kernels import ConvProblem, Epilogue, GroupLayout
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.families import FAMILIES, why_invalid
from grouped_conv.kernels.gradient_call import gradient_problem, plan_bias_gradient, plan_gradient
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig
from grouped_conv.kernels.launching.launch import Launch, compile_launch
from grouped_conv.kernels.launching.operands import Operand, channels_last_strides
from grouped_conv.kernels.lrn_pool.forward import plan_lrn_pool
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.separable.forward import plan_separable_call
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.device import DeviceSpec

RELU = Epilogue("relu", bias=True)
LAYOUTS = {
    "implicit_gemm": GroupLayout.uniform(64, 64, 2),
    "packed_groups": GroupLayout.uniform(64, 64, 16),
    "depthwise": GroupLayout.uniform(64, 64, 64),
    "ragged": GroupLayout.explicit(10, [[0, 3, 5, 9], [1, 2, 4, 6, 7, 8, 9], [0, 9]], [16, 16, 8]),
    "separable": GroupLayout.uniform(64, 64, 64),
}


GRADIENTS = {
    "input_grad": LAYOUTS["implicit_gemm"],
    "weight_grad": LAYOUTS["implicit_gemm"],
    "packed_input_grad": LAYOUTS["packed_groups"],
    "packed_weight_grad": LAYOUTS["packed_groups"],
    "depthwise_input_grad": LAYOUTS["depthwise"],
    "depthwise_weight_grad": LAYOUTS["depthwise"],
    "ragged_input_grad": LAYOUTS["ragged"],
    "ragged_weight_grad": LAYOUTS["ragged"],
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
        return plan_separable_call(block, next(iter(MODELS["separable"].defaults(block, device))))[0]
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


@pytest.mark.smoke
@pytest.mark.parametrize(("key", "dtype"), [("a100", "float16"), ("h100", "float32"), ("mi300x", "bfloat16")])
@pytest.mark.parametrize("family", GRADIENTS)
def test_default_gradient_compiles(family: str, key: str, dtype: str) -> None:
    """Behind an activation and a scale, whose gradient comes along, and the passes that follow."""
    device = DeviceSpec.get(key)
    epilogue = Epilogue("silu", scale=True)
    forward = ConvProblem(
        2, GRADIENTS[family], (13, 13), (3, 3), (2, 2), padding=(1, 1, 1, 1), dtype=dtype, epilogue=epilogue
    )
    row = FAMILIES[family]
    problem = gradient_problem(forward, row.direction)
    configs = MODELS[family].defaults(problem, device)
    config = next(c for c in configs if why_invalid(problem, c, device) is None)
    launches = plan_gradient(problem, config, grad_scale=row.direction == "weight_grad").launches
    assert family in [launch.name for launch in launches]
    for launch in launches:
        code = compile_launch(launch, gpu_target(device)).asm
        assert code["cubin" if device.backend == "cuda" else "hsaco"]


@pytest.mark.smoke
def test_the_bias_pass_compiles() -> None:
    problem = gradient_problem(ConvProblem.of((2, 64, 13, 13), (64, 32, 3, 3), groups=2, epilogue=RELU), "weight_grad")
    for launch in plan_bias_gradient(problem, grad_residual=True).launches:
        assert compile_launch(launch, gpu_target(DeviceSpec.get("a100"))).asm["cubin"]


@pytest.mark.smoke
@pytest.mark.parametrize("key", ["a100", "h100", "mi300x"])
@pytest.mark.parametrize(("kernel", "activation"), [((3, 3), "none"), ((15, 16), "relu")])
def test_a_table_of_pixels_compiles(key: str, kernel: tuple[int, int], activation: str) -> None:
    device = DeviceSpec.get(key)
    forward = ConvProblem.of((2, 64, 16, 16), (64, 32, *kernel), padding=7, groups=2, epilogue=Epilogue(activation))
    config = WeightGradConfig(block_m=64, block_n=64, block_k=64, num_warps=4, num_stages=3, pixel_table=True)
    launches = plan_gradient(gradient_problem(forward, "weight_grad"), config).launches
    assert [launch.name for launch in launches] == ["pixel_table", "weight_grad", "gradient_reduce"]
    for launch in launches:
        resources = read_resources(compile_launch(launch, gpu_target(device)))
        assert not resources.spill_bytes
        if launch.name == "weight_grad":  # behind an activation one tile is not copied but loaded, as wide
            assert resources.loop
            assert resources.loop.load_widths.get(16, 0) >= 4
            assert not {2, 4} & set(resources.loop.load_widths)
