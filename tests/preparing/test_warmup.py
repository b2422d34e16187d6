"""`warmup`: afterwards a captured call finds every plan and compiles nothing, and the model is as it was."""

import random

import numpy as np
import pytest
import torch
from played_gpu import playing
from torch import nn
from torch._dynamo.testing import CompileCounter

import grouped_conv
from grouped_conv.bench.noop_driver import noop_driver
from grouped_conv.kernels import DeviceSpec
from grouped_conv.planning import executors, plan_cache
from grouped_conv.planning.interpreting import through_driver

H100 = DeviceSpec.get("h100")
pytestmark = pytest.mark.usefixtures("no_plans")


@pytest.fixture
def gpu(kept):
    """Every tensor is on an H100, whose kernels compile to nothing."""
    with playing(H100) as played:
        yield played


class Net(nn.Module):
    """Convolutions of every kind, BatchNorm, dropout and a call outside of any layer of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = grouped_conv.GroupedConv2d(8, 16, 3, padding=1, activation="gelu")
        self.norm = nn.BatchNorm2d(16)
        self.unequal = grouped_conv.RaggedConv2d(grouped_conv.GroupLayout.sizes([12, 4], [8, 8]), 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.block = grouped_conv.SeparableConv2d(16, 16, 3, padding=1)
        self.weight = nn.Parameter(torch.ones(16, 8, 1, 1))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        y = self.drop(self.unequal(self.norm(self.stem(x))))
        return {"out": grouped_conv.grouped_conv2d(self.block(y), self.weight, groups=2) * scale}


def image() -> torch.Tensor:
    return torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)


def test_after_it_a_capture_compiles_nothing_and_finds_every_plan(gpu):
    torch.manual_seed(0)
    model, x = Net(), image()
    with grouped_conv.policy("kernels"):
        table = grouped_conv.warmup(model, x)
        assert gpu.compiled
        assert set(table["direction"]) == {"forward", "input_grad", "weight_grad"}
        assert "aten" not in set(table["path"]), table
        assert list(table["layer"][:4]) == ["stem", "unequal", "block", "call"]
        assert table["path"][2] == "separable"
        assert set(table["layer"][4:]) == {"stem", "unequal", "block", "call"}
        before = len(gpu.compiled)
        gpu.captures = True
        with grouped_conv.trace() as calls:  # a call without a plan would be an error under this policy
            model(image())["out"].backward(torch.ones(2, 16, 6, 6).contiguous(memory_format=torch.channels_last))
    assert len(gpu.compiled) == before
    assert [call.path for call in calls] == list(table["path"])
    assert [call.problem for call in calls] == list(table["problem"])


def test_without_it_a_capture_runs_aten_or_refuses(gpu):
    model, x = grouped_conv.GroupedConv2d(8, 8, 3, groups=2), image()
    gpu.captures = True
    with grouped_conv.policy("predicted"), torch.no_grad(), grouped_conv.trace() as calls:
        model(x)
    assert (calls[0].path, "a CUDA graph is being captured" in calls[0].reason) == ("aten", True)
    with grouped_conv.policy("kernels"), pytest.raises(RuntimeError, match="cannot compile a kernel now"):
        model(x)
    assert gpu.compiled == []


def test_a_warm_up_during_a_capture_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be done during a capture"):
        grouped_conv.warmup(nn.Conv2d(4, 4, 3), torch.ones(1, 4, 5, 5))


def test_without_grad_only_the_forward_pass_is_prepared(gpu):
    model, x = Net().eval(), image()
    with grouped_conv.policy("kernels"), torch.no_grad():
        table = grouped_conv.warmup(model, x)
        with pytest.raises(RuntimeError, match="no output requires a gradient"):
            grouped_conv.warmup(model, x, backward=True)
    assert set(table["direction"]) == {"forward"}
    with grouped_conv.policy("kernels"):
        assert set(grouped_conv.warmup(model, x, backward=False)["direction"]) == {"forward"}
        assert "weight_grad" in set(grouped_conv.warmup(model, x, backward=True)["direction"])


def test_under_the_measured_policy_it_says_why_atens_convolution_runs(gpu):
    layer = grouped_conv.GroupedConv2d(8, 8, 3, padding=3)  # no other test warns of this one
    with pytest.warns(UserWarning, match="torch's own convolution runs"):
        table = grouped_conv.warmup(layer, image(), backward=False)
    assert list(table["path"]) == ["aten"]
    assert "self-check" in table["reason"][0]
    assert gpu.compiled == []


def test_frozen_weights_are_packed_before_the_capture(gpu):
    layer = grouped_conv.GroupedConv2d(8, 8, 3).requires_grad_(False)
    layer.weight.data = layer.weight.data.contiguous()
    with grouped_conv.policy("kernels"):
        (row,) = grouped_conv.warmup(layer, image()).to_dict("records")
        packed = vars(layer)["_packed_weight"].copy
        gpu.captures = True
        layer(image())
    assert row["launches"] == (row["path"],)  # nothing is packed in the call
    assert vars(layer)["_packed_weight"].copy is packed


def test_the_real_compiler_is_done_before_the_second_call(monkeypatch):
    """As far as it goes on CPU tensors: the no-op driver with kernels that are really compiled."""
    layer = grouped_conv.GroupedConv2d(16, 16, 3, groups=2, dtype=torch.float16)
    x = torch.ones(1, 16, 6, 6).half().contiguous(memory_format=torch.channels_last)
    with noop_driver(H100) as log, through_driver():
        table = grouped_conv.warmup(layer, x, backward=False)
        monkeypatch.setattr(plan_cache, "find_or_make", lambda *arguments: pytest.fail("a call had no plan"))
        layer(x)
    assert [name for name, _, _ in log] == 2 * list(table["launches"][0])
    executors.abandon_kernels()


def state(model: nn.Module) -> list[tuple[object, ...]]:
    held = [(id(tensor), tensor.detach().clone()) for tensor in model.state_dict(keep_vars=True).values()]
    return held + [(module.training,) for module in model.modules()]


def seed_all(seed: int) -> None:
    for generator in (torch.manual_seed, random.seed, np.random.seed):
        generator(seed)


def test_nothing_of_the_model_changes():
    torch.manual_seed(0)
    model, x = Net(), image()
    model.block.eval()
    model.stem.weight.grad = kept = torch.ones_like(model.stem.weight)
    seen, before = [], state(model)
    model.unequal.register_forward_hook(lambda module, inputs, output: seen.append(module.eval()))
    model.stem.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight))
    seed_all(1)
    wanted = torch.rand(3), random.random(), np.random.random()
    seed_all(1)
    table = grouped_conv.warmup(model, x, kwargs={"scale": 2.0})
    assert torch.equal(torch.rand(3), wanted[0])
    assert (random.random(), np.random.random()) == wanted[1:]
    assert list(table["direction"]).count("weight_grad") >= 4
    for old, new in zip(before, state(model), strict=True):
        assert old[0] == new[0]
        assert len(old) == 1 or torch.equal(old[1], new[1])
    assert model.stem.weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "stem.weight")
    assert (seen, x.grad) == ([model.unequal], None)  # the module's hook ran, the one behind an accumulation did not
    assert len(model.unequal._forward_hooks) == 1
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in (model.stem, model.block))


class Fails(nn.Module):
    """Changes everything, then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("nothing", None)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.nothing = torch.ones(1)
        self.weight.grad = torch.ones(1)
        self.eval()
        torch.rand(1)
        random.random()
        raise KeyError("a fault of the model")


