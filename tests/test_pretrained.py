"""The learners that the package contains, their cards, and folders of others."""

import csv
import dataclasses
import json
import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import SGD, SOURCE, run_python

from lo_components import Card, Pretrained, data, meta, optimizers, pretrained, recipes, tasks, unroll, weights
from lo_components.parametrization import SP, MuP
from lo_components.schedules import Progress

ROOT = SOURCE.parents[1]
FOLDER = SOURCE / "_pretrained"
NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
CARD = Card(
    name="toy",
    summary="untrained",
    parametrization=MuP(bias_std=0.5),
    base_width=8,
    needs=("value",),
    tasks="none",
    widths=(8, 16),
    horizon="none",
    estimator="none",
    seed=0,
    command="none",
    source="none",
)


def is_in_weights(folder: Path, name: str) -> bool:
    """Whether a card is also in the file of weights, except for its digest."""
    card = json.loads((folder / f"{name}.json").read_text())
    return weights.card(folder / f"{name}.safetensors") == {**card, "sha256": ""}


@pytest.mark.parametrize("name", NAMES)
def test_files_and_cards_agree(name):
    card = pretrained.card(name)
    assert (FOLDER / f"{name}.safetensors").stat().st_size < 200_000
    assert is_in_weights(FOLDER, name)
    learner = pretrained(name)  # compares the digests
    kind = "optimizer" if isinstance(learner, optimizers.AbstractOptimizer) else "aggregator"
    assert (card.name, card.kind) == (name, kind)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_a_card_says_something(name):
    card = pretrained.card(name)
    assert all(text for text in card.in_words().values())
    assert card.meta_steps > 0 and card.widths
    program, script, *_ = card.command.split()
    assert program == "python" and (ROOT / script).is_file()


@pytest.mark.parametrize("name", [name for name in NAMES if pretrained.card(name).kind == "optimizer"])
def test_optimizers_train_a_wider_network_in_a_plain_optax_loop(name, getkey, standard_promotion):
    card = pretrained.card(name)
    task = tasks.mlp_classification(
        data.digits(), width=64, parametrization=card.parametrization, base_width=card.base_width, batch_size=32
    )
    params, num_steps = task.init(key=getkey()), 60
    optimizer = optimizers.as_optax(unroll.scaled_for(task, pretrained(name), params))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        loss, grads = jax.value_and_grad(task.loss)(params, task.batch(key=key), key=key)
        given = {"value": loss, "num_steps": num_steps}
        updates, state = optimizer.update(grads, state, params, **{extra: given[extra] for extra in card.needs})
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(num_steps):
        params, state, loss = step(params, state, getkey())
        losses.append(loss)
    assert jnp.mean(jnp.stack(losses[-10:])) < 0.5 * losses[0]


@pytest.mark.parametrize("name", [name for name in NAMES if pretrained.card(name).kind == "aggregator"])
def test_aggregators_train_what_they_have_not_seen(name, getkey):
    task, rounds = tasks.LinearRegression(jnp.ones(4), jnp.ones(4)), unroll.LocalRound(8, 4, SGD(0.01))
    found = meta.evaluate(pretrained(name), task, num_steps=60, inner_step=rounds, num_seeds=1, key=getkey())
    assert found.losses[0, -1] < 0.2 * found.losses[0, 0]


def test_names_are_listed_with_a_line_each():
    assert list(pretrained.names()) == NAMES and len(NAMES) >= 4
    lines = str(pretrained).splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert pretrained.card("mulo").summary in lines[NAMES.index("mulo")]


def test_an_unknown_name_is_one_sentence_that_lists_the_names():
    for call in (pretrained, pretrained.card):
        with pytest.raises(ValueError, match=rf"^`name` must be one of {', '.join(NAMES)}, got 'muloo'\.$"):
            call("muloo")


