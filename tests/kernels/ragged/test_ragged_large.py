"""Ragged convolutions beyond 2^31 elements: every offset that needs 64 bits has them."""

import torch
from conv_oracle import run_call
from far_apart import FAR, spread
from ragged_cases import CONFIGS, LAYOUTS
from ragged_oracle import check_ragged, make_ragged_tensors, ragged_problem, weight_of

from grouped_conv.kernels import GroupLayout
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig, tile_table, weight_elements


def test_images_and_rows_far_apart() -> None:
    for name in ("alignment 4", "random lists"):
        layout = LAYOUTS[name]
        channels, outputs = layout.in_channels, layout.out_channels
        for batch, far in (
            (2, {"input": (FAR, 1, 4 * channels, channels), "output": (FAR, 1, 4 * outputs, outputs)}),
            (1, {"input": (2 * FAR, 1, FAR // 2, channels)}),  # the window itself spans more than 2^31 elements
        ):
            problem = ragged_problem(layout, (4, 4), batch=batch, padding=(1, 1, 1, 1))
            tensors = make_ragged_tensors(problem, CONFIGS[0])
            tensors |= {operand: spread(tensors[operand], strides) for operand, strides in far.items()}
            call = plan_call(problem, CONFIGS[0], {operand: Operand(strides) for operand, strides in far.items()})
            run_call(call, tensors, interpret_launch)
            check_ragged(problem, tensors, f"{name}, {far}")


def test_weights_beyond_two_to_the_31() -> None:
    """A group behind one of 2^31 weights; the programs of that one are not run."""
    layout = GroupLayout.sizes([2**14, 8], [2**17, 8])
    problem = ragged_problem(layout, (1, 1), (1, 1))
    config = RaggedConfig(block_m=16, block_n=16, block_k=16)
    table = tile_table(problem, config)
    assert table[-1, 5] == 2**31
    tensors = {
        "input": torch.ones(1, layout.in_channels, 1, 1).half(),
        "weight": torch.empty(weight_elements(layout, 1), dtype=torch.float16),
        "output": torch.zeros(1, layout.out_channels, 1, 1).half(),
        "tile_table": torch.from_numpy(table),
    }
    weight_of(problem, tensors["weight"], 1).copy_(torch.arange(64).view(8, 8, 1, 1))
    (launch,) = plan_call(problem, config).launches
    interpret_launch(launch, tensors, iter([(launch.grid[0] - 1, 0, 0)]))
    assert tensors["output"][0, -8:, 0, 0].tolist() == [sum(range(8 * row, 8 * row + 8)) for row in range(8)]
    assert not tensors["output"][0, :-8].any()
