from typing import Unpack

from jaxtyping import PRNGKeyArray

from .. import accumulators as acc
from .. import features as ft
from ..optimizers import LearnedOptimizer
from ._options import HeadOptions, Options
from ._pipelines import with_factored_features, with_mlp


def small_fc_lopt(*, key: PRNGKeyArray, **options: Unpack[Options]) -> LearnedOptimizer:
    """The per-parameter MLP optimizer small_fc_lopt, with 39 features and meta-learned decay rates.

    **Arguments:**

    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.Options`][]; `hidden_size` is 4 by default, as in the original.

    **Example:**

    ```pycon
    >>> learner = loc.recipes.small_fc_lopt(hidden_layers=1, key=jax.random.key(0))
    >>> [weight.shape for weight in learner.pipeline.head.weights]
    [(39, 4), (4, 2)]
    ```

    ??? cite "Source"
        `AdafacMLPLOpt` of google/learned_optimization; described in Metz et al., *Practical tradeoffs between memory,
        compute, and performance in learned optimizers* (arXiv 2203.11860).
    """
    options = {"hidden_size": 4, **options}
    return LearnedOptimizer(with_factored_features(ft.Gradient(), key=key, **options))


def mulo(*, key: PRNGKeyArray, **options: Unpack[Options]) -> LearnedOptimizer:
    """The learned optimizer of the muLO paper: small_fc_lopt with 32 hidden units and a step multiplier of 0.01.

    To get muLO, meta-train and use it on networks under [`lo_components.parametrization.MuP`][]; inner steps apply the
    update scales.

    **Arguments:**

    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.Options`][]; `step_mult` is 0.01 by default.

    **Example:**

    ```pycon
    >>> learner = loc.recipes.mulo(hidden_size=8, key=jax.random.key(0))
    >>> learner.pipeline.step_rule.step_mult
    0.01
    ```

    ??? cite "Source"
        Thérien et al., *muLO: Compute-Efficient Meta-Generalization of Learned Optimizers* (arXiv 2406.00153).
    """
    options = {"step_mult": 1e-2, **options}
    return LearnedOptimizer(with_factored_features(ft.Gradient(), key=key, **options))


def lolv2(
    *,
    decays: tuple[float, ...] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999),
    key: PRNGKeyArray,
    **options: Unpack[HeadOptions],
) -> LearnedOptimizer:
    """The simplest MLP optimizer, which sees the gradient, the parameter, six momenta and the time.

    It has 19 features; decay rates are constants.

    **Arguments:**

    - `decays`: the decay rates of the momenta.
    - `key`: for the initial weights.
    - `options`: see [`lo_components.recipes.HeadOptions`][].

    ??? cite "Source"
        `MLPLOpt` (LOLv2) of google/learned_optimization; Metz et al. (arXiv 2203.11860).
    """
    features = ft.Concat(ft.Gradient(), ft.Parameter(), ft.Momenta(len(decays)))
    return LearnedOptimizer(with_mlp((acc.Momentum(decays),), features, key=key, **options))
