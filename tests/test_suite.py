"""The suite of benchmarks: scores of curves made by hand, tuning, resumed runs, and the call on a tiny task."""

import json
import math
import os
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from benchmarks import suite
from benchmarks.suite import anchor, data, overview, runs, scores, shipped, tasks

import lo_components as loc
from lo_components.parametrization import SP, MuP

REAL = Path(os.environ.get("LO_COMPONENTS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def needs(name):
    reason = f"set LO_COMPONENTS_DATA to a folder that holds {name}"
    return pytest.mark.skipif(not (REAL / name).exists(), reason=reason)


@pytest.fixture
def tiny(monkeypatch):
    """A task on digits that takes no time."""
    monkeypatch.setitem(data._READERS, "digits", lambda folder: loc.data.digits())
    spec = tasks.TaskSpec("tiny", "digits", tasks.mlp, dict(width=4, depth=1, batch_size=4))
    monkeypatch.setitem(tasks.TASKS, "tiny", spec)
    return spec


def sgd(rate, horizon):
    return loc.OptaxOptimizer(optax.sgd, rate)


# Scores


def test_parts_of_a_curve_are_averaged_and_then_smoothed():
    losses = np.tile([1.0, 3.0], 500)[None]
    losses[0, 2:4] = 12.0, 32.0
    curve = scores.smoothed(losses)
    assert curve.shape == (1, 500)
    np.testing.assert_allclose(curve[0, :4], [2.0, 3.0, 2.95, 2.9025])  # 0.95 * 2 + 0.05 * 22 = 3


def test_a_curve_ends_at_the_first_loss_that_is_not_finite():
    losses = np.ones((2, 1000))
    losses[0, 501] = np.inf
    curve = scores.smoothed(losses)
    assert np.isfinite(curve[0, :250]).all() and np.isnan(curve[0, 250:]).all() and np.isfinite(curve[1]).all()
    assert scores.final(curve) == math.inf and scores.half_way(curve) == 1.0
    assert list(scores.diverged(np.ones(2), curve)) == [True, False]


def test_the_fraction_of_the_steps_to_a_target():
    curve = np.array([[4.0, 2.0, 3.0, 1.0], [4.0, 4.0, 4.0, 4.0], [np.nan] * 4])
    assert list(scores.fraction_to(curve, 2.0)) == [0.5, math.inf, math.inf]
    assert list(scores.fraction_to(curve, 4.0)) == [0.25, 0.25, math.inf]


def test_scores_of_a_task():
    reference = np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 3.0]])  # 2 at the end
    curve = np.array([[4.0, 2.0, 1.0, 1.0], [8.0, 6.0, 4.0, 4.0]])
    found = scores.of_task(curve, np.array([5.0, 3.0]), reference, target=3.0)
    assert list(found["speedup"]) == [1.0, 0.0]
    assert list(found["speedup_adamw"]) == [2.0, 0.0]
    assert list(found["ratio"]) == [0.5, 2.0]
    expected = [np.mean(np.log([1, 2 / 3, 1 / 2, 1 / 2])), np.mean(np.log([2, 2, 2, 2]))]
    np.testing.assert_allclose(found["area"], expected)
    assert list(found["diverged"]) == [0.0, 1.0]


def test_scores_of_a_run_that_is_not_finite():
    found = scores.of_task(np.full((1, 4), np.nan), np.ones(1), np.ones((1, 4)), target=1.0)
    assert {kind: x[0] for kind, x in found.items()} == dict(
        speedup=0.0, speedup_adamw=0.0, ratio=math.inf, area=math.inf, diverged=1.0
    )


def test_two_optimizers_are_compared_seed_by_seed():
    curve = np.array([[4.0, 2.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0], [4.0, 3.0, 3.0, 3.0]])
    other = np.array([[4.0, 3.0, 3.0, 2.0], [4.0, 4.0, 4.0, 5.0], [2.0, 2.0, 2.0, 1.5]])
    found = scores.compared(curve, other, target=2.0)
    assert list(found["steps"]) == [2.0, 1.0, 0.0]  # the second seed never reaches the target with either
    assert list(found["steps_to_final"]) == [2.0, 4.0, 0.0]
    assert list(found["ratio"]) == [0.5, 0.8, 2.0]


def test_a_run_that_is_not_finite_is_worse_than_any_other():
    good, bad = np.array([[2.0, 1.0]]), np.array([[2.0, np.nan]])
    assert {kind: x[0] for kind, x in scores.compared(good, bad, target=1.0).items()} == dict(
        steps=math.inf, steps_to_final=2.0, ratio=0.0
    )
    assert {kind: x[0] for kind, x in scores.compared(bad, good, target=1.0).items()} == dict(
        steps=0.0, steps_to_final=0.0, ratio=math.inf
    )
    assert scores.compared(bad, bad, target=1.0)["ratio"][0] == 1.0


