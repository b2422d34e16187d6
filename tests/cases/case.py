"""One row of a table of problems that the kernels are tested on."""

from dataclasses import dataclass
from typing import Any

from grouped_conv.kernels import ConvProblem
from grouped_conv.kernels.gradient_call import gradient_problem


@dataclass(frozen=True)
class Case:
    """A problem, a configuration that can run it, and why we look at it."""

    reason: str
    problem: Any
    config: Any

    @property
    def gradient(self) -> ConvProblem:
        """The gradient that the configuration computes of a forward problem."""
        return gradient_problem(self.problem, self.config.direction)

    @property
    def id(self) -> str:
        return f"{self.reason}-{self.config.family}-{self.problem}-{self.config}".replace(" ", "-")
