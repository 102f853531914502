from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import _tree
from ..unroll import InnerState
from ._evolution import AbstractEvolutionStrategy, score
from ._pairs import PairOutput, stacked, unroll_pair


class AbstractFreshNoise(AbstractEvolutionStrategy):
    """Noise that is drawn anew in each estimate, and nothing to carry."""

    def init_noise(self, draw, std):
        return None

    def noise(self, draw, std, carried, restart):
        return draw, score(draw, std), None


class TruncatedES(AbstractFreshNoise):
    r"""Evolution strategies on each window alone: $\hat g = \frac1n \sum_i \frac{L_w^+ - L_w^-}{2\sigma^2}\epsilon_w$.

    Biased where an episode has more than one window: it ignores what earlier windows' parameters owe to $\theta$.
    With one window per episode it equals [`lo_components.estimators.PES`][]. Arguments are those of
    [`lo_components.estimators.AbstractEvolutionStrategy`][].

    ??? cite "Source"
        Metz et al., *Understanding and correcting pathologies in the training of learned optimizers*
        (arXiv 1810.10180), section 3.
    """


class FullES(AbstractFreshNoise):
    r"""Evolution strategies on whole episodes: $\hat g = \frac1n \sum_i \frac{L^+ - L^-}{2\sigma^2}\epsilon$, with $L$
    the meta-loss of an episode that begins anew in each estimate.

    Unbiased for the smoothed meta-loss, with as many steps per estimate as the longest of the pairs' episodes. Horizons
    may differ between pairs; none is compiled for. Arguments are those of
    [`lo_components.estimators.AbstractEvolutionStrategy`][].

    ??? cite "Source"
        Salimans et al., *Evolution Strategies as a Scalable Alternative to Reinforcement Learning* (arXiv 1703.03864).
    """

    def _run(self, learner: Any, pair: Any, inner: InnerState, *, key: PRNGKeyArray) -> PairOutput:
        start_key, key = jax.random.split(key)
        begun = stacked(self.unroll.start(learner, key=start_key))
        # The first window starts the episode again, with each member's own learner.
        begun = eqx.tree_at(lambda s: s.done, begun, jnp.asarray(True))

        def window(carry):
            count, sums, finite, state = carry
            out = unroll_pair(self.unroll, pair, state, key=jax.random.fold_in(key, count))
            numbers = (out.meta_losses, out.difference, out.loss, out.clipped)
            return count + 1, jax.tree.map(jnp.add, sums, numbers), finite & out.finite, out.state

        def running(carry):
            count, *_, state = carry
            return (count == 0) | ~state.done

        zero = jnp.zeros((), jnp.float32)
        start = jnp.zeros((), jnp.int32), (jnp.zeros(2, jnp.float32), zero, zero, zero), jnp.ones(2, bool), begun
        count, sums, finite, state = jax.lax.while_loop(running, window, start)
        meta_losses, difference, loss, clipped = (x / count.astype(jnp.float32) for x in sums)
        return PairOutput(meta_losses, difference, loss, clipped, finite, state)


class ESSingle(AbstractEvolutionStrategy):
    r"""ES-Single, or noise-reuse ES: one draw for a whole episode, $\hat g = \frac1n \sum_i \frac{L_w^+ -
    L_w^-}{2\sigma^2}\epsilon$ in each of its windows $w$.

    Averaged over an episode's windows this is an unbiased estimate of the gradient of the smoothed meta-loss, whose
    variance does not depend on the number of windows where their losses agree. Noise is drawn anew exactly where an
    episode begins. A standard deviation that changes takes effect with the next episode. Arguments are those of
    [`lo_components.estimators.AbstractEvolutionStrategy`][].

    ??? cite "Source"
        Vicol, *Low-Variance Gradient Estimation in Unrolled Computation Graphs with ES-Single* (arXiv 2304.11153);
        Li et al., *Noise-Reuse in Online Evolution Strategies* (arXiv 2304.12180).
    """

    def init_noise(self, draw, std):
        return draw, std

    def noise(self, draw, std, carried, restart):
        noise, std = carried = _tree.where(restart, (draw, std), carried)
        return noise, score(noise, std), carried
