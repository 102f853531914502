"""Turn a plain training loop into local SGD with an aggregator, for any Equinox model.

    python examples/communication_efficient.py
    python examples/communication_efficient.py --weights FILE    # the weights of another aggregator
    python examples/communication_efficient.py --smoke           # a tiny version

Eight workers train an Equinox model on scikit-learn's digits. Either they exchange gradients after every step, or the
deltas of several local steps, which are aggregated by their mean, SlowMo or a learned aggregator. Prints the loss over
rounds, and plots it over the bytes sent. All methods learn these few images by heart: the learned aggregator is ahead
in the first half, and SlowMo at the end.
"""

import argparse
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import lo_components as loc
from lo_components.aggregators import Mean, Screened, SlowMo
from lo_components.optimizers import StepContext

WORKERS, BATCH_SIZE, RATE = 8, 16, 0.1


def make_loss(static):
    def loss(params, batch):
        images, labels = batch
        logits = jax.vmap(eqx.combine(params, static))(images.reshape(len(images), -1))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return loss


def plain(loss, optimizer):
    """One step of a loop that exchanges gradients: the batches of all workers form one batch."""

    def step(params, state, batches):
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), batches)
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def with_local_steps(loss, aggregator, rounds: int):
    """One step of a loop that exchanges the deltas of local steps. Only this function differs from `plain`."""

    def worker(params, batches):
        def local_step(new, batch):
            value, grads = jax.value_and_grad(loss)(new, batch)
            return jax.tree.map(lambda p, g: p - RATE * g, new, grads), value

        new, values = jax.lax.scan(local_step, params, batches)
        return jax.tree.map(jnp.subtract, new, params), values[0]

    def step(params, state, batches):
        deltas, values = jax.vmap(worker, in_axes=(None, 0))(params, batches)
        updates, state = aggregator.aggregate(deltas, state, params, context=StepContext(num_steps=rounds))
        return optax.apply_updates(params, updates), state, jnp.mean(values)

    return step


def train(name, step, state, params, dataset, local_steps: int, rounds: int, key):
    """The loss at the beginning of each round."""
    step = eqx.filter_jit(step)
    losses = []
    for i in tqdm(range(rounds), desc=name, leave=False):
        images, labels = loc.data.sample_batch(
            dataset, WORKERS * local_steps * BATCH_SIZE, key=jax.random.fold_in(key, i)
        )
        shape = (WORKERS, local_steps, BATCH_SIZE)
        params, state, value = step(params, state, (images.reshape(*shape, -1), labels.reshape(shape)))
        losses.append(value)
    return np.asarray(jnp.stack(losses))[None]


def main(
    weights: Path | None = None,
    out: Path = Path("communication_efficient.png"),
    local_steps: int = 8,
    rounds: int = 60,
    smoke: bool = False,
) -> None:
    if smoke:
        rounds, local_steps = 20, 2
    dataset, key = loc.data.digits(), jax.random.key(0)
    model = eqx.nn.MLP(64, 10, width_size=64, depth=2, key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    loss = make_loss(static)

    # `Screened` leaves out workers whose deltas are unusually large; non-finite ones are always left out.
    learned = loc.pretrained("outer_residual_muon") if weights is None else loc.weights.load(weights)
    aggregators = {"mean of local SGD": Mean(), "SlowMo": SlowMo(0.8), "learned": learned}
    aggregators = {name: Screened(aggregator) for name, aggregator in aggregators.items()}
    optimizer = optax.sgd(RATE)
    steps = {"SGD, every step": (plain(loss, optimizer), optimizer.init(params), 1)}
    steps |= {name: (with_local_steps(loss, a, rounds), a.init(params), local_steps) for name, a in aggregators.items()}

    curves = {
        name: train(name, step, state, params, dataset, h, rounds, key) for name, (step, state, h) in steps.items()
    }
    print(f"{'':<20}{'local steps':>12}{'kB sent':>10}   loss after a tenth, a third and all of the {rounds} rounds")
    for name, losses in curves.items():
        cost = loc.aggregators.round_cost(params, WORKERS, local_steps=steps[name][2], batch_size=BATCH_SIZE)
        shown = [np.mean(losses[0, max(0, end - 10) : end]) for end in (rounds // 10, rounds // 3, rounds)]
        sent = cost.bytes_sent * rounds / 1e3
        print(f"{name:<20}{cost.local_steps:>12}{sent:>10.0f}   " + "".join(f"{x:>9.4f}" for x in shown))
    megabytes = loc.aggregators.round_cost(params, WORKERS).bytes_sent / 1e6
    loc.plots.training_curves({"": curves}, out, title="Loss over megabytes sent", unit="MB", per_step=megabytes)
    print(f"\nfigure: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", type=Path, help="a meta-trained aggregator, instead of the pretrained outer_residual_muon"
    )
    parser.add_argument("--out", type=Path, default=Path("communication_efficient.png"))
    parser.add_argument("--local-steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--smoke", action="store_true", help="run a tiny version")
    try:
        main(**vars(parser.parse_args()))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
