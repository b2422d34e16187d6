"""Search strategies: what they may do, how good they are on recorded and invented sweeps, how a sweep is kept."""

import json
import math
from pathlib import Path

import pytest
from checkout import ROOT
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.search.efforts import plan_effort
from grouped_conv.autotune.search.recording import Recording, Sweep
from grouped_conv.autotune.search.replay_runner import ReplayRunner
from grouped_conv.autotune.search.runner import Outcome, Trial
from grouped_conv.autotune.search.search_space import search_space
from grouped_conv.autotune.search.strategies import STRATEGIES, LocalSearch, make_strategy
from grouped_conv.autotune.search.tuner import tune_with
from grouped_conv.autotune.store.store import triton_version
from grouped_conv.bench import regret
from grouped_conv.kernels import ConvProblem, DeviceSpec

H100 = DeviceSpec.get("h100")
SMALL = ConvProblem.of((1, 32, 9, 9), (32, 16, 3, 3), padding=1, groups=2, dtype="float32", precision="ieee")
LAYER = ConvProblem.of((8, 64, 14, 14), (64, 32, 3, 3), padding=1, groups=2)
SPACE = search_space(LAYER, H100)
CPU_SPACE = search_space(SMALL, native_lane.DEVICE)


def valley(config):
    """An invented time: far from the model's order, smooth along the axes."""
    wanted = {"block_m": 64, "block_n": 32, "block_k": 64, "num_warps": 4, "num_stages": 3}
    knobs = {name: math.log2(getattr(config, name, 8) / value) for name, value in wanted.items()}
    return 10.0 + sum(value**2 for value in knobs.values())


def recording(space=CPU_SPACE, problem=SMALL, device=native_lane.DEVICE, times=valley):
    outcomes = {}
    for index, config in enumerate(space.configs):
        failed = index % 7 == 3
        trial = Trial(problem, config)
        outcomes[config] = (
            Outcome(trial, failure="crashed", detail="as said") if failed else Outcome(trial, times(config))
        )
    return Recording(device, "measured", "invented", triton_version(), (Sweep("layer", problem, 20.0, outcomes),))


def ask_all(strategy, answer, most=5):
    asked = []
    while batch := strategy.ask(most):
        assert len(batch) <= most
        for config in batch:
            asked.append(config)
            strategy.tell(config, answer(config))
    return asked


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_configuration_is_asked_for_once(name):
    asked = ask_all(make_strategy(name, SPACE), valley)
    assert len(asked) == len(set(asked))
    assert set(asked) == set(SPACE.configs)


@pytest.mark.parametrize("name", STRATEGIES)
@given(seed=st.integers(0, 3), most=st.integers(1, 9))
def test_a_strategy_is_a_function_of_its_seed_and_of_what_it_is_told(name, seed, most):
    first, again = (ask_all(make_strategy(name, CPU_SPACE, seed), valley, most) for _ in range(2))
    assert first == again


def test_seeds_differ_where_something_is_random():
    orders = {tuple(ask_all(make_strategy("random", CPU_SPACE, seed), valley)) for seed in range(5)}
    assert len(orders) == 5


def test_everything_failing_is_no_reason_to_stop():
    for name in STRATEGIES:
        assert len(ask_all(make_strategy(name, CPU_SPACE), lambda config: None)) == len(CPU_SPACE.configs)


def test_local_search_takes_single_steps_from_the_best():
    search = LocalSearch(SPACE)
    tried = {}
    for config in search.ask(100):
        tried[config] = valley(config)
        search.tell(config, tried[config])
    best = min(tried, key=lambda config: (tried[config], SPACE.rank[config]))
    neighbours = [config for config in SPACE.configs if config not in tried and SPACE.steps(best, config) == 1]
    asked = search.ask(100)
    assert asked
    assert all(config in neighbours for config in asked[: len(neighbours)])


def test_local_search_finds_what_the_model_does_not_know():
    sweep = Sweep("layer", LAYER, None, {c: Outcome(Trial(LAYER, c), valley(c)) for c in SPACE.configs})
    curves = {name: regret.regret_curve(sweep, H100, name) for name in ("model", "local")}
    assert regret.trials_until(curves["local"], 1.01) <= 64
    assert regret.trials_until(curves["local"], 1.01) < regret.trials_until(curves["model"], 1.01)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="unknown strategy 'oracle'; accepted: exhaustive, random, model, local"):
        make_strategy("oracle", SPACE)


