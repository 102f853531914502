"""The examples that CI runs, and what the reproductions share."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lo_components as loc
from lo_components.parametrization import SP, MuP
from lo_components.unroll import GradientStep

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "reproductions"
sys.path.append(str(FOLDER))
KEY, RUN = jax.random.key(0), dict(seeds=2, seed=0, at_once=1)

import _claims  # noqa: E402
import _compare  # noqa: E402
import _optimizers  # noqa: E402
import _page  # noqa: E402
import _results  # noqa: E402
import _rounds  # noqa: E402
import _tasks  # noqa: E402


def test_ci_runs_every_example():
    line = next(x for x in (ROOT / ".ci" / "run").read_text().splitlines() if x.startswith("for example in "))
    words = line.removeprefix("for example in ").removesuffix("; do")
    ran = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {words}"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    scripts = {x for x in (ROOT / "examples").rglob("*.py") if '__name__ == "__main__"' in x.read_text()}
    assert {ROOT / x for x in ran.stdout.split()} == scripts - {FOLDER / "_page.py"}
    assert {x.name for x in scripts} >= {claim.script for claim in _claims.CLAIMS if claim.script}


@pytest.fixture
def like_a_script():
    """Optax's Adam mixes integers and floats, so scripts run under the promotion that their readers have."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def scale():
    """A task whose loss is known: a parameter that starts at zero, and is to be one."""
    make = lambda parametrization: loc.tasks.LinearRegression(jnp.ones(1), jnp.ones(1))  # noqa: E731
    return _tasks.Task(make, 30)


def sgd(*rates, identity="sgd", calls=None):
    def make(steps, rate):
        if calls is not None:
            calls.append(steps)
        return loc.OptaxOptimizer(optax.sgd, rate), GradientStep()

    return _optimizers.Optimizer(make, identity, grid=[(rate,) for rate in rates])


def test_the_best_configuration_is_chosen_and_results_are_kept(scale, tmp_path):
    calls, folder = [], loc.meta.RunFolder.open(tmp_path / "run", {})
    panels = {"one": (scale, {"few": sgd(1e-3, 0.3, 5.0, calls=calls)})}
    losses, facts = _compare.train_all(folder, panels, **RUN)["one"]["few"]
    assert losses.shape == (2, 30) and facts["configuration"] == [0.3] and not facts["at_edge"]
    assert facts["of"] == 3 and facts["parameters"] == 1
    made = len(calls)
    again, _ = _compare.train_all(folder, panels, **RUN)["one"]["few"]
    np.testing.assert_array_equal(again, losses)
    assert len(calls) == made
    # A killed run leaves the results that were finished; only the missing one is computed.
    both = {"one": (scale, {**panels["one"][1], "more": sgd(1e-3, 0.1, calls=calls)})}
    found = _compare.train_all(folder, both, **RUN | dict(at_once=2))["one"]
    assert found["more"][1]["at_edge"] and len(calls) > made
    np.testing.assert_array_equal(found["few"][0], losses)


def test_results_of_another_optimizer_are_computed_again(scale, tmp_path):
    folder = loc.meta.RunFolder.open(tmp_path / "run", {})
    slow, fast = (sgd(rate, identity=rate) for rate in (1e-3, 0.3))
    for optimizer in (slow, fast):
        losses, _ = _compare.train_all(folder, {"one": (scale, {"mulo_m": optimizer})}, **RUN)["one"]["mulo_m"]
    assert losses[0, -1] < 0.1 * losses[0, 0]


