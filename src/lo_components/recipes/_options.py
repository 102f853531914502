from typing import TypedDict

from jaxtyping import Array, Float


class HeadOptions(TypedDict, total=False):
    """Keyword arguments of all recipes: the size of the MLP and the constants of its step rule.

    **Arguments:**

    - `hidden_size`: the number of units in each hidden layer; 32 by default, as in the muLO and LAgg-A papers.
    - `hidden_layers`: the number of hidden layers; 2 by default.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][]; 0.001 by default. Arrays are
        meta-learned.
    """

    hidden_size: int
    hidden_layers: int
    step_mult: float | Float[Array, ""]
    exp_mult: float | Float[Array, ""]


class Options(HeadOptions, total=False):
    """Keyword arguments of recipes with the accumulators of small_fc_lopt.

    **Arguments:**

    - `hidden_size`, `hidden_layers`, `step_mult`, `exp_mult`: as in [`lo_components.recipes.HeadOptions`][].
    - `momentum_decays`: initial decay rates of the momenta; 0.9, 0.99 and 0.999 by default.
    - `rms_decay`: initial decay rate of the squared gradient; 0.999 by default.
    - `factored_decays`: initial decay rates of the factored squares; 0.9, 0.99 and 0.999 by default. Recipes raise
        `ValueError` unless there are as many as momenta.
    """

    momentum_decays: tuple[float, ...]
    rms_decay: float
    factored_decays: tuple[float, ...]
