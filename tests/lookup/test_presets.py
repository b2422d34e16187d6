"""The presets that ship: their format, what they cover, that layers find them, and what a preset may not do."""

import json
import logging
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from networks import resnext50
from processes import run_python
from store_cases import CONV4, SMALL
from store_cases import record as recorded

import grouped_conv
from grouped_conv.autotune import data
from grouped_conv.autotune.compiling.offline import compile_offline
from grouped_conv.autotune.lookup import presets
from grouped_conv.autotune.lookup.preset_problems import DEVICES, preset_problems
from grouped_conv.autotune.lookup.resolve import Choice, resolve
from grouped_conv.autotune.make_presets import TRIALS
from grouped_conv.autotune.model.families import predict
from grouped_conv.autotune.model.shared.prediction import MODEL_VERSION
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.search.judging import why_rejected
from grouped_conv.autotune.store.store import Store, triton_version
from grouped_conv.kernels import ABI_VERSION, ConvProblem, DeviceSpec, Epilogue, ImplicitGemmConfig
from grouped_conv.kernels.families import why_invalid
from grouped_conv.planning.live_device import spec_of
from grouped_conv.preparing.traced_problems import problems_of

H100 = DeviceSpec.get("h100")
CONFIGS = [replace(SMALL, split_k=1 + index) for index in range(4)]
FOLDER = Path(next(iter(data.__path__)))


def record(config: ImplicitGemmConfig, problem: ConvProblem = CONV4, **more) -> Record:
    return replace(recorded(config, 9.0, problem, "h100-sxm", data={"model": MODEL_VERSION}), **more)


# ---- the format


def test_presets_have_the_same_bytes_and_come_back() -> None:
    rows = [
        record(CONFIGS[0]),
        record(CONFIGS[1], predicted_us=3.00049),
        record(CONFIGS[2], replace(CONV4, batch=64), status="measured", measured_us=4.0, aten_us=50.0),
        record(CONFIGS[3]).failed("wrong", "off"),
    ]
    text = presets.preset_text(rows, 6)
    assert text == presets.preset_text(rows[::-1], 6)
    back = presets.read_presets(text)
    assert {(row.config, row.predicted_us) for row in back} == {(CONFIGS[1], 3.0), (CONFIGS[2], 9.0)}
    assert {(row.status, row.measured_us, row.device, row.abi) for row in back} == {
        ("predicted", None, "h100-sxm", ABI_VERSION)
    }
    assert text == presets.preset_text(back, 6)
    assert presets.checked(text)["trials"] == 6


def test_presets_are_of_one_device_and_this_version() -> None:
    row = record(CONFIGS[0])
    for rows in ([], [row, replace(row, device="a100")], [replace(row, abi=ABI_VERSION - 1)], [replace(row, data={})]):
        with pytest.raises(ValueError, match="presets are of"):
            presets.preset_text(rows, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"version":1', '"version":2'), "version 2 is unknown; accepted: 1"),
        (lambda text: text.replace('"times":"predicted"', '"times":"measured"'), "times 'measured' is unknown"),
        (lambda text: text.replace('"triton":', '"tritium":'), "a preset file has the fields"),
        (lambda text: text.replace('"predicted_us":', '"us":'), "a preset has the fields"),
        (lambda text: text.replace("implicit_gemm", "explicit_gemm"), "unknown kernel family 'explicit_gemm'"),
        (lambda text: text[:-9], "delimiter|Expecting"),
    ],
)
def test_bad_presets_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        presets.read_presets(change(presets.preset_text([record(CONFIGS[0])], 6)))


def test_files_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    (tmp_path / "h100-sxm.json").write_text(presets.preset_text([record(CONFIGS[0])], 6))
    monkeypatch.setattr(presets.resources, "files", lambda package: tmp_path)
    presets.shipped.cache_clear()
    try:
        assert [row.config for row in presets.shipped("h100-sxm")] == [CONFIGS[0]]
        assert presets.shipped("a100") == ()
        presets.shipped.cache_clear()
        monkeypatch.setattr(presets, "ABI_VERSION", ABI_VERSION + 1)
        with caplog.at_level(logging.DEBUG, logger=presets.__name__):
            assert presets.shipped("h100-sxm") == presets.shipped("h100-sxm") == ()
        assert [entry.message for entry in caplog.records] == [
            f"presets of h100-sxm are for kernel ABI {ABI_VERSION}, not {ABI_VERSION + 1}: ignored"
        ]
    finally:
        presets.shipped.cache_clear()


# ---- what ships


