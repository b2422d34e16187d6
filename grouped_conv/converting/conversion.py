"""Turning existing models to our layers and back: `convert`, `unconvert`, `conversion_report`, and `fold_batchnorm`.

Modules change their class in place. They stay the same objects with the same Parameters, so that hooks,
parametrizations, sharing, optimizers and state_dicts are not disturbed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from grouped_conv.converting.folding import fold_batchnorm
from grouped_conv.nn.conv import FusedLayer, GroupedConv1d, GroupedConv2d, keep_channels_last
from grouped_conv.nn.frozen_weights import forget_packed_weight

__all__ = ["ConversionNote", "conversion_report", "convert", "fold_batchnorm", "unconvert"]


@dataclass(frozen=True, slots=True)
class ConversionNote:
    """What `convert` does, or did, with one convolution of a model.

    Attributes:
        name: the module's name in the model, empty for the model itself.
        kind: its class.
        status: `converted`, `convertible` or `skipped`.
        reason: why it is skipped; empty otherwise.
    """

    name: str
    kind: str
    status: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name or '(model)'}: {self.kind} {self.status}" + (f", {self.reason}" if self.reason else "")


def conversion_report(model: nn.Module) -> list[ConversionNote]:
    """One note for each convolution of `model`, in order; a shared module has one note. Nothing is changed."""
    return [_note(name, module) for name, module in model.named_modules() if isinstance(module, _ConvNd)]


def convert(model: nn.Module, *, verbose: bool = False) -> nn.Module:
    """Turn each `torch.nn.Conv2d` of `model` into a `GroupedConv2d`, each `Conv1d` into a `GroupedConv1d`, in place.

    Returns the model. Only modules whose class is exactly torch's change, parametrized ones included: a subclass may
    compute something else. Parameters stay the same objects; the weights' memory becomes channels_last. Converting
    twice changes nothing.

    Args:
        verbose: print the notes of `conversion_report`, which says what was skipped and why.
    """
    for module in list(model.modules()):
        if isinstance(module, _ConvNd) and _why_skipped(module) == "" and not isinstance(module, FusedLayer):
            _change_class(module, _OURS[_base_class(module)])
            if "weight" in module._parameters and not parametrize.is_parametrized(module):
                keep_channels_last(module.weight)
    if verbose:
        for note in conversion_report(model):
            print(note)
    return model


def unconvert(model: nn.Module) -> nn.Module:
    """Turn every `GroupedConv2d` and `GroupedConv1d` of `model` back into a plain `torch.nn` layer, in place.

    A layer with `activation=` or shuffles becomes `nn.Sequential(OrderedDict(conv=..., activation=...))`, which adds
    `conv.` to its names in the state_dict; its forward and backward hooks move to the Sequential. Returns the model, or
    the Sequential if the model itself is such a layer. Subclasses of our layers do not change. Weights stay
    channels_last in memory.
    """
    wrapped: dict[nn.Module, nn.Module] = {}
    for module in list(model.modules()):
        if isinstance(module, FusedLayer) and _base_class(module) in _TORCHS:
            steps = _steps(module)
            _change_class(module, _TORCHS[_base_class(module)])
            for name in ("activation", "input_shuffle", "output_shuffle"):
                vars(module).pop(name, None)
            forget_packed_weight(module)
            if len(steps) > 1:
                wrapped[module] = _in_sequence(module, steps)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in wrapped:
                parent._modules[name] = wrapped[child]
    return wrapped.get(model, model)


_OURS: dict[type, type[FusedLayer]] = {nn.Conv2d: GroupedConv2d, nn.Conv1d: GroupedConv1d}
_TORCHS: dict[type, type[nn.Module]] = {ours: torchs for torchs, ours in _OURS.items()}


def _note(name: str, module: nn.Module) -> ConversionNote:
    kind = type(module).__name__
    if _base_class(module) in _TORCHS:
        return ConversionNote(name, kind, "converted")
    reason = _why_skipped(module)
    return ConversionNote(name, kind, "skipped" if reason else "convertible", reason)


def _why_skipped(module: nn.Module) -> str:
    base = _base_class(module)
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "its parameters are not initialised yet; run a batch through the model first"
    if base not in _OURS and base not in _TORCHS:
        for torchs in _OURS:
            if isinstance(module, torchs):
                return f"{base.__name__} is a subclass of {torchs.__name__} and may compute something else"
        return "only 1-D and 2-D convolutions that are not transposed have kernels"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return ""


def _base_class(module: nn.Module) -> type:
    """The module's class, or the one it had before it was parametrized."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _change_class(module: nn.Module, to: type[nn.Module]) -> None:
    if not parametrize.is_parametrized(module):
        module.__class__ = to
        return
    # torch.nn.utils.parametrize gave the module a class of its own, with a property per parametrized tensor
    own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(f"Parametrized{to.__name__}", (to,), own)


_ACTIVATION_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}

# Hooks that see the output, which is the activation's; handles refer to these dictionaries, so the dictionaries move.
_OUTPUT_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def _steps(layer: FusedLayer) -> OrderedDict[str, nn.Module]:
    """The layer's work as plain modules, by name."""
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    if layer.input_shuffle > 1:
        steps["input_shuffle"] = nn.ChannelShuffle(layer.input_shuffle)
    steps["conv"] = layer
    if layer.activation is not None:
        steps["activation"] = _ACTIVATION_MODULES[layer.activation]()
    if layer.output_shuffle > 1:
        steps["output_shuffle"] = nn.ChannelShuffle(layer.output_shuffle)
    return steps


def _in_sequence(convolution: nn.Module, steps: OrderedDict[str, nn.Module]) -> nn.Sequential:
    sequence = nn.Sequential(steps)
    sequence.training = convolution.training
    for hooks in _OUTPUT_HOOKS:
        ours, theirs = vars(sequence)[hooks], vars(convolution)[hooks]
        vars(sequence)[hooks], vars(convolution)[hooks] = theirs, ours
    return sequence
