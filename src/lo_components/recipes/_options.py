from typing import TypedDict


class HeadOptions(TypedDict, total=False):
    """Keywords of all recipes: the size of the MLP, and the constants of its step.

    **Arguments:**

    - `hidden_size`: units in each hidden layer of the MLP; 32 by default, as in both papers.
    - `hidden_layers`: the number of hidden layers; 2 by default.
    - `step_mult`, `exp_mult`: constants of [`lo_components.steps.DirectionMagnitude`][]; 0.001 by default.
    """

    hidden_size: int
    hidden_layers: int
    step_mult: float
    exp_mult: float


class Options(HeadOptions, total=False):
    """Keywords of recipes with the accumulators of small_fc_lopt.

    **Arguments:**

    - `momentum_decays`: initial decay rates of the momenta; 0.9, 0.99 and 0.999 by default.
    - `rms_decay`: initial decay rate of the squared gradient; 0.999 by default.
    - `factored_decays`: initial decay rates of the factored squares, as many as there are momenta; 0.9, 0.99 and 0.999
        by default.
    """

    momentum_decays: tuple[float, ...]
    rms_decay: float
    factored_decays: tuple[float, ...]