def test_the_problems_are_those_that_were_promised() -> None:
    layers = {
        *((96, 27, 256, 5, 1, 2, 2), (384, 13, 384, 3, 1, 1, 2), (384, 13, 256, 3, 1, 1, 2)),
        *((128, 56, 128, 3, 1, 1, 32), (256, 56, 256, 3, 2, 1, 32), (256, 28, 256, 3, 1, 1, 32)),
        *((512, 28, 512, 3, 2, 1, 32), (512, 14, 512, 3, 1, 1, 32)),
        *((1024, 14, 1024, 3, 2, 1, 32), (1024, 7, 1024, 3, 1, 1, 32)),
    }
    wanted = set()
    for batch in (1, 128):
        for dtype in ("float16", "bfloat16"):
            for c, height, k, size, stride, padding, groups in layers:
                shape = ((batch, c, height, height), (k, c // groups, size, size), stride, padding, 1, groups, dtype)
                wanted.add(ConvProblem.of(*shape, epilogue=Epilogue("relu", bias=True)))
                for direction in ("input_grad", "weight_grad"):
                    for activation in ("none", "relu") if groups == 2 else ("none",):
                        wanted.add(ConvProblem.of(*shape, direction=direction, epilogue=Epilogue(activation)))
    assert set(preset_problems().values()) == wanted
    assert len(wanted) == 144


def test_a_file_for_each_device_and_no_other() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} - {"__init__.py"} == {
        f"{device}.json" for device in DEVICES
    }
    assert {DeviceSpec.get(name).key for name in ("a100", "h100", "h100-pcie")} == set(DEVICES)
    assert len({presets.checked((FOLDER / f"{device}.json").read_text())["triton"] for device in DEVICES}) == 1


@pytest.mark.smoke
@pytest.mark.parametrize("device", DEVICES)
def test_what_ships_is_canonical_complete_current_and_valid(device: str) -> None:
    text = (FOLDER / f"{device}.json").read_text(encoding="utf-8")
    content, rows = presets.checked(text), presets.shipped(device)
    assert (content["device"], content["abi"], content["model"]) == (device, ABI_VERSION, MODEL_VERSION)
    assert (content["times"], content["trials"]) == ("predicted", TRIALS)
    assert text == presets.preset_text(rows, TRIALS)
    assert json.loads(text) == content
    assert sorted(map(str, preset_problems().values())) == sorted(str(row.problem) for row in rows)
    assert {row.problem for row in rows} == set(preset_problems().values())
    for row in rows:
        assert (row.status, row.measured_us, row.aten_us) == ("predicted", None, None)
        assert row.config.direction == row.problem.direction
        assert why_invalid(row.problem, row.config, DeviceSpec.get(device)) is None


@pytest.mark.parametrize(("device", "layer", "direction"), [("a100", 128, "forward"), ("h100-sxm", 384, "weight_grad")])
def test_a_shipped_configuration_compiles_to_usable_code(device: str, layer: int, direction: str) -> None:
    spec = DeviceSpec.get(device)
    row = next(
        row
        for row in presets.shipped(device)
        if (row.problem.in_channels, row.problem.direction, row.problem.batch) == (layer, direction, 128)
    )
    launches = compile_offline(row.problem, spec, row.config)
    main = next(launch for launch in launches if launch.name == row.config.family)
    assert main.resources.spill_bytes == 0
    assert why_rejected(row.problem, row.config, main.resources, spec) is None
    if row.triton == triton_version():  # the same code, within what an ABI may change, and the same model
        us = predict(row.problem, row.config, spec, main.resources).us
        assert us == pytest.approx(row.predicted_us, rel=0.02)


def test_nothing_is_read_before_a_look_up_asks_for_its_device(tmp_path: Path) -> None:
    code = f"""
        import sys
        def note(event, arguments):
            if event == "open" and str(arguments[0]).endswith(".json") and "autotune" in str(arguments[0]):
                print(str(arguments[0]).rpartition("/")[2])
        sys.addaudithook(note)
        import grouped_conv, grouped_conv.ops.conv2d
        from grouped_conv.autotune.lookup.resolve import resolve
        from grouped_conv.autotune.store.store import Store
        from grouped_conv.autotune.workloads.named import workload
        from grouped_conv.kernels import DeviceSpec
        problem, store = workload("alexnet")["conv2"], Store({str(tmp_path / "store.sqlite3")!r})
        resolve(problem, DeviceSpec.get("h100"), "measured", store)
        print("asked")
        for batch in (128, 1, 128):
            print(resolve(workload("alexnet", batch)["conv2"], DeviceSpec.get("h100"), "kernels", store).source)
    """
    assert run_python(code).split("\n") == ["asked", "h100-sxm.json", "preset", "preset", "preset", ""]


# ---- who finds them


@cache
def traced(network: str, folded: bool = False) -> tuple[ConvProblem, ...]:
    """What the grouped layers of a whole network ask for, one float16 image, forward and gradients."""
    model = grouped_conv.models.AlexNet(variant="caffe") if network == "alexnet" else resnext50()
    crop = 227 if network == "alexnet" else 224
    if folded:
        grouped_conv.fold_batchnorm(grouped_conv.convert(model.eval()))
    directions = ["forward"] if folded else ["forward", "input_grad", "weight_grad"]
    found = problems_of(model.half().eval(), torch.zeros(1, 3, crop, crop, dtype=torch.half), directions)
    return tuple(problem for problem in found.values() if problem.groups > 1)


@pytest.mark.parametrize(
    ("network", "folded", "count"), [("alexnet", False, 9), ("resnext50", False, 21), ("resnext50", True, 7)]
)
def test_layers_of_real_networks_find_them(kept: Store, network: str, folded: bool, count: int) -> None:
    problems = traced(network, folded)
    assert len(problems) == count
    for problem in problems:
        for batch in (1, 128):
            for dtype in ("float16", "bfloat16"):
                for device in DEVICES:
                    asked = replace(problem, batch=batch, dtype=dtype)
                    choice = resolve(asked, DeviceSpec.get(device), "kernels", kept)
                    assert (choice.source, choice.is_tuned) == ("preset", True), asked
                    confidences = {row.triton == triton_version() for row in presets.shipped(device)}
                    assert choice.confidence == ("predicted" if confidences == {True} else "borrowed")


def test_alexnet_finds_its_own_rows_and_not_those_of_another_epilogue() -> None:
    shipped = {row.problem for row in presets.shipped("h100-sxm")}
    assert {replace(problem, batch=128) for problem in traced("alexnet")} <= shipped


def test_what_follows_a_forward_pass_does_not_matter_and_what_a_gradient_loads_does(kept: Store) -> None:
    forward, gradient = (
        next(one for one in traced("resnext50") if one.direction == way) for way in ("forward", "input_grad")
    )
    for epilogue in (Epilogue("silu", bias=True, residual=True), Epilogue(scale=True), Epilogue(shuffle=32)):
        assert resolve(replace(forward, epilogue=epilogue), H100, "kernels", kept).source == "preset"
    for epilogue in (Epilogue("relu"), Epilogue(scale=True)):
        assert resolve(replace(gradient, epilogue=epilogue), H100, "kernels", kept).source == "heuristic"
    assert resolve(replace(gradient, epilogue=Epilogue(shuffle=32)), H100, "kernels", kept).source == "preset"
    activated = next(one for one in traced("alexnet") if one.direction == "weight_grad")
    choice = resolve(replace(activated, epilogue=Epilogue("silu")), H100, "kernels", kept)
    assert choice.config == resolve(activated, H100, "kernels", kept).config


def test_relatives_borrow(kept: Store) -> None:
    def source(device: DeviceSpec, **changes) -> str:
        return resolve(replace(CONV4, **changes), device, "kernels", kept).source

    assert source(DeviceSpec.get("h200")) == source(DeviceSpec.get("h100-nvl")) == "nearby device"
    assert source(H100, batch=200) == source(H100, batch=2) == "nearby batch"
    assert source(H100, batch=16) == source(DeviceSpec.get("l40s")) == "heuristic"
    assert source(H100, input_channels_last=False) == "heuristic"

    class Properties:
        major, minor, multi_processor_count, name = 8, 0, 108, "NVIDIA A100-PCIE-40GB"

    pcie = spec_of(Properties)
    assert pcie is not None
    assert source(pcie) == "preset"


def choices(policy: str, store: Store) -> dict[str, Choice]:
    return {
        name: resolve(problem, H100, policy, store)
        for name, problem in preset_problems().items()
        if problem.dtype == "float16"
    }


def test_a_preset_never_runs_an_unverified_kernel(kept: Store) -> None:
    for policy in ("measured", "predicted"):
        for choice in choices(policy, kept).values():
            assert (choice.path, choice.config, choice.source) == ("aten", None, "")
            assert "self-check" in choice.reason
    for row in presets.shipped("h100-sxm"):
        kept.record_self_check("h100-sxm", row.config.family, row.problem.direction, True)
    for choice in choices("measured", kept).values():
        assert (choice.path, choice.is_tuned) == ("aten", False)
        assert "has not been measured on NVIDIA H100" in choice.reason
    for choice in choices("predicted", kept).values():
        assert (choice.path, choice.source) == ("kernel", "preset")
        assert "shipped with the package (predicted with Triton" in choice.reason
