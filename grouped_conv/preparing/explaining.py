"""`explain`: which kernel a convolution runs, with which configuration, from where, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grouped_conv.autotune.lookup.explanation import Explanation
from grouped_conv.autotune.lookup.explanation import explain as explain_problem
from grouped_conv.autotune.store.store import Store, default_store
from grouped_conv.context.policies import get_policy
from grouped_conv.preparing.targets import target_of
from grouped_conv.preparing.tuning import Problems, named_problems


def explain(
    model_or_problems: Problems,
    example_input: Any = None,
    *,
    device: Any = None,
    policy: str | None = None,
    directions: Sequence[str] | None = None,
    store: Store | str | Path | None = None,
) -> dict[str, Explanation]:
    """Explain what runs for every convolution of a model. Print an entry to read it; `to_json()` gives figures.

    Nothing is tuned, compiled or timed. Predicted times are labelled so.

    Args:
        model_or_problems, example_input, directions: as `grouped_conv.tune` takes them.
        device: a name such as `h100`, a `DeviceSpec`, or a CUDA device; by default the GPU of the input or the current.
        policy: whose path to explain; by default the current one.
        store: the tuning store or its file; by default `settings.store_path()`.

    Returns:
        One explanation per convolution and direction, by name.

    Raises:
        ValueError: for an unknown device or policy, or a convolution that no kernel can run, with the reasons.
    """
    spec = target_of(device, example_input).spec
    problems = named_problems(model_or_problems, example_input, directions)
    known = store if isinstance(store, Store) else Store(store) if store is not None else default_store()
    in_force = get_policy() if policy is None else policy
    return {name: explain_problem(problem, spec, in_force, known) for name, problem in problems.items()}
