from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from .. import aggregators
from .._types import Params
from ..aggregators import AbstractAggregator
from ..nn import declared_parametrization, declared_widths
from ..optimizers import AbstractOptimizer, Scaled
from ..parametrization import SP, AbstractParametrization, WidthSpec
from ..tasks import AbstractTask

LearnerT = TypeVar("LearnerT", bound=AbstractOptimizer | AbstractAggregator)


def scaled_for(task: AbstractTask, learner: LearnerT, params: Params) -> LearnerT:
    """The learner with its updates multiplied by the scales of a task's parametrization.

    **Arguments:**

    - `task`: gives the widths and the parametrization.
    - `learner`: an optimizer or an aggregator, whose update rules determine the scales.
    - `params`: the task's parameters; only their structure and shapes matter.

    **Example:**

    ```pycon
    >>> mup, digits = loc.parametrization.MuP(), loc.data.digits()
    >>> task = loc.tasks.mlp_classification(digits, width=128, depth=2, parametrization=mup)
    >>> learner = loc.unroll.scaled_for(task, loc.pretrained("mulo"), task.init(key=jax.random.key(0)))
    >>> learner.scales.layers[1].weight
    0.0078125
    ```
    """
    return learner if task.widths is None else _scaled(learner, params, task.widths, task.parametrization)


def scaled_for_model(model: PyTree, learner: LearnerT) -> LearnerT:
    """The learner with its updates multiplied by the scales of the parametrization that a model was built with.

    For models without a task, in a training loop of your own:
    `loc.as_optax(loc.unroll.scaled_for_model(model, loc.pretrained("residual_muon")))`.

    **Arguments:**

    - `model`: a model whose arrays all belong to layers of `lo_components.nn`. For others, multiply by scales yourself
        ([`lo_components.optimizers.Scaled`][]).
    - `learner`: an optimizer or an aggregator, whose update rules determine the scales.

    Raises `ValueError` if arrays of the model belong to other layers, or if its layers were not built with one
    parametrization.
    """
    params, widths, parametrization = (
        eqx.filter(model, eqx.is_inexact_array),
        declared_widths(model),
        declared_parametrization(model),
    )
    if parametrization is None or jax.tree.structure(widths) != jax.tree.structure(params):
        raise ValueError(
            "`model` has arrays that no layer of `lo_components.nn` declares; use `optimizers.Scaled` with the scales "
            "of `parametrization.update_scales(widths, learner.update_rules(params))`."
        )
    return _scaled(learner, params, widths, parametrization)


def _scaled(learner: Any, params: Params, widths: PyTree[WidthSpec], parametrization: AbstractParametrization) -> Any:
    if isinstance(parametrization, SP):
        return learner
    scales = parametrization.update_scales(widths, learner.update_rules(params))
    if isinstance(learner, AbstractAggregator):
        return aggregators.Scaled(learner, scales)
    return Scaled(learner, scales)
