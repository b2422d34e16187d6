"""`grouped-conv run`: real images through AlexNet, what it reports, and one line for all a user can get wrong."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from checkout import TOOLS
from click.testing import Result
from command_line import invoke, refusal
from PIL import Image
from processes import run_python

import grouped_conv
from grouped_conv.cli import run as run_command
from grouped_conv.cli import run_report
from grouped_conv.cli.run_comparison import LayerComparison, Observed, compare, observe, plain_copy
from grouped_conv.cli.run_images import PREPROCESSING, load_images
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels import ImplicitGemmConfig
from grouped_conv.models import VARIANTS, AlexNet
from grouped_conv.models.alexnet import CONVOLUTIONS, LAYERS

BIG_TILE = ImplicitGemmConfig(block_m=512, block_n=128, block_k=128)  # few steps for the interpreter


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `grouped-conv run ARGUMENTS` in the interpreter with one big tile."""
    monkeypatch.setattr(run_command, "_entered", lambda place: grouped_conv.interpret(BIG_TILE))
    return partial(invoke, "run")


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `grouped-conv run ARGUMENTS` with ATen's convolutions in both networks: a second instead of many."""
    monkeypatch.setattr(run_command, "_place", lambda via: "interpret")
    monkeypatch.setattr(run_command, "_entered", lambda place: grouped_conv.policy("measured"))
    return partial(invoke, "run")


def photo(path: Path, size: tuple[int, int] = (300, 260), **options: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.full
def test_the_bundled_photo_layer_by_layer(run: Callable[..., Result]) -> None:
    result = run("alexnet", "--via", "interpret", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["model"], data["variant"], data["groups"], data["via"]) == ("alexnet", "paper", 2, "interpret")
    assert (data["untrained"], data["seed"]) == (True, 0)
    assert (data["parameters"], data["macs_per_image"]) == (60_965_224, 724_406_816)
    assert [layer["layer"] for layer in data["layers"]] == list(LAYERS)
    assert [layer["path"] for layer in data["layers"]] == ["implicit_gemm"] * 5 + ["torch"] * 3
    launches = [layer["launches"] for layer in data["layers"][:5]]
    assert launches == [["pack_channels_last", "implicit_gemm"]] + [["implicit_gemm"]] * 4
    assert all(0 < layer["largest_difference"] < layer["largest_value"] for layer in data["layers"])
    assert data["agrees"]
    (best,) = data["top5"]
    assert best["image"] == "chelsea.jpg"
    logits = [entry["logit"] for entry in best["classes"]]
    assert len(logits) == 5
    assert logits == sorted(logits, reverse=True)
    assert [entry["plain_logit"] for entry in best["classes"]] == pytest.approx(logits, abs=0.01)


def test_a_users_images_and_weights(by_torch: Callable[..., Result], tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = AlexNet(num_classes=3, variant="torchvision", groups=4)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    images = [photo(tmp_path / "one.png"), photo(tmp_path / "two.jpg", (230, 400))]
    chosen = ("--variant", "torchvision", "--groups", 4, "--weights", tmp_path / "weights.pt")
    result = by_torch("alexnet", *images, *chosen)
    assert result.exit_code == 0, result.stderr
    assert "AlexNet torchvision, groups=4, fp32" in result.stdout
    assert "untrained" not in result.stdout
    assert "They agree." in result.stdout
    assert "2x64x55x55" in result.stdout
    for name in ("one.png", "two.jpg", *LAYERS):
        assert name in result.stdout


def test_untrained_weights_are_called_so(by_torch: Callable[..., Result]) -> None:
    result = by_torch("alexnet", "--seed", 7)
    assert result.exit_code == 0, result.stderr
    assert "untrained, seed 7" in result.stdout
    assert "top-5 logits (untrained weights)" in result.stdout
    assert result.stdout.count("aten: ") == 5


def test_a_difference_that_rounding_does_not_explain_fails(
    by_torch: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(model: AlexNet) -> torch.nn.Module:
        plain = plain_copy(model)
        plain.get_submodule("conv4").get_submodule("conv").weight.data[0] += 0.01
        return plain

    monkeypatch.setattr("grouped_conv.cli.run_comparison.plain_copy", spoiled)
    result = by_torch("alexnet")
    assert result.exit_code == 1
    assert "They do NOT agree." in result.stdout


def test_the_path_names_every_launch_and_the_configuration() -> None:
    launches = ("pack_channels_last", "implicit_gemm")
    call = CallRecord(None, "implicit_gemm", "", launches, ImplicitGemmConfig(block_m=64), "heuristic")
    text = run_report._path_text(LayerComparison("conv1", (1, 96, 55, 55), call, 0.0, 1.0, 0.01))
    assert text == "pack_channels_last + implicit_gemm\n64x128x64 w4 s1 flat (heuristic)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vgg"], "'vgg' is not 'alexnet'"),
        (["alexnet", "nowhere.jpg"], "nowhere.jpg"),
        (["alexnet", "."], "'.' is a directory"),
        (["alexnet", __file__], "test_cli_run.py is not an image file"),
        (["alexnet", "--weights", "nowhere.pt"], "nowhere.pt"),
        (["alexnet", "--weights", __file__], "test_cli_run.py cannot be read by torch.load"),
        (["alexnet", "--variant", "vgg"], "variant 'vgg' is unknown; accepted: paper, caffe, torchvision"),
        (["alexnet", "--groups", "3"], "groups=3 is not an AlexNet; accepted: 1, 2, 4"),
        (["alexnet", "--dtype", "int8"], "'int8'"),
        (["alexnet", "--via", "abacus"], "'abacus'"),
        ([], "Choose from: alexnet"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(run: Callable[..., Result], arguments: list[str], words: str) -> None:
    assert words in refusal(run(*arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_said(run: Callable[..., Result]) -> None:
    said = refusal(run("alexnet", "--via", "gpu"))
    assert said == "grouped-conv: error: --via gpu: torch finds no GPU here; --via interpret needs none\n"


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_is_named(run: Callable[..., Result], tmp_path: Path, suffix: str) -> None:
    whole = photo(tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
    assert f"cut{suffix} cannot be read as an image" in refusal(run("alexnet", tmp_path / f"cut{suffix}"))


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ([1, 2], "holds a list, not a state_dict"),
        ({"epoch": 3}, "not a state_dict"),
        ({"conv1.weight": torch.zeros(1)}, "holds no matrix fc8.weight"),
        ({"fc8.weight": torch.zeros(2, 4096)}, "does not fit the paper AlexNet with groups=2: Missing key"),
    ],
)
def test_a_file_of_other_things_is_no_weights(
    run: Callable[..., Result], tmp_path: Path, saved: object, words: str
) -> None:
    torch.save(saved, tmp_path / "saved.pt")
    assert words in refusal(run("alexnet", "--weights", tmp_path / "saved.pt"))


def test_a_pickle_that_would_run_code_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "hostile.pt").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    assert run("alexnet", "--weights", tmp_path / "hostile.pt").exit_code == 2
    assert not marker.exists()


def test_help_names_every_variant() -> None:
    text = invoke("run", "--help").stdout
    assert f"[{'|'.join(VARIANTS)}]" in text


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from command_line import invoke; print(invoke('run', '--help').exit_code, 'torch' in sys.modules)"
    )
    assert run_python(code) == "0 False\n"


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_bundled_photo_is_prepared_as_each_variant_was_trained(variant: str) -> None:
    crop = VARIANTS[variant].crop
    preprocessing = PREPROCESSING[variant]
    image = load_images([], preprocessing, crop)
    assert image.shape == (1, 3, crop, crop)
    pixels = image[0] * torch.tensor(preprocessing.std)[:, None, None] + torch.tensor(preprocessing.mean)[:, None, None]
    assert float(pixels.min()) >= -1e-4
    assert 0.5 * preprocessing.peak < float(pixels.max()) <= preprocessing.peak * 1.0001
    red, blue = (0, 2) if preprocessing.channels == "RGB" else (2, 0)
    assert pixels[red].mean() > pixels[blue].mean()  # a ginger cat


def test_the_crop_is_central_and_keeps_the_aspect(tmp_path: Path) -> None:
    """A 512x256 picture whose middle 224 columns are white needs no resizing; only they remain."""
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, 144:368] = 255
    Image.fromarray(pixels).save(tmp_path / "stripe.png")
    image = load_images([tmp_path / "stripe.png"], PREPROCESSING["torchvision"], 224)
    white = (1 - torch.tensor(PREPROCESSING["torchvision"].mean)) / torch.tensor(PREPROCESSING["torchvision"].std)
    torch.testing.assert_close(image, white.view(1, 3, 1, 1).expand(1, 3, 224, 224))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_picture_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (40, 3000 if mode == "1" else 90)).save(tmp_path / f"picture.{suffix}")
    assert load_images([tmp_path / f"picture.{suffix}"], PREPROCESSING["paper"], 224).shape == (1, 3, 224, 224)


