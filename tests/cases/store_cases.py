"""Records of many kinds, for tests of what becomes of them."""

from dataclasses import replace

from hypothesis import strategies as st

from grouped_conv.autotune.records.record import FAILURES, Record
from grouped_conv.autotune.store.store import triton_version
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.kernels import ABI_VERSION, ImplicitGemmConfig

VERSION_1 = """
CREATE TABLE trials (
    problem TEXT NOT NULL, base TEXT NOT NULL, device TEXT NOT NULL, abi INTEGER NOT NULL, triton TEXT NOT NULL,
    config TEXT NOT NULL, status TEXT NOT NULL, predicted_us REAL, measured_us REAL, aten_us REAL, data TEXT NOT NULL,
    updated REAL NOT NULL, PRIMARY KEY (problem, device, abi, triton, config)
);
CREATE INDEX trials_by_base ON trials (base, device);
CREATE TABLE searches (key TEXT PRIMARY KEY, configs TEXT NOT NULL, updated REAL NOT NULL);
CREATE TABLE self_checks (
    device TEXT NOT NULL, abi INTEGER NOT NULL, triton TEXT NOT NULL, passed INTEGER NOT NULL, detail TEXT NOT NULL,
    updated REAL NOT NULL, PRIMARY KEY (device, abi, triton)
);
PRAGMA user_version = 1;
"""

CONV4 = workload("alexnet")["conv4"]
SMALL = ImplicitGemmConfig(block_m=64, block_n=64, block_k=32)
LARGE = ImplicitGemmConfig(block_m=128, block_n=64, block_k=64)


def record(config=SMALL, us=10.0, problem=CONV4, device="a100", **more):
    more = {"abi": ABI_VERSION, "triton": triton_version(), "status": "predicted", "updated": 1e9, **more}
    return Record(problem, config, device, predicted_us=us, **more)


def measured(config=SMALL, us=10.0, **more):
    return record(config, status="measured", measured_us=us, **more)


@st.composite
def records(draw):
    """Few keys and few values, so that records of one trial meet and tie."""
    made = record(
        draw(st.sampled_from([SMALL, LARGE])),
        draw(st.sampled_from([9.0, 10.0])),
        replace(CONV4, batch=draw(st.sampled_from([1, 2]))),
        draw(st.sampled_from(["a100", "h100-sxm"])),
        abi=draw(st.sampled_from([ABI_VERSION, ABI_VERSION + 1])),
        data=draw(st.sampled_from([{}, {"model": 2}])),
        updated=draw(st.sampled_from([1e9, 1e9 + 1])),
    )
    status = draw(st.sampled_from(["started", "predicted", "measured", "failed"]))
    if status == "failed":
        return made.failed(draw(st.sampled_from(FAILURES)), draw(st.sampled_from(["off by 2", ""])))
    if status != "measured":
        return replace(made, status=status)
    high = draw(st.sampled_from([None, 11.0, 12.0]))
    samples = draw(st.sampled_from([0, 20, 100]))
    return replace(made, status=status, measured_us=10.0, low_us=9.0, high_us=high, samples=samples, aten_us=12.0)