def test_a_model_that_fails_is_as_before():
    model = Fails()
    generators = torch.get_rng_state(), random.getstate()
    with pytest.raises(KeyError, match="a fault of the model"):
        grouped_conv.warmup(model, torch.ones(1))
    assert (model.count.item(), model.nothing, model.weight.grad, model.training) == (0, None, None, True)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]


def test_on_a_cpu_it_says_that_aten_computes():
    table = grouped_conv.warmup(Net().eval(), image())
    assert set(table["path"]) == {"aten", "two_calls"}
    assert all("on the CPU, outside grouped_conv.interpret()" in reason for reason in table["reason"])


def test_in_the_interpreter_kernels_run():
    layer = grouped_conv.GroupedConv2d(8, 8, 3, groups=2)
    with grouped_conv.interpret():
        table = grouped_conv.warmup(layer, torch.randn(1, 8, 5, 5))
    assert set(table["layer"]) == {"GroupedConv2d"}
    assert "aten" not in set(table["path"])
    assert list(table["direction"]) == ["forward", "weight_grad"]  # as the input needs no gradient


def test_gradients_are_named_from_the_last_layer_to_the_first():
    convs = [grouped_conv.GroupedConv2d(8, 8, 3, padding=1) for _ in range(3)]
    table = grouped_conv.warmup(nn.Sequential(*convs, grouped_conv.GroupedConv2d(8, 4, 1)), image())
    gradients = table[table["direction"] == "weight_grad"]
    assert list(gradients["layer"]) == ["3", "2", "1", "0"]


def test_a_loss_of_ones_own():
    model, seen = grouped_conv.GroupedConv2d(8, 8, 3), []

    def loss(output: torch.Tensor) -> torch.Tensor:
        seen.append(output.shape)
        return output.mean()

    assert list(grouped_conv.warmup(model, image(), loss=loss)["direction"]) == ["forward", "weight_grad"]
    assert seen == [(2, 8, 4, 4)]


def test_compiled_code_is_not_compiled_again_for_it():
    counter = CompileCounter()
    layer = grouped_conv.GroupedConv2d(8, 8, 3)
    model = torch.compile(layer, backend=counter)
    x = image()
    with torch.no_grad():
        table = grouped_conv.warmup(model, x)
        model(x)
    assert (counter.frame_count, list(table["layer"]), list(table["path"])) == (1, ["call"], ["aten"])
    torch._dynamo.reset()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"runs a torch\.nn\.Module, but got function"):
        grouped_conv.warmup(image, image())
    with pytest.warns(UserWarning, match="Conv2d computes no convolution through grouped_conv; call "):
        assert len(grouped_conv.warmup(nn.Conv2d(8, 8, 3), image())) == 0
    parallel = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    with pytest.raises(ValueError, match=r"give warmup its \.module"):
        grouped_conv.warmup(parallel, image())
