"""Interpreting patches Triton inside its block only; what it repairs, and what it guards."""

import threading

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter
from conv_cases import alexnet_layers
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import grouped_conv
from grouped_conv.kernels import ImplicitGemmConfig
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.interpreting import numerics as interpreter_numerics
from grouped_conv.kernels.interpreting.interpreter import interpreting
from grouped_conv.kernels.launching.launch import compile_launch

pytestmark = pytest.mark.smoke


def patched_places() -> dict[str, object]:
    builder = triton_interpreter.InterpreterBuilder
    return {
        "JITFunction.__call__": JITFunction.__call__,
        "tl.load": tl.load,
        "tl.dot": tl.dot,
        "tl.core.load": tl.core.load,
        "tl.range": tl.range,
        "tensor.__index__": tl.core.tensor.__dict__.get("__index__"),
        "tensor.__add__": tl.core.tensor.__add__,
        "patch": triton_interpreter._patch_lang,
        "create_dot": builder.create_dot,
        "binary_op": builder.binary_op,
        "cast_impl": builder.cast_impl,
        "options": triton_interpreter.interpreter_builder.options,
    }


def test_triton_is_as_before_after_the_block_even_after_an_error() -> None:
    before = patched_places()
    during: dict[str, object] = {}

    def fail() -> None:
        with grouped_conv.interpret(), interpreting():
            during.update(patched_places())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert patched_places() == before
    assert all(during[name] != before[name] for name in ("tl.load", "patch", "create_dot", "options"))


def test_kernel_modules_keep_their_globals() -> None:
    from grouped_conv.kernels.device_code import reduction as jit_reduction

    before = set(vars(jit_reduction))
    x = torch.randn(1, 16, 5, 5)
    with grouped_conv.interpret(ImplicitGemmConfig(block_m=16, block_n=16, block_k=16)):
        grouped_conv.grouped_conv2d(x, torch.randn(16, 16, 3, 3))
    assert set(vars(jit_reduction)) == before


def test_compiling_inside_the_block_is_refused_and_works_after_it() -> None:
    launch = plan_call(alexnet_layers(1)["conv4"], ImplicitGemmConfig(block_m=32, block_n=32, block_k=32)).launches[0]
    target = GPUTarget("cuda", 80, 32)
    with grouped_conv.interpret(), pytest.raises(RuntimeError, match="cannot compile a kernel inside interpret"):
        compile_launch(launch, target)
    assert "mma.sync" in compile_launch(launch, target).asm["ptx"]


def test_another_threads_compilation_waits_for_the_block() -> None:
    launch = plan_call(alexnet_layers(1)["conv5"], ImplicitGemmConfig(block_m=32, block_n=32, block_k=32)).launches[0]
    done = threading.Event()

    def work() -> None:
        compile_launch(launch, GPUTarget("cuda", 80, 32))
        done.set()

    with grouped_conv.interpret():
        thread = threading.Thread(target=work)
        thread.start()
        assert not done.wait(0.3)
    thread.join(60)
    assert done.is_set()


def test_user_set_interpreter_variable() -> None:
    """TRITON_INTERPRET=1: interpret() still works, compiling says why it cannot."""
    import os
    import subprocess
    import sys

    program = """
import torch, grouped_conv
from grouped_conv.kernels import ImplicitGemmConfig, ConvProblem
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.launching.launch import compile_launch
from triton.backends.compiler import GPUTarget
config = ImplicitGemmConfig(block_m=16, block_n=16, block_k=16)
x, w = torch.randn(1, 16, 5, 5), torch.randn(16, 8, 3, 3)
with grouped_conv.interpret(config), grouped_conv.trace() as calls:
    y = grouped_conv.grouped_conv2d(x, w, groups=2, precision="ieee")
assert calls[0].path == "implicit_gemm", calls
torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, groups=2), rtol=1e-4, atol=1e-4)
try:
    (launch,) = plan_call(ConvProblem.of((1, 16, 5, 5), (16, 8, 3, 3), groups=2), config).launches
    compile_launch(launch, GPUTarget("cuda", 80, 32))
except RuntimeError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "TRITON_INTERPRET=1 was set" in result.stdout


def test_rounding_of_the_repairs() -> None:
    values = np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -3.4e38, np.inf, np.nan], np.float32)
    ours = interpreter_numerics.from_bf16(interpreter_numerics.to_bf16(values))
    theirs = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(ours, theirs)
    cut = interpreter_numerics.to_tf32(np.array([1 + 2.0**-10, 1 + 2.0**-11, np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(cut, np.array([1 + 2.0**-10, 1.0, np.inf, np.nan], np.float32))


def test_canary_what_the_repairs_are_for() -> None:
    """Triton's own interpreter multiplies bf16 bit patterns. When this fails, Triton is mended and so should we be."""
    bits = interpreter_numerics.to_bf16(np.array([[2.0, 3.0]], np.float32))
    handle = triton_interpreter.TensorHandle(bits, tl.bfloat16)
    transposed = triton_interpreter.TensorHandle(bits.T.copy(), tl.bfloat16)
    zero = triton_interpreter.TensorHandle(np.zeros((1, 1), np.float32), tl.float32)
    builder = triton_interpreter.interpreter_builder
    assert builder.create_dot(handle, transposed, zero, None, 0).data.item() != 13.0, triton.__version__
    with interpreting():
        assert builder.create_dot(handle, transposed, zero, None, 0).data.item() == 13.0
