"""The published evolution strategies for truncated unrolls, each defined by its noise."""

from typing import TypedDict, Unpack

from ..unroll import TruncatedUnroll
from ._evolution import EvolutionStrategy, Std
from ._noise import FreshNoise, PersistentNoise
from ._shaping import AbstractShaping


class Options(TypedDict, total=False):
    """The keyword arguments of all evolution strategies."""

    std: float | Std
    antithetic: bool
    shaping: AbstractShaping
    leave_out_non_finite: bool


def PES(unroll: TruncatedUnroll, num_pairs: int = 8, **options: Unpack[Options]) -> EvolutionStrategy:
    r"""Persistent Evolution Strategies: unbiased estimates from truncated unrolls.

    In every truncation window $w$, pair $i$ has new noise $\epsilon_w \sim \mathcal N(0, \sigma_w^2)$. With $L^\pm_w$
    the contributions of the window to the meta-losses of its two members,

    $$\hat g = \frac1n \sum_i \frac{L_w^+ - L_w^-}{2} \sum_{u \le w} \frac{\epsilon_u}{\sigma_u^2},$$

    where the sum restarts with each episode. Averaged over the windows of an episode, this is unbiased for the
    Gaussian-smoothed meta-loss.

    **Arguments:**

    - `unroll`: inner training.
    - `num_pairs`: $n$, the number of antithetic pairs.
    - `options`: the keyword arguments of [`lo_components.estimators.EvolutionStrategy`][], for instance `std`.

    **Returns:** an evolution strategy with `PersistentNoise(1)`.

    **Example:**

    ```pycon
    >>> unroll = loc.unroll.TruncatedUnroll(loc.tasks.Quadratic(start=jnp.ones(4)), horizon=100, window=20)
    >>> loc.estimators.PES(unroll, num_pairs=4, std=0.05).num_pairs
    4
    ```

    ??? cite "Source"
        Vicol, Metz & Sohl-Dickstein, *Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent
        Evolution Strategies* (arXiv 2112.13835), equation 9 and algorithm 2.
    """
    return EvolutionStrategy(unroll, PersistentNoise(1), num_pairs, **options)


def GPES(
    unroll: TruncatedUnroll, num_pairs: int = 8, *, windows_per_draw: int, **options: Unpack[Options]
) -> EvolutionStrategy:
    r"""Generalized Persistent Evolution Strategies: noise that is resampled every $K$ truncation windows.

    $$\hat g = \frac1n \sum_i \frac{L_w^+ - L_w^-}{2} \sum_{j \le w / K} \frac{\epsilon_j}{\sigma_j^2},$$

    with $\epsilon_j$ the noise of windows $jK, \dots, (j + 1)K - 1$ of the episode, counted from 0. It is
    [`lo_components.estimators.PES`][] if $K = 1$, and [`lo_components.estimators.ESSingle`][] if $K$ is the number of
    windows in an episode. For every $K$ it is unbiased for the smoothed meta-loss.

    **Arguments:**

    - `unroll`: inner training.
    - `num_pairs`: $n$, the number of antithetic pairs.
    - `windows_per_draw`: $K$. Changing it does not recompile.
    - `options`: the keyword arguments of [`lo_components.estimators.EvolutionStrategy`][], for instance `std`.

    **Returns:** an evolution strategy with `PersistentNoise(windows_per_draw)`.

    Raises `ValueError` if `windows_per_draw` is below 1.

    ??? cite "Source"
        Li et al., *Noise-Reuse in Online Evolution Strategies* (arXiv 2304.12180).
    """
    return EvolutionStrategy(unroll, PersistentNoise(windows_per_draw), num_pairs, **options)


def ESSingle(unroll: TruncatedUnroll, num_pairs: int = 8, **options: Unpack[Options]) -> EvolutionStrategy:
    r"""ES-Single, also called noise-reuse ES: one sample of the noise for a whole episode.

    In each truncation window $w$ of the episode, $\hat g = \frac1n \sum_i \frac{L_w^+ - L_w^-}{2\sigma^2}\epsilon$.
    Averaged over the windows of an episode, this is unbiased for the smoothed meta-loss, and its variance does not grow
    with the number of windows. A standard deviation that changes takes effect with the next episode.

    **Arguments:**

    - `unroll`: inner training.
    - `num_pairs`: $n$, the number of antithetic pairs.
    - `options`: the keyword arguments of [`lo_components.estimators.EvolutionStrategy`][], for instance `std`.

    **Returns:** an evolution strategy with `PersistentNoise(None)`.

    **Example:**

    ```pycon
    >>> unroll = loc.unroll.TruncatedUnroll(loc.tasks.Quadratic(start=jnp.ones(4)), horizon=100, window=20)
    >>> loc.estimators.ESSingle(unroll, num_pairs=4, std=0.05).num_pairs
    4
    ```

    ??? cite "Source"
        Vicol, *Low-Variance Gradient Estimation in Unrolled Computation Graphs with ES-Single* (arXiv 2304.11153);
        Li et al., *Noise-Reuse in Online Evolution Strategies* (arXiv 2304.12180).
    """
    return EvolutionStrategy(unroll, PersistentNoise(None), num_pairs, **options)


def TruncatedES(unroll: TruncatedUnroll, num_pairs: int = 8, **options: Unpack[Options]) -> EvolutionStrategy:
    r"""Evolution strategies on each truncation window alone: $\hat g = \frac1n \sum_i \frac{L_w^+ -
    L_w^-}{2\sigma^2}\epsilon_w$.

    Biased if an episode has more than one window, since it ignores how the initial state of a window depends on theta
    (truncation bias). With one window per episode it equals [`lo_components.estimators.PES`][].

    **Arguments:**

    - `unroll`: inner training.
    - `num_pairs`: $n$, the number of antithetic pairs.
    - `options`: the keyword arguments of [`lo_components.estimators.EvolutionStrategy`][], for instance `std`.

    **Returns:** an evolution strategy with [`lo_components.estimators.FreshNoise`][].

    ??? cite "Source"
        Metz et al., *Understanding and correcting pathologies in the training of learned optimizers*
        (arXiv 1810.10180), section 3.
    """
    return EvolutionStrategy(unroll, FreshNoise(), num_pairs, **options)