def test_an_error_stops_the_run(scale, tmp_path):
    folder = loc.meta.RunFolder.open(tmp_path / "run", {})
    broken = dataclasses.replace(sgd(0.1), make=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _compare.train_all(folder, {"one": (scale, {"broken": broken})}, **RUN)


def test_losses_are_summarized():
    steps = np.linspace(2.0, 1.0, 40)
    rises, breaks = np.append(steps, np.full(40, 3.0)), np.append(steps, np.full(40, np.nan))
    found = _results.summary(np.stack([np.append(steps, np.full(40, 1.0)), rises, breaks]))
    assert found["diverged"] == 2
    assert found["first"] == [2, 2, 2] and found["final"] == [1, 3, None]
    np.testing.assert_allclose(found["lowest"], [1, steps[-20:].mean(), steps[-20:].mean()], rtol=1e-4)
    assert _results.summary(np.ones((1, 3)))["final"] == [1]
    assert _results.described([1.0, 0.5, None]) == "1.0000 (0.5000 to diverged)"
    assert _results.described([None, None, 1.0]) == "diverged (1.0000 to diverged)"
    assert _results.described([None, None], ".0f", "never") == "never"


def test_json_names_no_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["some/where/figure.py", "--data", "/home/somebody/data", "--panels", "H = 4"])
    _results.write(tmp_path / "results.json", {"seeds": 3}, {"x": None})
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text)["command"] == "python examples/reproductions/figure.py --data FOLDER --panels 'H = 4'"
    assert "somebody" not in text and [x.name for x in tmp_path.iterdir()] == ["results.json"]


def test_images_are_averaged():
    images = np.arange(2 * 28 * 28).reshape(2, 28, 28)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    np.testing.assert_array_equal(_tasks.pooled(images, 28), images.astype(np.uint8))
    found = _tasks.pooled(images, 8)
    assert found.shape == (2, 8, 8)
    assert found[1, 3, 5] == np.uint8(np.round(padded[1, 12:16, 20:24].mean()))
    colors = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    np.testing.assert_array_equal(_tasks.pooled(colors, 16)[:, 0, 1], np.round(colors[:, :2, 2:4].mean((1, 2))))


def test_one_number_of_steps_stands_for_all_widths():
    assert _tasks.by_width([8, 16], [3]) == {8: 3, 16: 3}
    assert _tasks.by_width([8, 16], [3, 2]) == {8: 3, 16: 2}
    with pytest.raises(ValueError, match="2 widths, but 3 numbers of steps"):
        _tasks.by_width([8, 16], [1, 2, 3])


def settings(**changes):
    found = dict(data=None, pixels=8, meta_depth=1, meta_horizon=3, batch_size=4, smoke=True, muadam=None)
    return SimpleNamespace(**(found | changes))


def test_muadam_is_tuned_once(tmp_path, monkeypatch, like_a_script):
    args = settings(out=tmp_path / "figure")
    found = _optimizers.tuned_muadam([4], args)
    assert (found["rate"], found["input_mult"], found["output_mult"], found["hidden_mult"]) in _optimizers.GRID[62::125]
    optimizer = _optimizers.muadam(found)
    parametrization = optimizer.task["parametrization"]
    assert isinstance(parametrization, MuP) and parametrization.input_mult == found["input_mult"]
    monkeypatch.setattr(_optimizers, "sweep_muadam", lambda *_: pytest.fail("it is tuned again"))
    assert _optimizers.tuned_muadam([4], settings(out=tmp_path / "another")) == found
    with pytest.raises(FileExistsError, match="another configuration"):
        _optimizers.tuned_muadam([4], settings(out=tmp_path / "another", batch_size=8))