def test_the_interquartile_mean_is_that_of_all_samples_together():
    assert scores.interquartile_mean(np.array([1.0, 100.0, 2.0]), np.array([3.0, 4.0, 5.0, 0.0, -50.0])) == 2.5


def test_intervals_resample_seeds_within_each_task():
    constant = [np.full(3, 1.0), np.full(3, 2.0)]
    assert scores.interval(constant) == (1.5, 1.5, 1.5)
    point, low, high = scores.interval([np.array([1.0, 1.2, 1.4]), np.array([2.0, 2.2, 2.4])])
    assert low < point < high and 1.0 <= low and high <= 2.4
    assert np.isnan(scores.interval([np.ones(1)])[1])
    assert scores.interval([np.full(3, math.inf)] * 2) == (math.inf,) * 3


def test_performance_profile():
    times = {"fast": [1.0, 1.0, math.inf], "slow": [2.0, 0.5, math.inf]}
    taus = np.array([1.0, 2.0, 3.0])
    found = scores.profile(times, taus)
    np.testing.assert_allclose(found["fast"], [1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(found["slow"], [1 / 3, 2 / 3, 2 / 3])
    assert scores.profile_score(np.array([0.0, 1.0, 1.0]), taus) == 0.75


# Tuning and resuming


def test_a_grid_is_widened_while_its_edge_is_best():
    def distance(best):
        return lambda rate: abs(math.log(rate / best))

    assert runs.best_rate(runs.search(distance(0.3), (1e-3, 3e-3, 1e-2))) == pytest.approx(0.3)
    assert runs.best_rate(runs.search(distance(1e-4), (1e-3, 3e-3))) == pytest.approx(1e-4)
    tried = []
    runs.search(lambda rate: tried.append(rate) or distance(3e-3)(rate), (1e-3, 3e-3, 1e-2))
    assert tried == [1e-3, 3e-3, 1e-2]


def test_a_grid_of_which_every_rate_diverges_is_widened_downwards():
    found = runs.search(lambda rate: math.inf if rate > 1e-4 else -rate, (1e-3, 1e-2))
    assert runs.best_rate(found) == pytest.approx(1e-4)


def test_an_interrupted_run_continues(tiny, tmp_path, monkeypatch):
    optimizer = suite.Optimizer("sgd", sgd, (0.01, 0.1, 1.0, 10.0))
    setting = runs.Setting(tmp_path, tmp_path, seeds=2)
    train, trained = runs.train, []

    def interrupted(learner, task, horizon, seed):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(seed)
        return train(learner, task, horizon, seed)

    monkeypatch.setattr(runs, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.tuned_run(setting, optimizer, tiny, 20)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    monkeypatch.setattr(runs, "train", lambda *x: trained.append(x[3]) or train(*x))
    found = runs.tuned_run(setting, optimizer, tiny, 20)
    assert trained == [1000] * 4 + [0, 1]
    monkeypatch.setattr(runs, "train", None)  # nothing is left to train
    again = runs.tuned_run(setting, optimizer, tiny, 20)
    np.testing.assert_array_equal(again.losses, found.losses)
    assert found.losses.shape == (2, 20) and found.held_out.shape == (2, 10) and again.tuning == found.tuning
    assert found.rate == min(found.tuning, key=found.tuning.__getitem__)


def test_runs_are_told_apart_by_what_the_optimizer_computes():
    def fingerprint(make, rate=1.0, horizon=10):
        return suite.Optimizer("x", make).fingerprint(rate, horizon)

    learned = [loc.recipes.small_fc_lopt(key=jax.random.key(seed)) for seed in (0, 1)]
    makers = [
        sgd,
        lambda rate, horizon: optax.sgd(1e-2),
        lambda rate, horizon: optax.sgd(1e-3),
        lambda rate, horizon: optax.sgd(1e-3, momentum=0.9),
        lambda rate, horizon: learned[0],
        lambda rate, horizon: learned[1],
        *(baseline.make for baseline in suite.BASELINES.values()),
    ]
    found = [fingerprint(make) for make in makers]
    assert len(set(found)) == len(found)
    assert found == [fingerprint(make) for make in makers]
    assert fingerprint(suite.BASELINES["adamw"].make, horizon=20) not in found
    assert fingerprint(sgd, rate=0.5) not in found


# The whole


def test_one_line_runs_any_optimizer(tiny, tmp_path):
    options = dict(data=tmp_path, tasks=["tiny"], horizons=[20], seeds=2, baselines=tmp_path / "out" / "curves.npz")
    report = suite.run(optax.sgd(0.1), out=tmp_path / "out", over="adamw", **options)
    assert report.optimizers == ["adam", "adamw", "muon", "mine"]
    found = json.loads((tmp_path / "out" / "scores.json").read_text())["20"]
    assert found["mine"]["over"]["adamw"].keys() == {"steps", "steps_to_final", "ratio"}
    own, reference = report.curves["mine", "tiny", 20], report.curves["adamw", "tiny", 20]
    ratio = own.curve[:, -1] / np.mean(reference.curve[:, -1])
    np.testing.assert_allclose(found["mine"]["tasks"]["tiny"]["ratio"], ratio, rtol=1e-5)
    assert "| tiny |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "figure.png").stat().st_size > 1000

    # Curves that were kept need no second run.
    again = suite.run(sgd, name="sgd", rates=(0.1,), out=tmp_path / "second", **options)
    np.testing.assert_allclose(again.curves["adamw", "tiny", 20].curve, reference.curve, rtol=1e-6)
    assert again.curves["adamw", "tiny", 20].rate == reference.rate
    np.testing.assert_allclose(again.curves["sgd", "tiny", 20].curve, own.curve, rtol=1e-5)
    assert [path.name.split("-")[0] for path in (tmp_path / "second").rglob("*.safetensors")] == ["sgd", "sgd"]

    # Those of another task do.
    tiny.sizes["batch_size"] = 2
    runs._task.cache_clear()
    other = suite.run(optax.sgd(0.1), out=tmp_path / "third", **options)
    assert not np.allclose(other.curves["adamw", "tiny", 20].curve, reference.curve)


def test_horizons_must_be_cut_into_equal_parts(tmp_path):
    with pytest.raises(ValueError, match="`horizons` above 500 must be multiples of it, got 750"):
        suite.run(data=tmp_path, out=tmp_path, horizons=[750])


def test_names_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="`over` must be one of .*'mine'"):
        suite.run(optax.sgd(0.1), data=tmp_path, out=tmp_path, over="sgd")
    with pytest.raises(ValueError, match="a name of its own"):
        suite.run(optax.sgd(0.1), optax.sgd(0.2), data=tmp_path, out=tmp_path)


def test_the_command_line_takes_a_file_or_a_function(tmp_path):
    path = tmp_path / "mulo.safetensors"
    loc.weights.save(path, loc.recipes.mulo(key=jax.random.key(0)))
    growth = suite.Growth(MuP())
    found = suite.Optimizer.named(str(path), (1.0,), growth)
    assert found.name == "mulo" and found.growth == growth
    assert isinstance(found.learner(1.0, 10), loc.optimizers.LearnedOptimizer)
    found = suite.Optimizer.named("optax:lion", (1e-3, 1e-2), growth)
    assert (found.name, found.rates) == ("lion", (1e-3, 1e-2))
    assert suite.Optimizer.named("benchmarks.suite.optimizers:BASELINES", (1.0,), growth).name == "BASELINES"


# Models and data


@pytest.mark.parametrize("parametrization", [SP(), MuP()], ids=["sp", "mup"])
@pytest.mark.parametrize("make", [tasks.normalized_mlp, tasks.autoencoder])
def test_own_models_learn_under_both_parametrizations(make, parametrization):
    dataset = loc.data.digits()
    dataset = loc.data.ImageDataset(dataset.splits, 10, 0.0, 16.0)
    depth = {} if make is tasks.autoencoder else {"depth": 2}
    task = make(dataset, suite.Growth(parametrization), width=64, batch_size=32, **depth)
    learner = loc.OptaxOptimizer(optax.adam, 3e-3)
    losses, held_out = runs.train(learner, task, 100, seed=0)
    assert losses[-1] < 0.7 * losses[0] and held_out[-1] < held_out[0]


def test_autoencoders_are_measured_by_the_mean_square():
    dataset = loc.data.digits()
    dataset = loc.data.ImageDataset(dataset.splits, 10, 0.0, 16.0)
    task = tasks.autoencoder(dataset, suite.Growth(), width=8, batch_size=32)
    params = jax.tree.map(lambda x: 0 * x, task.init(key=jax.random.key(0)))  # reconstructs 0.5 everywhere
    images = np.asarray(dataset.splits["test"].images) / 16.0
    loss = task.metrics(params, split="test", key=jax.random.key(0))["loss"]
    np.testing.assert_allclose(loss, np.mean(np.square(images - 0.5)), rtol=1e-5)


@needs("fashion_mnist")
def test_fashion_mnist_is_in_the_order_of_learned_optimization():
    dataset = data.read("fashion_28x28", REAL)
    train = dataset.splits["train"]
    assert train.images.shape == (48_000, 28, 28)
    assert train.labels[:10].tolist() == [2, 1, 8, 4, 1, 9, 2, 2, 0, 2]
    small, large = np.asarray(data.read("fashion_8x8", REAL).splits["train"].images)[5], np.float32(train.images[5])
    # The output at (2, 3) is at the positions 8.25 and 11.75.
    rows = 0.75 * large[8] + 0.25 * large[9]
    np.testing.assert_allclose(small[2, 3], 0.25 * rows[11] + 0.75 * rows[12], rtol=1e-6)


@needs("cifar10")
def test_cifar_images_are_means_of_blocks():
    dataset = data.read("cifar_16x16", REAL)
    assert dataset.splits["train"].images.shape == (8068, 16, 16, 3)
    assert dataset.splits["test"].images.shape == (1017, 16, 16, 3)


def test_every_task_is_small_and_has_its_own_name():
    assert len(tasks.TASKS) == 10
    for spec in tasks.TASKS.values():
        assert spec.data in data._READERS
        json.dumps(spec.sizes)


# The anchor


def test_the_step_at_which_a_published_curve_has_a_loss():
    steps, curve = np.array([0.0, 10.0, 20.0, 100.0]), np.array([4.0, 2.0, 2.0, 1.0])
    losses = (5.0, 3.0, 1.5, 0.5, math.inf, math.nan)
    assert [anchor.steps_of(loss, steps, curve) for loss in losses] == [0.0, 5.0, 60.0, 100.0, 0.0, 0.0]


def test_the_anchor_averages_over_seeds_and_then_smooths():
    np.testing.assert_allclose(anchor.smoothed(np.array([[1.0, 5.0, 2.0], [3.0, 1.0, 4.0]])), [2.0, 2.05, 2.0975])


def test_the_anchor_measures_before_every_tenth_step(tiny, tmp_path):
    """Without a change of the parameters, all evaluations are of the initial loss, on other batches each time."""
    task = tiny.build(tmp_path)
    found = anchor.measured(sgd(0.0, 40), task, 40, jax.random.key(0))
    assert found.shape == (5,) and len(set(found.tolist())) == 5 and np.ptp(found) < 1.0
    learned = anchor.measured(sgd(0.3, 40), task, 40, jax.random.key(0))
    assert learned[0] == found[0] and (learned[1:] != found[1:]).all()


@pytest.mark.parametrize("rates", [(0.1,), (0.001, 0.1, 10.0)])
def test_the_anchor_tunes_only_a_grid(tiny, tmp_path, rates):
    rate, loss = anchor.tuned(suite.Optimizer("sgd", sgd, rates), tiny.build(tmp_path), 40, seeds=2)
    runs = [anchor.measured(sgd(np.float32(rate), 40), tiny.build(tmp_path), 40, jax.random.key(i)) for i in (0, 1)]
    assert loss == pytest.approx(anchor.smoothed(np.stack(runs))[-1], rel=1e-5)
    assert rate == 0.1 or len(rates) > 1


def test_the_suite_runs_shipped_optimizers_under_the_parametrization_of_their_cards():
    for name in ("mulo", "mulo_s", "mulo_m", "lo_s", "lo_m", "residual_muon"):
        found, card = getattr(shipped, name), loc.pretrained.card(name)
        assert (found.name, found.rates) == (name, (1.0,))
        assert found.growth == suite.Growth(card.parametrization, card.base_width, card.base_in_size)
        assert eqx.tree_equal(found.learner(1.0, 100), loc.pretrained(name))
    for name in ("residual_muon_tuned", "rms_muon"):
        assert getattr(shipped, name).learner(0.25, 100).schedule.peak == 0.25
        assert getattr(shipped, name).learner(0.25, 100).schedule.reference_steps is None  # tuned at this very length
    assert eqx.tree_equal(shipped.residual_muon_sp.learner(1.0, 100), loc.pretrained("residual_muon"))
    assert shipped.residual_muon_sp.growth == suite.Growth()


def test_the_figure_of_the_first_page_can_be_drawn(tmp_path):
    overview.draw(tmp_path / "suite.png")
    assert (tmp_path / "suite.png").stat().st_size > 10_000
