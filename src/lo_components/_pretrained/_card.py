import dataclasses
from typing import Any

from .._description import build, describe
from ..parametrization import AbstractParametrization


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a pretrained learner: how to use it, how it was meta-trained, and how to make it again.

    `print(card)` shows a field on each line. The fields from `meta_steps` on are filled in by
    [`lo_components.Pretrained`][]`.save`.

    **Arguments:**

    - `name`: the name of the learner and of its files.
    - `summary`: what it is, in one line.
    - `parametrization`: that of the networks to use it on, for instance `MuP()`.
    - `base_width`: the width at which all multipliers are 1; `None` for the absolute convention of the papers.
    - `base_in_size`: the number of inputs at which they are 1; `None` if inputs do not count as growing.
    - `learning_rate`: the learning rate that is built in; `None` if it has none.
    - `needs`: what `update` needs besides gradients, state and parameters: `"value"` (the loss), `"num_steps"`.
    - `tasks`: the tasks of meta-training.
    - `widths`: the widths of their networks.
    - `horizon`: the lengths of inner training.
    - `estimator`: the estimator of the meta-gradient, with its settings.
    - `seed`: the seed of meta-training.
    - `command`: makes it again, in a clone of the repository.
    - `source`: the paper.
    - `license`: that of the weights.
    - `meta_steps`: the number of meta-steps.
    - `meta_loss`: the mean meta-loss in the last tenth of meta-training; `None` if it was not recorded.
    - `seconds`: how long meta-training took; `None` if it was not recorded.
    - `hardware`: what it ran on.
    - `kind`: `"optimizer"` or `"aggregator"`.
    - `meta_parameters`: the size of theta.
    - `versions`: of this library and of jax, when the files were written.
    - `sha256`: the digest of the file of weights.
    """

    name: str
    summary: str
    parametrization: AbstractParametrization
    base_width: int | None
    base_in_size: int | None = None
    learning_rate: float | None = None
    needs: tuple[str, ...] = ()
    tasks: str
    widths: tuple[int, ...]
    horizon: str
    estimator: str
    seed: int
    command: str
    source: str
    license: str = "Apache-2.0"
    meta_steps: int = 0
    meta_loss: float | None = None
    seconds: float | None = None
    hardware: str = ""
    kind: str = ""
    meta_parameters: int = 0
    versions: str = ""
    sha256: str = ""

    def in_words(self) -> dict[str, str]:
        """Every field as text, by name."""
        return {name: _in_words(value) for name, value in vars(self).items()}

    def __str__(self) -> str:
        return "\n".join(f"{name.replace('_', ' '):<16}{text}" for name, text in self.in_words().items())


def _in_words(value: Any) -> str:
    if isinstance(value, AbstractParametrization):
        changed = [f"{f.name}={x}" for f in dataclasses.fields(value) if (x := getattr(value, f.name)) != f.default]
        return f"{type(value).__name__}({', '.join(changed)})"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "nothing"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def to_json(card: Card) -> dict[str, Any]:
    """The card as JSON can hold it."""
    return {**vars(card), "parametrization": describe(card.parametrization)[0]}


def from_json(fields: dict[str, Any]) -> Card:
    """The card that `to_json` was given."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Card(**{**fields, "parametrization": build(fields["parametrization"], {}, {})})
