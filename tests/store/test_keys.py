"""Keys of the store: text that becomes the problem again, and the same text again."""

import json

from hypothesis import given
from hypothesis import strategies as st

from grouped_conv.autotune.records.record import base_key, canonical, known_problem, problem_key
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue, GroupLayout
from grouped_conv.kernels.values.problem import DIRECTIONS, ITEM_SIZE, PRECISIONS


@st.composite
def layouts(draw):
    kind = draw(st.sampled_from(["uniform", "sizes", "overlapping", "explicit"]))
    groups = draw(st.integers(1, 4))
    if kind == "uniform":
        return GroupLayout.uniform(groups * draw(st.integers(1, 8)), groups * draw(st.integers(1, 8)), groups)
    sizes = st.lists(st.integers(1, 6), min_size=groups, max_size=groups)
    if kind == "sizes":
        return GroupLayout.sizes(draw(sizes), draw(sizes))
    if kind == "overlapping":
        return GroupLayout.overlapping(groups * 4, groups * 2, groups, draw(st.integers(4, 4 * groups)))
    channels = st.lists(st.integers(0, 7), min_size=1, max_size=8, unique=True)
    lists = draw(st.lists(channels, min_size=groups, max_size=groups))
    return GroupLayout.explicit(8, lists, draw(sizes), allow_unread=True)


epilogues = st.builds(
    Epilogue,
    activation=st.sampled_from(ACTIVATIONS),
    negative_slope=st.floats(-1, 1),
    bias=st.booleans(),
    scale=st.booleans(),
    residual=st.booleans(),
    save_preactivation=st.booleans(),
)


@st.composite
def problems(draw):
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    layout = draw(layouts())
    return ConvProblem(
        batch=draw(st.integers(0, 1 << 40)),
        layout=layout,
        in_size=draw(st.tuples(st.integers(7, 300), st.integers(7, 300))),
        kernel_size=draw(pair),
        stride=draw(pair),
        padding=draw(st.tuples(*[st.integers(0, 4)] * 4)),
        dilation=draw(pair),
        dtype=draw(st.sampled_from(list(ITEM_SIZE))),
        precision=draw(st.sampled_from(PRECISIONS)),
        input_channels_last=draw(st.booleans()),
        weight_channels_last=draw(st.booleans()),
        direction=draw(st.sampled_from(DIRECTIONS)),
        epilogue=draw(epilogues),
        input_shuffle=draw(st.sampled_from([1, layout.in_channels])),
    )


@given(problems())
def test_a_key_is_the_problem(problem):
    key = problem_key(problem)
    back = ConvProblem.from_json(json.loads(key))
    assert back == problem
    assert hash(back) == hash(problem)
    assert problem_key(back) == key == canonical(json.loads(key))
    assert known_problem(key) == problem


@given(problems())
def test_a_base_key_is_one_of_a_problem_too(problem):
    key = base_key(problem)
    back = ConvProblem.from_json(json.loads(key))
    assert (problem_key(back), base_key(back)) == (key, key)
    assert (back.batch, back.epilogue) == (0, Epilogue())
    assert back.layout == problem.layout


@given(problems(), problems())
def test_keys_are_equal_exactly_for_equal_problems(one, other):
    assert (problem_key(one) == problem_key(other)) == (one == other)
