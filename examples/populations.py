"""Meta-train a population of learned optimizers in one compiled program, and keep the best on held-out data.

    python examples/populations.py                 # digits, a few minutes on two CPU cores
    python examples/populations.py --data FOLDER   # Fashion-MNIST's four idx files
    python examples/populations.py --smoke         # a tiny version

The members differ in the rate of the meta-optimizer, in the standard deviation of PES, and in the seed. Prints a table,
and saves a figure and the weights of the best member.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key
from tqdm.auto import tqdm

import lo_components as loc
from lo_components.unroll import LogUniformHorizon, TruncatedUnroll

RATES, STDS, SEEDS = (3e-3, 1e-2, 3e-2), (0.02, 0.1), 2


class Members(eqx.Module):
    """What members differ in; inside `vmap`, one of them."""

    rate: Float[Array, "*members"]
    std: Float[Array, "*members"]
    key: Key[Array, "*members"]

    def estimator(self, unroll: TruncatedUnroll):
        return loc.estimators.PES(unroll, num_pairs=4, std=self.std)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(self.rate))


def population(rates, stds, seeds: int, *, key) -> Members:
    """All combinations; members of the same seed start from the same learner and see the same batches."""
    index, rates, stds = zip(*itertools.product(range(seeds), rates, stds), strict=True)
    return Members(jnp.asarray(rates), jnp.asarray(stds), jax.random.split(key, seeds)[jnp.asarray(index)])


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(eqx.if_array(0), None))
def start(members: Members, unroll: TruncatedUnroll) -> loc.meta.MetaState:
    learner_key, key = jax.random.split(members.key)
    learner = loc.recipes.small_fc_lopt(hidden_size=4, step_mult=1e-2, key=learner_key)
    return loc.meta.init_meta_state(learner, members.estimator(unroll), members.optimizer, key=key)


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(eqx.if_array(0), eqx.if_array(0), None))
def step(state: loc.meta.MetaState, members: Members, unroll: TruncatedUnroll):
    return loc.meta.meta_step(state, members.estimator(unroll), members.optimizer)


@eqx.filter_vmap(in_axes=(eqx.if_array(0), None, None, None))
def validate(learners, task, num_steps: int, key) -> loc.meta.Evaluation:
    return loc.meta.evaluate(learners, task, num_steps=num_steps, splits=("outer_valid",), key=key)


def main(
    data: Path | None = None,
    out: Path = Path("populations.png"),
    meta_steps: int = 300,
    valid_steps: int = 500,
    smoke: bool = False,
) -> None:
    dataset = loc.data.digits() if data is None else loc.data.fashion_mnist(data)
    dataset = loc.data.split_off(dataset, {"outer_valid": 0.1})
    task = loc.tasks.mlp_classification(dataset, width=32, depth=1, batch_size=64)
    unroll = TruncatedUnroll(task, LogUniformHorizon(50, 200), window=10)
    rates, stds, seeds = RATES, STDS, SEEDS
    if smoke:
        meta_steps, valid_steps, rates, stds, seeds = 3, 5, RATES[:2], STDS[:1], 1
    members = population(rates, stds, seeds, key=jax.random.key(0))

    state, losses, begin = start(members, unroll), [], time.perf_counter()
    for _ in tqdm(range(meta_steps), "meta-training"):
        state, metrics = step(state, members, unroll)
        losses.append(metrics.meta_loss)
    print(f"{len(members.rate)} members, {meta_steps} meta-steps: {time.perf_counter() - begin:.0f} s")

    curves = validate(state.learner, task, valid_steps, jax.random.key(1))
    scores = np.mean(np.asarray(curves.metrics["outer_valid"]["loss"][..., -1]), axis=1)
    best = int(np.argmin(np.where(np.isfinite(scores), scores, np.inf)))
    names = [f"rate {r:.0e}, std {s:.2f}" for r, s in zip(members.rate.tolist(), members.std.tolist(), strict=True)]
    print(f"\n{'member':<24}{'last meta-loss':>16}{'held-out loss':>16}   after {valid_steps} steps, 3 seeds")
    for i, (name, score) in enumerate(zip(names, scores, strict=True)):
        print(f"{name:<24}{losses[-1][i]:>16.4f}{score:>16.4f}{'   best' if i == best else ''}")

    learner = jax.tree.map(lambda x: x[best] if eqx.is_array(x) else x, state.learner)
    loc.weights.save(out.with_suffix(".safetensors"), learner)
    ranked = np.argsort(scores)[[0, len(scores) // 2, -1]]
    words = zip(("best", "median", "worst"), ranked, strict=True)
    panel = {f"{word}: {names[i]}": np.asarray(curves.losses[i]) for word, i in words}
    loc.plots.training_curves({"": panel}, out, title=f"A population of {len(scores)} learned optimizers")
    print(f"\nweights of the best: {out.with_suffix('.safetensors')}\nfigure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with Fashion-MNIST's idx files (default: digits)")
    parser.add_argument("--out", type=Path, default=Path("populations.png"))
    parser.add_argument("--meta-steps", type=int, default=300)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
