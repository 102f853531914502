"""The names that the original implementations of VeLO, Celo, Celo-Adam, Sinv6 and Celo2 give to arrays of a learner."""

from typing import Any

# Arrays that have no effect in the original.
UNUSED = tuple(f"rnn_params/{layer}/{kind}" for layer in ("linear", "rnn_to_controls") for kind in "wb")
# The sizes of the groups of channels, each of which has its own weights in the first layer.
GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
MLP = "ff_mod_stack/~/"
# The number of outputs of the MLP, of which the last, or the last two, are unused.
OUTPUTS = 3


def _recurrent(network: Any, readout: str) -> tuple[list[str], list[Any]]:
    """The arrays of a `LearnedSchedule` or a `MixingController`, whose last layer the original calls `readout`."""
    layers = {
        "linear_1": network.rectified,
        "linear_2": network.skip,
        "rnn/linear": network.lstm,
        readout: network.readout,
    }
    arrays = {f"rnn_params/{name}/w": layer.weight for name, layer in layers.items()}
    arrays |= {f"rnn_params/{name}/b": layer.bias for name, layer in layers.items()}
    start = network.start
    arrays |= {"lstm_init_state/hidden": start.hidden, "lstm_init_state/cell": start.cell}
    return list(arrays), list(arrays.values())


def _mlp(head: Any) -> tuple[list[str], list[Any]]:
    layers = range(len(head.weights))
    return [f"{MLP}w{i}" for i in layers] + [f"{MLP}b{i}" for i in layers], [*head.weights, *head.biases]


def velo_parts(learner: Any) -> tuple[list[str], list[Any]]:
    controlled = learner.optimizer
    return _joined(_mlp(controlled.pipeline.head.networks), _recurrent(controlled.controller, "readout"))


def celo_parts(learner: Any) -> tuple[list[str], list[Any]]:
    return _joined(_mlp(learner.optimizer.optimizer.pipeline.head), schedule_parts(learner))


def schedule_parts(learner: Any) -> tuple[list[str], list[Any]]:
    return _recurrent(learner.optimizer.schedule.schedule, "step_size")


def direction_parts(learner: Any) -> tuple[list[str], list[Any]]:
    return _mlp(learner.optimizer.pipeline.head)


def _joined(*parts: tuple[list[str], list[Any]]) -> tuple[list[str], list[Any]]:
    return [name for names, _ in parts for name in names], [array for _, arrays in parts for array in arrays]
