"""The commands `tune`, `show` and `verify`: where problems come from, what is printed, what a mistake looks like."""

import json

import pytest
from command_line import in_json, invoke, refusal
from fake_compiler import COMPILED

from grouped_conv.autotune.workloads.named import workload


def test_tune_prints_predictions(kept, compiled):
    result = invoke("tune", "alexnet", "--device", "a100")
    assert result.exit_code == 0, result.output
    for text in ("conv1", "conv5", "predicted us", "floor/predicted", "none was measured", str(kept.path)):
        assert text in result.stdout
    assert "measured us" not in result.stdout


def test_json_of_both_commands(kept, compiled):
    lines = invoke("tune", "alexnet", "--json", "--batch", "16", "--dtype", "bf16").stdout.splitlines()
    *trials, tuned = map(json.loads, lines)
    assert len(trials) == len(compiled) == 5 * COMPILED
    assert {trial["event"] for trial in trials} == {"trial"}
    assert {trial["status"] for trial in trials} == {"predicted", "failed"}
    assert tuned["times"] == "predicted, not measured"
    assert (tuned["device"], tuned["dtype"], tuned["batch"]) == ("h100-sxm", "bfloat16", 16)
    assert [layer["layer"] for layer in tuned["layers"]] == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert {layer["source"] for layer in tuned["layers"]} == {"predicted"}
    shown = in_json("show")
    assert len(shown["rows"]) == 5
    assert all(row["status"] == "predicted" and row["measured_us"] is None for row in shown["rows"])
    assert len(in_json("show", "--all")["rows"]) == len(compiled)


def test_show(kept, compiled):
    empty = invoke("show")
    assert (empty.exit_code, "holds no rows" in empty.stdout) == (0, True)
    invoke("tune", "alexnet")
    result = invoke("show", "--device", "h100")
    assert result.exit_code == 0
    assert result.stdout.count("h100-sxm") == 5
    assert "holds no rows" in invoke("show", "--device", "a100").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tune", "vgg"), "unknown model 'vgg'; known: alexnet"),
        (("tune", "alexnet", "--device", "h900"), "unknown device 'h900'; known: a10, a100"),
        (("tune", "alexnet", "--dtype", "int8"), "dtype 'int8' is not supported"),
        (("tune", "alexnet", "--batch", "0"), "0 is not in the range"),
        (("tune", "alexnet", "--device", "cuda"), "device 'cuda' is no GPU of this machine"),
        (("tune", "alexnet", "--layer", "N=1"), "give one of MODEL, --layer, --from-json and --from-module"),
        (("tune", "--layer", "C=8 H=4 K=8 R=3 colour=5"), "unknown names ['colour']"),
        (("tune", "--layer", "C=8 H=4 R=3"), "K is missing"),
        (("tune", "--layer", "C=9 H=4 K=8 R=3 groups=2"), "groups=2 must divide C=9"),
        (("tune", "--from-module", "no_such_module:make"), "no factory 'no_such_module:make'"),
        (("tune", "--from-json", "/no/such/file"), "/no/such/file: No such file"),
        (("verify", "--device", "h100"), "h100 is a name to predict for"),
        (("tune",), "Missing argument 'MODEL'"),
        (("show", "--device", "h900"), "unknown device 'h900'"),
    ],
)
def test_bad_arguments_are_one_line(kept, arguments, message):
    assert message in refusal(invoke(*arguments))


def test_an_unusable_store_is_one_line(kept, compiled):
    kept.path.mkdir()
    assert str(kept.path) in refusal(invoke("tune", "alexnet"))


def test_directions(kept, compiled):
    tuned = in_json("tune", "alexnet", "--direction", "all", "--limit", 2)
    names = [layer["layer"] for layer in tuned["layers"]]
    assert names[:3] == ["conv1", "conv1 input_grad", "conv1 weight_grad"]
    assert len(names) == 15


def test_resume_is_the_default(kept, compiled):
    for arguments, expected in (((), 5), (("--resume",), 5), (("--no-resume",), 10)):
        assert invoke("tune", "alexnet", "--batch", "16", *arguments).exit_code == 0
        assert len(compiled) == expected * COMPILED


def test_several_devices(kept, compiled):
    lines = invoke("tune", "alexnet", "--device", "a100", "--device", "sm_90", "--limit", "1", "--json").stdout
    tables = [line for line in map(json.loads, lines.splitlines()) if "layers" in line]
    assert [table["device"] for table in tables] == ["a100", "h100-sxm"]


def test_a_layer_in_words(kept, compiled):
    layer = "N=128 C=96 H=27 W=27 K=256 R=5 S=5 pad=2 groups=2"
    result = invoke("tune", "--layer", layer, "--layer", "C=64 H=14 K=64 R=3 act=relu bias=1", "--limit", "1", "--json")
    assert result.exit_code == 0, result.stderr
    first, second = sorted({record.problem for record in kept.trials()}, key=lambda problem: -problem.batch)
    assert (
        str(first)
        == "forward N=128 C=96 H=27 W=27 K=256 R=5 S=5 stride=1 pad=2 dil=1 groups=2 float16 NHWC/KRSC identity"
    )
    assert (second.batch, second.epilogue.activation, second.epilogue.bias) == (1, "relu", True)


def test_problems_from_a_file(kept, compiled, tmp_path):
    path = tmp_path / "problems.json"
    path.write_text(json.dumps({"mine": workload("alexnet")["conv4"].to_json()}))
    table = in_json("tune", "--from-json", path, "--limit", 1)
    assert [layer["layer"] for layer in table["layers"]] == ["mine"]
    path.write_text('{"mine": {"batch": 1}}')
    assert f"{path} holds no problems" in invoke("tune", "--from-json", path).stderr


def test_a_model_from_a_factory(kept, compiled, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    model = nn.Sequential(nn.Conv2d(32, 64, 3, groups=2), nn.ReLU(), nn.Conv2d(64, 64, 3))\n"
        "    return model, torch.ones(1, 32, 9, 9)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    table = in_json("tune", "--from-module", "nets:make", "--limit", 1)
    names = [layer["layer"] for layer in table["layers"]]
    assert names == ["0", "0 weight_grad", "2", "2 input_grad", "2 weight_grad"]  # the input needs no gradient


def test_a_dry_run_compiles_nothing(kept, compiled):
    layer = ("tune", "--layer", "N=128 C=384 H=13 K=384 R=3 pad=1 groups=2")
    invoke(*layer, "--limit", "4")
    before = len(compiled)
    preview = in_json(*layer, "--limit", 7, "--dry-run")
    assert (len(compiled), preview["trials"], preview["layers"][0]["known"]) == (before, 7 - before, before)
    text = invoke(*layer, "--limit", "7", "--dry-run").stdout
    assert f"{7 - before} trials on h100-sxm, about" in text
    assert f"{before} recorded compilations" in text


def test_the_space_is_explained(kept, compiled):
    found = in_json("tune", "--layer", "N=8 C=64 H=14 K=64 R=3", "--explain-space")
    gemm = found["layers"]["layer 1"]["implicit_gemm"]
    assert gemm["kept"] > 100
    assert sum(gemm["left_out"].values()) > 1000
    text = invoke("tune", "--layer", "N=8 C=64 H=14 K=64 R=3", "--explain-space").stdout
    assert "warps are for small tiles" in text
    assert found["layers"]["layer 1"]["depthwise"] == {
        "kept": 0,
        "left_out": {"depthwise needs equal groups of one input channel": 0},
    }
    assert "     -  depthwise needs" in text
    assert compiled == []
