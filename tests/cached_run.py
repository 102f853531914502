"""Meta-train, evaluate and sweep, and print how many programs were in the persistent cache, and how many were not."""

import collections
import json

import jax
import jax.numpy as jnp
import optax

import lo_components as loc

COUNTED = ("/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses")


def main():
    counts = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: counts.update([event] if event in COUNTED else []))
    key, dataset = jax.random.key(0), loc.data.digits()
    task = loc.tasks.mlp_classification(dataset, width=4, depth=1, parametrization=loc.parametrization.MuP())
    unroll = loc.unroll.TruncatedUnroll(task, 4, 2)
    learner = loc.meta.meta_train(
        loc.recipes.small_fc_lopt(hidden_size=2, key=key),
        loc.estimators.PES(unroll, num_pairs=2),
        num_steps=2,
        progress=None,
        key=key,
    )
    loc.meta.evaluate(learner, task, num_steps=2, splits=("test",), key=key)
    adam = lambda rate: loc.meta.evaluate(loc.OptaxOptimizer(optax.adam, rate), task, num_steps=2, key=key)  # noqa: E731
    loc.meta.sweep(adam, jnp.asarray([0.01, 0.1]))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
