"""What a report shows, as values: which rows, the grid's knobs, the course of the best."""

from store_cases import CONV4, LARGE, SMALL, measured, record

from grouped_conv.autotune.report import rows as report_rows
from grouped_conv.autotune.search.efforts import plan_effort
from grouped_conv.autotune.search.search import Search
from grouped_conv.kernels import DeviceSpec, ImplicitGemmConfig


def test_measured_rows_of_the_store_make_no_prediction(kept, compiled):
    """A device that was measured elsewhere: a page of predictions shows predicted times, of rows that have one."""
    kept.put([measured(SMALL, 5.0, device="h100-sxm"), record(LARGE, 9.0, device="h100-sxm")])
    plan = plan_effort("none", measures=False)
    search = Search("it", CONV4, DeviceSpec.get("h100"), kept, plan, measures=False)
    rows = report_rows.trials_of(search)
    assert {report_rows.shown_us(row, False) for row in rows} == {10.0, 9.0}
    live = Search("it", CONV4, DeviceSpec.get("h100"), kept, plan, measures=True)
    assert [row.config for row in report_rows.trials_of(live)] == [SMALL]


def row(us, failure=None, tried=0.0, **knobs):
    made = record(ImplicitGemmConfig(**knobs), us, data={"tried": tried})
    return made.failed(failure, "because") if failure else made


def test_the_grid_takes_the_blocks_that_vary():
    rows = [
        row(9.0, block_m=64, block_n=64, num_warps=4),
        row(8.0, block_m=64, block_n=64, num_warps=8),
        row(7.0, "compile", block_m=128, block_n=64, num_warps=8),
        row(6.0, block_m=128, block_n=32, num_warps=4),
        row(5.0, "compile", block_m=128, block_n=32, num_warps=2),
    ]
    (grid,) = report_rows.grids(rows, False, rows[0])
    assert grid.winner == (64, 64)
    assert (grid.down, grid.across) == (("block_m", (64, 128)), ("block_n", (32, 64)))
    assert {place: (cell.us, dict(cell.failures)) for place, cell in grid.cells.items()} == {
        (64, 64): (8.0, {}),
        (64, 128): (None, {"compile": 1}),
        (32, 128): (6.0, {"compile": 1}),
    }
    (single,) = report_rows.grids(rows[:2], False, rows[3])
    assert single.winner is None
    assert (single.across, single.down) == (("num_warps", (4, 8)), ("", (None,)))
    assert set(single.cells) == {(4, None), (8, None)}
    assert report_rows.grids(rows[:1], False) == []


def test_the_course_follows_what_predictions_are_ranked_by():
    rows = [row(9.0), row(7.0, "compile", block_m=64), row(8.0, block_m=32), row(7.5, block_m=256)]
    assert report_rows.best_so_far(rows, False) == [9.0, 9.0, 8.0, 7.5]
    wasteful = record(LARGE, 7.0, data={"weighed_us": 9.5})
    assert report_rows.best_so_far([*rows, wasteful], False)[-1] == 7.5
    assert report_rows.best_so_far(rows[1:2], False) == [None]
