"""Local response normalisation whose window stays inside a tower, as AlexNet's two GPUs had it.

`torch.nn.LocalResponseNorm` slides over all channels: at the border of two groups its window mixes channels that the
network of 2012 kept on different GPUs.
"""

from __future__ import annotations

from torch import Tensor, nn

from grouped_conv.by_torch.lrn_pool import local_response_norm


class LocalResponseNorm(nn.LocalResponseNorm):
    """`y = x / (k + alpha / size * sum of x^2 over size neighbouring channels of the same group) ** beta`.

    With `groups=1` this is `torch.nn.LocalResponseNorm`. Input and output are `(N, C, H, W)` in the same memory format.
    16-bit input is squared in float32: 256^2 is already beyond float16.

    Args:
        size: channels in the window, zeros beyond a group's ends; an even window reaches one further down than up.
        alpha: weight of the sum, divided by `size` as in Caffe; AlexNet's paper writes the sum undivided.
        beta: exponent.
        k: added before the power is taken.
        groups: towers that are normalised apart; divides C.

    Raises:
        ValueError: when `size` or `groups` is below 1, or, on a call, when `groups` does not divide C.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, groups: int = 1) -> None:
        if size < 1 or groups < 1:
            raise ValueError(f"size and groups must be at least 1, but got {size} and {groups}")
        super().__init__(size, alpha, beta, k)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, H, W)`."""
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k, self.groups)

    def extra_repr(self) -> str:
        """The arguments, groups only where there are several."""
        return super().extra_repr() + (f", groups={self.groups}" if self.groups > 1 else "")
