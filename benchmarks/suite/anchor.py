"""Compare optimizers with the baseline curves of google/learned_optimization, by that project's own protocol.

Every 10 steps, the mean loss of 5 fresh training batches is measured before the step, and that of 10 batches at the
end. Means over seeds are smoothed by m[0] = l[0], m[k] = 0.95 m[k-1] + 0.05 l[k], as the published curves are. With
A(x) the step at which the published curve has the loss x, the score after N steps is A(m) / N: how many times fewer
steps were needed than by the best of four tuned baselines (Adam, two decays of its learning rate, RAdam), and by Adam
alone.

The published curves have no name here; give them as an npz file with the arrays `steps` `[points]`, `names` and
`best_of_four` `[tasks, points]`, and likewise `adam_names` and `best_adam`.

Run: `python -m benchmarks.suite.anchor --data DATA --curves CURVES.npz --out FILE.json [OPTIMIZER ...]`, where an
OPTIMIZER is as in `python -m benchmarks.suite`. Without any, Adam runs, which ought to score 1.
"""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import lo_components as loc

from .arguments import parser, pop_optimizers
from .optimizers import Optimizer
from .runs import best_rate, search
from .scores import averaged
from .tasks import TASKS

# The names of the suite's tasks there.
NAMES = {
    "mlp-8x8": "ImageMLP_FashionMnist8_Relu32",
    "mlp-28x28": "ImageMLP_FashionMnist_Relu128x128",
    "autoencoder": "ImageMLPAE_FashionMnist_128x32x128_bs128",
}
CURVES = (("best_of_four", "names"), ("best_adam", "adam_names"))
EVERY, BATCHES, LAST_BATCHES = 10, 5, 10


def original_adam(rate: Float[Array, ""], horizon: int) -> loc.OptaxOptimizer:
    """Adam as there, with a second epsilon under the root."""
    return loc.OptaxOptimizer(optax.adam, rate, eps_root=1e-8)


ADAM = Optimizer("adam", original_adam, (1e-3, 3e-3, 1e-2))


@eqx.filter_jit
def measured(
    learner: loc.optimizers.AbstractOptimizer, task: loc.tasks.AbstractTask, num_steps: int, key: PRNGKeyArray
) -> Float[Array, " evaluations"]:
    """The evaluations of one seed: before every tenth step, and at the end."""
    step = loc.unroll.GradientStep()
    init_key, key = jax.random.split(key)
    params = task.init(key=init_key)

    def evaluate(params, count, key):
        def one(key):
            batch_key, loss_key = jax.random.split(key)
            return task.loss(params, task.batch(key=batch_key), key=loss_key)

        return jnp.mean(jax.lax.map(one, jax.random.split(key, count)))

    def ten_steps(carry, key):
        evaluation_key, key = jax.random.split(key)

        def one(carry, key):
            _, *carry = step.step(learner, task, *carry, jnp.int32(num_steps), key=key)
            return tuple(carry), None

        loss = evaluate(carry[0], BATCHES, evaluation_key)
        return jax.lax.scan(one, carry, jax.random.split(key, EVERY))[0], loss

    *keys, last_key = jax.random.split(key, num_steps // EVERY + 1)
    (params, _), losses = jax.lax.scan(ten_steps, (params, step.init(learner, params)), jnp.stack(keys))
    return jnp.append(losses, evaluate(params, LAST_BATCHES, last_key))


def smoothed(losses: Float[np.ndarray, "seeds evaluations"]) -> Float[np.ndarray, " evaluations"]:
    """The mean over seeds, smoothed as the published curves are."""
    return averaged(np.mean(losses, axis=0, dtype=np.float64))


def steps_of(loss: float, steps: Float[np.ndarray, " points"], curve: Float[np.ndarray, " points"]) -> float:
    """A(x): the step at which a curve that never rises has a loss; 0 above the first value, or if not finite."""
    if not np.isfinite(loss):
        return 0.0
    return float(np.interp(loss, curve[::-1], steps[::-1], left=steps[-1], right=0.0))


def tuned(optimizer: Optimizer, task: loc.tasks.AbstractTask, horizon: int, seeds: int) -> tuple[float, float]:
    """The best learning rate, and its smoothed loss at the end; infinite if it is not finite."""

    def last(rate: float) -> float:
        learner = optimizer.learner(rate, horizon)
        runs = [measured(learner, task, horizon, jax.random.key(seed)) for seed in range(seeds)]
        return float(smoothed(np.stack(runs))[-1])

    losses = search(last, optimizer.rates)
    best = best_rate(losses)
    return best, losses[best]


def _score(published: dict, task: str, loss: float, horizon: int, curve: str, names: str) -> float:
    index = published[names].tolist().index(NAMES[task])
    return steps_of(loss, published["steps"], published[curve][index]) / horizon


def main(optimizers: list[Optimizer], data: Path, curves: Path, out: Path, horizons: list[int], seeds: int) -> None:
    published = dict(np.load(curves))
    rows = []
    print(f"{'task':<15}{'steps':>7}  {'optimizer':<15}{'rate':>8}{'loss':>10}{'best of four':>14}{'Adam':>8}")
    for optimizer in optimizers or [ADAM]:
        for task in NAMES:
            for horizon in horizons:
                rate, loss = tuned(optimizer, TASKS[task].build(data, optimizer.growth), horizon, seeds)
                four, adam = (_score(published, task, loss, horizon, *x) for x in CURVES)
                print(
                    f"{task:<15}{horizon:>7}  {optimizer.name:<15}{rate:>8g}{loss:>10.4g}{four:>14.2f}{adam:>8.2f}",
                    flush=True,
                )
                row = {"task": task, "steps": horizon, "optimizer": optimizer.name, "rate": rate, "loss": loss}
                rows.append({**row, "best_of_four": four, "best_adam": adam})
    out.write_text(json.dumps({"seeds": seeds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument("--curves", type=Path, required=True, help="the published curves")
    command.add_argument("--out", type=Path, required=True, help="a JSON file")
    command.add_argument("--horizons", type=int, nargs="+", default=[1000, 2000], help="numbers of steps")
    command.add_argument("--seeds", type=int, default=5)
    arguments = vars(command.parse_args())
    main(pop_optimizers(arguments), **arguments)
