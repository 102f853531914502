import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from .. import meta, weights
from .._atomic import write_atomically
from .._description import version
from .._learner import theta
from .._types import typechecked
from ..aggregators import AbstractAggregator
from ..optimizers import AbstractOptimizer
from ._card import Card, from_json, to_json


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A folder of pretrained learners, each with a file of weights, `NAME.safetensors`, and a card, `NAME.json`.

    `lo_components.pretrained` is the folder within this package. Files are read when they are asked for, not before;
    `print` lists the learners, with a line each.

    **Arguments:**

    - `folder`: the folder; `~` is the home folder.

    **Example:**

    ```pycon
    >>> loc.pretrained.names()[-1]
    'residual_muon'
    >>> optimizer = loc.as_optax(loc.pretrained("residual_muon"))
    ```
    """

    folder: str | Path

    def __call__(self, name: str) -> Any:
        """The learner called `name`: an optimizer or an aggregator.

        Raises `ValueError` if there is none of this name, and `CheckpointError` if the file of weights is not the one
        that the card describes.
        """
        card, path = self.card(name), self._weights(name)
        if _sha256(path) != card.sha256:
            raise weights.CheckpointError(f"`{path}` is not the file that its card describes; restore both files.")
        return weights.load(path)

    def names(self) -> tuple[str, ...]:
        """The names of all learners in the folder, sorted."""
        return tuple(sorted(path.stem for path in self._path.glob("*.json")))

    def card(self, name: str) -> Card:
        """The card of the learner called `name`.

        Raises `ValueError` if there is none of this name.
        """
        if name not in self.names():
            raise ValueError(f"`name` must be one of {', '.join(self.names()) or '(none)'}, got {name!r}.")
        return from_json(json.loads(self._card(name).read_text()))

    @typechecked
    def save(
        self, learner: AbstractOptimizer | AbstractAggregator, card: Card, *, runs: Sequence[str | Path] = ()
    ) -> Card:
        """Write `learner` and `card` to the folder, and replace files of the same name.

        The card is in the file of weights too, which has a checksum, and the digest of this file is in the card. So
        neither of them can be edited without the other.

        **Arguments:**

        - `learner`: an optimizer or an aggregator, as in [`lo_components.weights.save`][].
        - `card`: its card, whose fields from `meta_steps` on need not be given.
        - `runs`: the folders of its [`lo_components.meta.meta_train`][], one for each stage, in order. Meta-steps,
            meta-loss and seconds are read from their logs, and `hardware` becomes that of this process.

        **Returns:** the card as it was written.
        """
        card = dataclasses.replace(
            card,
            kind="optimizer" if isinstance(learner, AbstractOptimizer) else "aggregator",
            meta_parameters=sum(x.size for x in jax.tree.leaves(theta(learner))),
            versions=f"lo_components {version()}, jax {jax.__version__}",
            sha256="",
            **(_meta_training(runs) if runs else {}),
        )
        self._path.mkdir(parents=True, exist_ok=True)
        weights.save(self._weights(card.name), learner, card=to_json(card))
        card = dataclasses.replace(card, sha256=_sha256(self._weights(card.name)))
        write_atomically(self._card(card.name), (json.dumps(to_json(card), indent=1) + "\n").encode())
        return card

    def __str__(self) -> str:
        names = self.names()
        width = max(map(len, names), default=0) + 2
        return "\n".join(f"{name:<{width}}{self.card(name).summary}" for name in names)

    @property
    def _path(self) -> Path:
        return Path(self.folder).expanduser()

    def _weights(self, name: str) -> Path:
        return self._path / f"{name}.safetensors"

    def _card(self, name: str) -> Path:
        return self._path / f"{name}.json"


def _meta_training(runs: Sequence[str | Path]) -> dict[str, Any]:
    """The fields of a card that the logs of meta-training tell."""
    logs = [meta.read_log(run) for run in runs]
    last = [row["meta_loss"] for row in logs[-1][len(logs[-1]) * 9 // 10 :]]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return dict(
        meta_steps=sum(log[-1]["step"] for log in logs),
        meta_loss=sum(last) / len(last),
        seconds=sum(log[-1]["seconds"] for log in logs),
        hardware=f"{jax.devices()[0].device_kind}, {cores} core{'s' * (cores != 1)}",
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


pretrained = Pretrained(Path(__file__).parent)
"""The learners that this package contains, a [`lo_components.Pretrained`][] folder."""
