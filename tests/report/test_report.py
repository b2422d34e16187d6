"""`tune --report`: what the page holds, that it needs nothing else, and that it is written whole or not at all."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import fake_kernels
import pytest
from checkout import HELPERS
from command_line import in_json, invoke, refusal
from fake_compiler import compiled_to, compiling, failing_at, fake_resources, interrupt
from PIL import Image
from store_cases import CONV4, LARGE, SMALL, record

from grouped_conv.autotune.measuring.live_runner import LiveRunner
from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.model.shared.prediction import MODEL_VERSION
from grouped_conv.autotune.report import rows as report_rows
from grouped_conv.autotune.report import writing as report
from grouped_conv.autotune.search.efforts import plan_effort
from grouped_conv.autotune.search.search import Search
from grouped_conv.autotune.search.tuner import tune_with
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.kernels import ABI_VERSION, ConvProblem, DeviceSpec
from grouped_conv.preparing import targets

pytest.importorskip("matplotlib")

LAYER = ("tune", "--layer", "N=128 C=384 H=13 K=384 R=3 pad=1 groups=2", "--device", "h100")
VOID = {"meta", "img"}


class Page(HTMLParser):
    """The parts of a page; a tag that does not fit what is open is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.alts: list[str] = []
        self.pictures: list[bytes] = []
        self.texts: list[tuple[str, str]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src", "srcset", "action", "data")]
        self.anchors += [given["id"]] if "id" in given else []
        if tag == "img":
            head, _, data = given["src"].partition(",")
            assert head == "data:image/png;base64"
            self.pictures.append(base64.b64decode(data, validate=True))
            self.alts.append(given["alt"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for kind, text in self.texts if kind == tag]

    @property
    def text(self) -> str:
        return " ".join(text for kind, text in self.texts if kind != "style")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "report.html"


def test_a_page_of_predictions(kept, compiled, path):
    result = invoke(*LAYER, "--limit", 6, "--seed", 3, "--report", path)
    assert result.exit_code == 0, result.output
    assert f"Report: {path}" in result.stdout
    page = Page(path)
    assert page.of("title") == page.of("h1") == ["grouped-conv tuning report: predicted times"]
    assert "measured times" not in page.text
    assert all("predicted" in alt for alt in page.alts)
    assert len(page.pictures) >= 2
    for picture in page.pictures:
        assert Image.open(io.BytesIO(picture)).size[0] > 200
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?:|//\w", re.sub(r"base64,[^\"]+", "", page.source))
    for words in (
        "Forward pass of a 3 × 3 convolution, 384 to 384 channels in 2 groups; 128 images of 13 × 13 pixels",
        "NVIDIA H100 SXM5 80GB, known as h100-sxm (sm_90)",
        "effort standard (at most 6 trials), strategy model, seed 3; 6 tried now, 0 known before",
        f"kernel ABI {ABI_VERSION}, Triton ",
        "predicted by cost model",
        "spills 8 bytes per thread",
    ):
        assert words in page.text
    assert {"registers", "spills B", "shared KiB", "predicted us"} <= set(page.of("th"))
    best = kept.best(CONV4_PLAIN, "h100-sxm")
    listed = page.of("td")
    assert listed[:4] == ["1", "implicit_gemm", str(best.config), f"{best.predicted_us:.1f}"]
    assert listed[4:7] == ["200", "0", "39"]


CONV4_PLAIN = ConvProblem.of((128, 384, 13, 13), (384, 192, 3, 3), padding=1, groups=2)


def test_trials_of_an_earlier_run_are_shown_in_their_order(kept, compiled, path):
    invoke(*LAYER, "--limit", 6)
    first = list(compiled)
    assert invoke(*LAYER, "--limit", 6, "--report", path).exit_code == 0
    assert compiled == first
    assert "0 tried now, 6 known before" in Page(path).text
    search = Search(
        "it", CONV4_PLAIN, DeviceSpec.get("h100"), kept, plan_effort("none", measures=False), measures=False
    )
    assert [row.config for row in report_rows.trials_of(search)] == first


@pytest.mark.full
def test_several_problems_and_devices_have_a_table_of_contents(kept, compiled, path):
    tuned = in_json("tune", "alexnet", "--limit", 2, "--device", "a100", "--device", "h100", "--report", path)
    assert tuned["report"] == str(path)
    page = Page(path)
    targets = [link for link in page.links if link.startswith("#")]
    assert targets == [f"#{anchor}" for anchor in page.anchors]
    assert len(targets) == 10
    assert page.text.count("conv1 on NVIDIA") == 2


def test_every_text_is_escaped(kept, compiled, path, tmp_path):
    name = "<script>alert('1')</script> & \"more\""
    problems = tmp_path / "problems.json"
    problems.write_text(json.dumps({name: workload("alexnet")["conv4"].to_json(), "b": CONV4_PLAIN.to_json()}))
    assert invoke("tune", "--from-json", problems, "--device", "h100", "--limit", 2, "--report", path).exit_code == 0
    page = Page(path)
    assert "<script" not in page.source
    assert name in page.of("a")
    assert sum(name in alt for alt in page.alts) == 1


def test_ctrl_c_leaves_a_report_of_what_had_ended(kept, monkeypatch, path):
    result, tried = failing_at(4, interrupt)
    compiling(monkeypatch, result)
    found = invoke(*LAYER, "--device", "a100", "--report", path)
    assert found.exit_code == 130
    page = Page(path)
    assert "Stopped early" in page.text
    assert "3 tried now" in page.text
    assert {str(trial.config) for trial in tried[:3] if trial.config.block_m < 256} < set(page.of("td"))
    assert "A100" not in page.text  # the second device was not begun after Ctrl-C
    assert len(tried) == 4


def test_where_all_failed_the_report_says_why(kept, monkeypatch, path):
    compiling(monkeypatch, lambda trial: compiled_to(trial, spill=16))
    found = invoke(*LAYER, "--limit", 2, "--report", path)
    assert (found.exit_code, "spills 16 bytes" in found.stderr) == (2, True)
    page = Page(path)
    assert "No trial gave a time." in page.text
    assert "resources" in page.of("td")


def test_nothing_is_tried_without_effort(kept, compiled, path):
    assert invoke(*LAYER, "--effort", "none", "--report", path).exit_code == 0
    assert "Nothing was tried; the heuristic's choice is" in Page(path).text


@pytest.mark.parametrize("name", ["no/such/folder/report.html", ".", "file/report.html"])
def test_a_place_that_cannot_be_written_is_noticed_before_tuning(kept, compiled, tmp_path, name):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / name) in refusal(invoke(*LAYER, "--report", tmp_path / name))
    assert compiled == []


def test_without_matplotlib_nothing_is_tuned(kept, compiled, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = invoke(*LAYER, "--report", path)
    assert (found.exit_code, compiled, path.exists()) == (2, [], False)
    assert "pip install 'grouped-conv[plot]'" in found.stderr


@pytest.mark.parametrize("option", ["--dry-run", "--explain-space"])
def test_a_report_goes_with_tuning_only(kept, compiled, path, option):
    found = invoke(*LAYER, option, "--report", path)
    assert (found.exit_code, "tune nothing" in found.stderr, path.exists()) == (2, True, False)


def test_a_report_that_fails_leaves_the_old_one(kept, compiled, path, monkeypatch):
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        report.write(path, [])
    assert path.read_text() == "old"
    assert list(path.parent.glob(".*")) == []


def test_the_file_appears_whole(path, monkeypatch):
    seen = []
    replace = Path.replace

    def watched(self, target):
        seen.append((self.parent == target.parent, self.read_text().endswith("</html>\n"), target.exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    link = path.with_name("link.html")
    link.symlink_to(path)
    report.write(link, [])
    assert seen == [(True, True, False)]
    assert (link.is_symlink(), "nothing was tuned" in path.read_text()) == (True, True)


@pytest.fixture
def measuring(monkeypatch):
    """The live runner on kernels without code; the families that the self-check was asked for."""
    monkeypatch.setenv("PYTHONPATH", HELPERS)
    checked = []

    class FakeRunner(LiveRunner):
        def __init__(self, device, index, *, jobs):
            super().__init__(device, index, function=fake_kernels.FUNCTION, timeout=1.0)

    monkeypatch.setattr(targets, "LiveRunner", FakeRunner)
    monkeypatch.setattr(targets, "check_kernels", lambda spec, store, pairs, runner: checked.append(pairs))
    return checked


MEASURED = ("tune", "--layer", "N=1 C=64 H=9 K=256 R=3 pad=1 groups=2", "--dtype", "fp32", "--device", native_lane.KEY)


def test_a_page_of_measurements(kept, path, measuring):
    """PyTorch's own time, intervals, failures of every kind."""
    found = invoke(*MEASURED, "--effort", "exhaustive", "--report", path)
    assert found.exit_code == 0, found.output
    assert measuring == [[("implicit_gemm", "forward")]]
    page = Page(path)
    assert page.of("title") == ["grouped-conv tuning report: measured times"]
    assert "predicted" not in page.text
    for words in ("recipe fake-1", f"{fake_kernels.ATEN_US:.1f} us, measured", "exhaustive (all configurations)"):
        assert words in page.text
    assert {"measured us", "95 % interval", "samples", "PyTorch/ours"} <= set(page.of("th"))
    assert {"wrong", "crashed", "timeout", "compile", "launch"} <= set(page.of("td"))
    assert all("measured time" in alt for alt in page.alts)


def test_ctrl_c_in_the_self_check_leaves_a_report(kept, path, measuring, monkeypatch):
    def stop(spec, store, pairs, runner):
        raise KeyboardInterrupt

    monkeypatch.setattr(targets, "check_kernels", stop)
    assert invoke(*MEASURED, "--limit", 2, "--report", path).exit_code == 130
    assert {"Stopped early"} <= set(Page(path).of("strong"))


def test_a_winner_that_ties_with_faster_ones_is_explained(kept, path):
    data = [{"model": MODEL_VERSION, "resources": fake_resources(SMALL).to_json() | {"registers": n}} for n in (90, 60)]
    rows = [record(LARGE, 10.0, device="h100-sxm", data=data[0]), record(SMALL, 10.05, device="h100-sxm", data=data[1])]
    kept.put(rows)
    device, plan = DeviceSpec.get("h100"), plan_effort("none", measures=False)
    search = Search("it", CONV4, device, kept, plan, measures=False)
    assert search.best().config == SMALL
    report.write(path, [report.Run(device, "none", plan, (search,))])
    page = Page(path)
    assert "The winner ties with 1 faster: of ties, fewer registers win" in page.text
    assert page.of("td")[2] == str(SMALL)


def test_a_replayed_search_draws_every_kind_of_cell(kept, compiled, path):
    """Drawing needs no trial to have failed, no two values, and no room for all families."""
    device, plan = DeviceSpec.get("h100"), plan_effort("quick", measures=False)
    problems = {"only": CONV4, "depthwise": ConvProblem.of((8, 64, 14, 14), (64, 1, 3, 3), padding=1, groups=64)}
    with targets.Target(device).runner(1) as runner:
        tuned = tune_with(runner, problems, device, kept, plan)
    report.write(path, [report.Run(device, "quick", plan, tuned.searches)])
    assert Page(path).text.count("Course of the search") == 2