def test_nothing_is_read_at_import():
    code = """
import sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import lo_components
assert not [path for path in opened if path.endswith((".safetensors", ".json"))], opened
lo_components.pretrained("mulo")
assert [path for path in opened if path.endswith("mulo.safetensors")]
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_what_is_saved_is_loaded(tmp_path, getkey):
    folder, learner = Pretrained(tmp_path / "new" / "folder"), recipes.lolv2(hidden_size=2, key=getkey())
    assert folder.names() == ()
    saved = folder.save(learner, CARD)
    assert folder.card("toy") == saved and eqx.tree_equal(folder("toy"), learner)
    count = sum(x.size for x in jax.tree.leaves(learner) if eqx.is_array(x))
    assert saved == dataclasses.replace(
        CARD, kind="optimizer", meta_parameters=count, versions=saved.versions, sha256=saved.sha256
    )
    assert saved.parametrization == MuP(bias_std=0.5) and saved.needs == ("value",) and saved.widths == (8, 16)


def test_meta_training_is_read_from_its_logs(tmp_path, getkey):
    runs = [tmp_path / "first", tmp_path / "second"]
    for run, rows in zip(runs, (2, 20), strict=True):
        run.mkdir()
        log = [{"step": 10 * i, "meta_loss": 100 / i, "seconds": 3.0 * i} for i in range(1, rows + 1)]
        (run / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in log))
    saved = Pretrained(tmp_path).save(recipes.lolv2(hidden_size=2, key=getkey()), CARD, runs=runs)
    assert (saved.meta_steps, saved.seconds) == (220, 66.0)
    assert saved.meta_loss == pytest.approx((100 / 19 + 100 / 20) / 2)
    assert saved.hardware.startswith("cpu, ")


def test_weights_of_another_card_are_refused(tmp_path, getkey):
    folder = Pretrained(tmp_path)
    for name in ("toy", "other"):
        folder.save(recipes.lolv2(hidden_size=2, key=getkey()), dataclasses.replace(CARD, name=name))
    (tmp_path / "toy.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(weights.CheckpointError, match="`.*toy.safetensors` is not the file that its card describes"):
        folder("toy")


def test_an_edited_card_disagrees_with_the_file_of_weights(tmp_path, getkey):
    Pretrained(tmp_path).save(recipes.lolv2(hidden_size=2, key=getkey()), CARD)
    assert is_in_weights(tmp_path, "toy")
    path = tmp_path / "toy.json"
    path.write_text(path.read_text().replace('"meta_steps": 0', '"meta_steps": 10'))
    assert not is_in_weights(tmp_path, "toy")


def test_only_learners_are_saved(tmp_path):
    with pytest.raises(TypeError, match="`learner` must be"):
        Pretrained(tmp_path).save(optax.adam(1e-3), CARD)
    assert not list(tmp_path.iterdir())


def test_cards_print_one_field_a_line():
    lines = str(dataclasses.replace(CARD, parametrization=SP())).splitlines()
    assert len(lines) == len(dataclasses.fields(Card))
    assert "parametrization SP()" in lines and "widths          8, 16" in lines and "base in size    none" in lines
    assert "parametrization MuP(bias_std=0.5)" in str(CARD).splitlines()


def test_the_page_has_the_table_of_the_cards():
    script = runpy.run_path(str(ROOT / "docs" / "pretrained_table.py"))
    page = Path(script["PAGE"]).read_text()
    assert script["with_table"](page) == page, "run `python docs/pretrained_table.py`"
    assert all(f"| `{name}` |" in page for name in NAMES)


@pytest.mark.parametrize("factor", [1e-8, 1.0])
def test_residual_muon_leaves_alone_what_has_no_gradient_and_works_at_any_scale(factor, getkey):
    optimizer = pretrained("residual_muon")
    params = {"bias": jnp.ones(5), "used": jnp.ones((4, 3)), "unused": jnp.ones((4, 3)), "rows": jnp.ones((6, 3))}
    grads = jax.tree.map(lambda p: jax.random.normal(getkey(), p.shape), params)
    grads |= {"unused": jnp.zeros((4, 3)), "rows": grads["rows"].at[2:].set(0.0)}
    state, found = optimizer.init(params), []
    for scale in (1.0, factor):
        state = optimizer.init(params)
        for _ in range(3):
            given = jax.tree.map(lambda g, s=scale: s * g, grads)
            updates, state = optimizer.update(given, state, params, context=optimizers.StepContext(num_steps=10))
        found.append(updates)
        assert jnp.all(updates["unused"] == 0.0) and jnp.all(updates["rows"][2:] == 0.0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-7), *found)


@pytest.mark.parametrize("name", [name for name in NAMES if pretrained.card(name).kind == "optimizer"])
def test_the_log_of_meta_training_is_in_the_repository_and_agrees_with_the_card(name):
    with (ROOT / "benchmarks" / "results" / "meta_training" / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    card, last = pretrained.card(name), rows[len(rows) * 9 // 10 :]
    assert int(rows[-1]["step"]) == card.meta_steps
    assert float(rows[-1]["seconds"]) == pytest.approx(card.seconds, rel=1e-3)
    assert sum(float(row["meta_loss"]) for row in last) / len(last) == pytest.approx(card.meta_loss, rel=1e-3)


def test_the_rate_of_residual_muon_is_for_the_longest_of_its_meta_training_and_falls_beyond():
    schedule = pretrained("residual_muon").schedule
    assert f" to {schedule.reference_steps} steps" in pretrained.card("residual_muon").horizon
    peaks = [schedule((), Progress(jnp.asarray(n // 20 - 1), num_steps=jnp.asarray(n)))[0] for n in (200, 1000, 4000)]
    np.testing.assert_allclose(peaks, [4e-3, 4e-3, 2e-3], rtol=1e-5)