# ---- replay


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_replayed_search_goes_as_a_live_one_would(name, kept):
    recorded = recording()
    (sweep,) = recorded.sweeps
    plan = plan_effort("standard", measures=True, strategy=name, limit=10)
    with ReplayRunner(recorded) as runner:
        tuned = tune_with(runner, {"layer": SMALL}, native_lane.DEVICE, kept, plan)
    assert len(runner.executed) == len(set(runner.executed)) == 10
    best = tuned.searches[0].best()
    usable = [sweep.outcomes[trial.config].us for trial in runner.executed if sweep.outcomes[trial.config].us]
    assert (best.measured_us, best.aten_us) == (min(usable), 20.0)
    assert best.protocol == "replayed: invented"


def test_a_trial_that_was_not_recorded_is_an_error(kept):
    other = ConvProblem.of((1, 64, 9, 9), (64, 32, 3, 3), groups=2, dtype="float32", precision="ieee")
    plan = plan_effort("quick", measures=True)
    with ReplayRunner(recording()) as runner, pytest.raises(RuntimeError, match="the recording has no trial of "):
        tune_with(runner, {"layer": other}, native_lane.DEVICE, kept, plan)


def test_a_recording_survives_its_file(tmp_path):
    path = tmp_path / "sweep.json"
    recorded = recording()
    recorded.save(path)
    again = Recording.load(path)
    assert (again.device, again.protocol, again.triton) == (recorded.device, recorded.protocol, recorded.triton)
    (before,), (after,) = recorded.sweeps, again.sweeps
    assert list(after.outcomes) == list(before.outcomes)
    for config, outcome in after.outcomes.items():
        assert outcome.failure == before.outcomes[config].failure
        assert outcome.us == pytest.approx(before.outcomes[config].us, abs=0.01)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no recorded sweep"):
        Recording.load(path)


def test_a_recording_of_a_store(kept, tmp_path):
    with ReplayRunner(recording()) as runner:
        plan = plan_effort("exhaustive", measures=True)
        tune_with(runner, {"layer": SMALL}, native_lane.DEVICE, kept, plan)
    made = Recording.of(native_lane.DEVICE, {"layer": SMALL}, kept.trials())
    assert made.sweeps[0].outcomes.keys() == set(CPU_SPACE.configs)
    assert made.sweeps[0].aten_us == 20.0
    with pytest.raises(ValueError, match="nothing was measured on h100-sxm"):
        Recording.of(H100, {"layer": SMALL}, kept.trials())


# ---- regret


def test_regret_is_the_best_so_far_over_the_best():
    (sweep,) = recording().sweeps
    for name in STRATEGIES:
        curve = regret.regret_curve(sweep, native_lane.DEVICE, name)
        assert len(curve) == len(sweep.outcomes)
        assert curve == sorted(curve, reverse=True)
        assert curve[-1] == 1.0
    assert regret.trials_until([3.0, 1.2, 1.0], 1.05) == 3
    assert regret.trials_until([3.0], 1.05) is None


def test_the_regret_command(tmp_path):
    path = tmp_path / "sweep.json"
    recording().save(path)
    text = CliRunner().invoke(regret.main, [str(path)]).stdout
    for word in ("Measured on cpu-native (invented)", "layer: 21 configurations", "exhaustive", "local", "to 5 %"):
        assert word in text
    data = json.loads(CliRunner().invoke(regret.main, [str(path), "--json"]).stdout)
    assert data["layers"]["layer"].keys() == STRATEGIES.keys()
    drawn = tmp_path / "curves.png"
    pytest.importorskip("matplotlib")
    result = CliRunner().invoke(regret.main, [str(path), "--plot", str(drawn)])
    assert result.exit_code == 0
    assert Path(drawn).read_bytes().startswith(b"\x89PNG")


# ---- a sweep that was really measured: AlexNet's grouped layers on the native lane, batch 1


RECORDED = ROOT / "tests" / "data" / "cpu_native_sweep.json"


@pytest.mark.parametrize("sweep", Recording.load(RECORDED).sweeps, ids=lambda sweep: sweep.name)
def test_the_default_strategy_finds_the_best_of_the_recorded_sweep(sweep):
    assert len(sweep.outcomes) == 20
    assert [outcome.failure for outcome in sweep.outcomes.values() if outcome.failure] == ["wrong"]
    curve = regret.regret_curve(sweep, native_lane.DEVICE, "local")
    assert regret.trials_until(curve, 1.05) <= 11
    assert curve[0] > 1.5  # the model of a GPU knows nothing about this CPU: searching pays