def test_a_phones_rotation_is_undone(tmp_path: Path) -> None:
    upright = Image.new("RGB", (300, 300))
    upright.paste((255, 255, 255), (0, 0, 300, 150))  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    upright.rotate(180).save(tmp_path / "phone.png", exif=exif)
    image = load_images([tmp_path / "phone.png"], PREPROCESSING["torchvision"], 224)
    assert image[..., :100, :].min() > image[..., 124:, :].max()


def test_differences_count_nan_once() -> None:
    """A NaN in both networks is agreement, in one of them it is not; equal infinities agree."""
    nan, inf = float("nan"), float("inf")
    plain = {"fc6": Observed(torch.tensor([nan, inf, 1.0]))}
    (same,) = compare({"fc6": Observed(torch.tensor([nan, inf, 1.0]))}, plain)
    (other,) = compare({"fc6": Observed(torch.tensor([nan, inf, nan]))}, plain)
    assert (same.largest_difference, same.agrees) == (0.0, True)
    assert not other.agrees
    assert other.to_json()["largest_difference"] is None


def test_observe_leaves_the_model_as_it_was() -> None:
    model = AlexNet(num_classes=2, variant="torchvision").eval()
    started: list[str] = []
    seen = observe(model, torch.zeros(1, 3, 64, 64), LAYERS, started.append)
    assert started == list(LAYERS) == list(seen)
    assert [len(seen[name].calls) for name in CONVOLUTIONS] == [1] * 5
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
    assert plain_copy(model).conv1.conv.weight is not model.conv1.weight


_ON_THE_NATIVE_LANE = """
import torch, grouped_conv
from grouped_conv.cli import run as run_command
place = run_command._place("auto")
layer = grouped_conv.GroupedConv2d(8, 16, 3, groups=2, activation="relu")
input = torch.randn(1, 8, 9, 9)
expected = layer(input)
with grouped_conv.trace() as calls, torch.no_grad(), run_command._entered(place):
    difference = (layer(input) - expected).abs().max()
assert place == "native", place
assert calls[0].path in grouped_conv.kernels.families.FAMILIES, calls[0]
assert difference < 1e-5, difference
"""


@pytest.mark.native
@pytest.mark.skipif(torch.cuda.is_available(), reason="auto takes the GPU")
def test_auto_takes_the_native_lane_where_it_is_set_up() -> None:
    lane = f"import sys; sys.path.append({str(TOOLS / 'cpu_native')!r})\n"
    assert run_python(lane + _ON_THE_NATIVE_LANE) == ""