def test_multipliers_of_a_grid_are_those_of_mup(like_a_script):
    dataset = _tasks.images("fashion_mnist", None, 8)
    task = _tasks.mlp(dataset, 4, 1, 4)(parametrization=MuP())
    traced = _optimizers.with_multipliers(task, 2.0, 4.0, 0.5)
    given = _tasks.mlp(dataset, 4, 1, 4)(parametrization=MuP(input_mult=2.0, output_mult=4.0, hidden_mult=0.5))
    losses = [loc.meta.evaluate(optax.adam(0.1), x, num_steps=3, num_seeds=1, key=KEY).losses for x in (traced, given)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_learned_optimizers_come_from_files_and_train_under_their_parametrization(tmp_path):
    learner = loc.recipes.small_fc_lopt(hidden_size=2, key=KEY)
    for name in ("mulo_m", "lo_m"):
        loc.weights.save(tmp_path / f"{name}.safetensors", learner)
    args = SimpleNamespace(weights=tmp_path, smoke=False, optimizers=["mulo_m", "lo_m"])
    found = _optimizers.compared(args)
    assert found["mulo_m"].task["parametrization"] == MuP() and found["lo_m"].task["parametrization"] == SP()
    assert found["mulo_m"].identity == _optimizers.digest(learner)


def test_published_weights_are_files(tmp_path, scale):
    celo = loc.recipes.celo(lstm_size=64, key=KEY)
    loc.weights.write_arrays(tmp_path / "celo.npz", loc.interop.to_reference(celo))
    args = SimpleNamespace(optimizers=["celo"], celo=tmp_path / "celo.npz", smoke=False)
    learner, _ = _optimizers.compared(args)["celo"].make(scale.steps)
    assert _optimizers.digest(learner) == _optimizers.digest(celo)
    args = SimpleNamespace(optimizers=["celo2"], celo2=None)
    with pytest.raises(ValueError, match="needs published weights: `--celo2 FILE`"):
        _optimizers.compared(args)
    with pytest.raises(ValueError, match="There is no 'B'; choose from 'A'"):
        _tasks.among({"A": 1}, ["A", "B"])


def test_steps_of_a_baseline_see_the_samples_of_a_round():
    found = _rounds.baselines(("SlowMo", "Adam"), workers=2, steps=3, coarse=True, batch=5)
    assert found["SlowMo"].task["batch_size"] == 5 and found["Adam"].task["batch_size"] == 30
    aggregator, round_ = found["SlowMo"].make(100, 0.5, 0.8, 1.0)
    assert isinstance(aggregator, loc.aggregators.SlowMo) and round_.num_workers == 2
    assert len(_rounds.baseline("SlowMo", 2, 3, coarse=False, batch=5).grid) == 320
    aggregator, round_ = _rounds.baseline("outer Muon", 2, 3, coarse=True, batch=5).make(100, 0.5, 0.01)
    assert eqx.tree_equal(aggregator.optimizer, loc.recipes.rms_muon(0.01)) and round_.local_steps == 3


def test_outer_residual_muon_is_compared_with_where_its_meta_training_starts():
    (learned, rounds), (start, same) = (_rounds.learned(name, 2, 3, None) for name in _rounds.MUON)
    assert learned.optimizer.schedule == start.optimizer.schedule and eqx.tree_equal(rounds, same)
    assert loc.pretrained.card("outer_residual_muon").learning_rate == start.optimizer.schedule.peak
    assert _rounds.learned("lopt_a", 2, 3, None)[1] != rounds


def panel(**finals):
    """Results of one panel, in which every optimizer started at 2 and reached 0.5."""
    of = {
        name: {
            "first": [2.0] * len(values),
            "final": values,
            "lowest": [min(0.5, x or 0.5) for x in values],
            "diverged": sum(x is None or x > 2 for x in values),
        }
        for name, values in finals.items()
    }
    return {"steps": 100, "optimizers": of}


def test_claims_are_compared_with_results():
    results = {"figure 6": {"MLP": panel(mulo_m=[0.4, 0.5], lo_m=[None, 3.0]), "LM": panel(mulo_m=[1.0], lo_m=[0.6])}}
    agree = lambda measure: [good for _, good in measure(results)]  # noqa: E731
    assert agree(_claims.is_stable("figure 6", "mulo_m")) == [True, False]
    assert agree(_claims.is_unstable("figure 6", "lo_m")) == [True, False]
    assert agree(_claims.diverges("figure 6", "lo_m")) == [True, False]
    assert agree(_claims.diverges("figure 6", "lo_m", panels="MLP")) == [True]
    assert agree(_claims.beats("figure 6", "mulo_m", "lo_m")) == [True, False]
    assert agree(_claims.gains_with_width("figure 6", "lo_m", "mulo_m", "")) == [True]
    assert agree(_claims.is_stable("figure 7", "mulo_m")) == []
    texts = [text for text, _ in _claims.diverges("figure 6", "lo_m")(results)]
    assert texts == ["LO_M, MLP: 2 of 2 diverged, loss not finite", "LO_M, LM: 0 of 1 diverged, loss 0.600"]


def test_rounds_are_compared():
    of = {"rounds_to": {"SlowMo": {"SlowMo": [800, 900, None], "LOpt-A": [300, 450, 500], "LAgg-A": [None, None, 9]}}}
    found = dict(_claims.fewer(["H = 4"], ["LOpt-A", "LAgg-A"], ["SlowMo", "SGD"], 2.0)({"H = 4": of}))
    assert found == {
        "H = 4, LOpt-A: 2.0 times fewer than SlowMo": True,
        "H = 4, LAgg-A: never the loss of SlowMo": False,
    }


def test_verdicts_come_from_results(tmp_path):
    claims = [x for x in _claims.CLAIMS if (x.paper, x.script) == (_claims.MULO, "figure_6_depth.py")]
    content = {
        "command": "python x.py",
        "versions": {"jax": "1"},
        "settings": {"smoke": False, "data": "real", "seeds": 2},
        "results": {"figure 6": {"MLP": panel(mulo_m=[0.4, 0.5], lo_m=[1.0, 3.0])}},
    }
    lines = list(_page.part("figure_6_depth.py", claims, content))
    assert "2 seeds. Steps or rounds: figure 6, MLP 100." in lines[2]
    assert lines[-3].endswith("MLP: muLO_M 0.450, LO_M 2.000 | reproduced |")
    assert lines[-2].endswith("LO_M, MLP: 1 of 2 diverged, loss 2.000 | not reproduced |")
    tuned = dict(rate=0.01, input_mult=16, output_mult=1, hidden_mult=4, loss=0.5)
    scale = _page.scale({"settings": {"seeds": 3}, "results": {"table 2": {"adam_s": tuned}}})
    assert scale == "3 seeds. AdamS: rate 0.01, input 16, output 1, hidden 4."
    without = list(_page.part("figure_6_depth.py", claims, None))
    assert without[-2] == f"| 6 | {claims[-1].says} |"
    (tmp_path / "x.json").write_text(json.dumps(content | {"settings": {"smoke": True, "data": "real"}}))
    with pytest.raises(ValueError, match="holds a smoke test"):
        _page.verdicts(tmp_path)


def test_rounds_are_tabulated():
    optimizers = {"SlowMo": {"final": [0.5, 0.25, 0.75]}, "LOpt-A": {"final": [0.5, None, 0.25]}}
    of = {"steps": 1000, "optimizers": optimizers, "rounds_to": {"SlowMo": {"SlowMo": [9, 8, None], "LOpt-A": [4] * 3}}}
    assert list(_page.rounds_of_one(of)) == [
        "| | to the loss of SlowMo (0.5000) | loss after 1,000 rounds |",
        "| --- | --- | --- |",
        "| SlowMo | 9 (8 to never) | 0.500 (0.250 to 0.750) |",
        "| LOpt-A | 4 | 0.500 (0.250 to diverged) |",
    ]
    other = {"steps": 20, "optimizers": {"SlowMo": {"final": [None]}}, "rounds_to": {"SlowMo": {"SlowMo": [None]}}}
    assert list(_page.rounds_elsewhere({"H = 4": of, "K = 2": other}, ["H = 4", "K = 2"])) == [
        "| | H = 4, 1000 rounds | K = 2, 20 rounds |",
        "| --- | --- | --- |",
        "| SlowMo | 9, 0.500 | never, diverged |",
        "| LOpt-A | 4, 0.500 |  |",
    ]


@pytest.mark.parametrize("page", _page.PAGES, ids=lambda page: page.stem)
def test_pages_have_the_results_that_there_are(page):
    tables = _page.BEGIN + _page.PAGES[page]() + _page.END
    assert tables in page.read_text(), "run `python examples/reproductions/_page.py --write`"


def test_linear_decay_scales_updates_from_one_to_zero(standard_promotion):
    plain = _optimizers.Optimizer(lambda steps: (loc.OptaxOptimizer(optax.sgd, 1.0), GradientStep()), "sgd")
    decayed = _optimizers.with_linear_decay(plain)
    learner, _ = decayed.make(4)
    params = {"w": jnp.ones(1)}
    state, factors = learner.init(params), []
    for _ in range(5):
        updates, state = learner.update(params, state, params)
        factors.append(-float(updates["w"][0]))
    np.testing.assert_allclose(factors, [1.0, 0.75, 0.5, 0.25, 0.0], atol=1e-6)
    assert decayed.identity != plain.identity
