from jaxtyping import PRNGKeyArray

from ..optimizers import ClippedByValue, NNAdam


def nn_adam(*, size: int = 32, pull: float = 0.0, key: PRNGKeyArray) -> ClippedByValue:
    """The optimizer NNAdam: Adam, with hyperparameters of each tensor that a recurrent network changes.

    **Arguments:**

    - `size`: the number of units of the network.
    - `pull`: how fast the hyperparameters return to where they started, see [`lo_components.optimizers.NNAdam`][].
    - `key`: for the initial weights.

    ??? cite "Source"
        `NNAdam` of google/learned_optimization; Metz et al. (arXiv 2203.11860).
    """
    return ClippedByValue(NNAdam(size, pull=pull, key=key))
