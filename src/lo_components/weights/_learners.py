from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx

from .._description import RESERVED, build, by_name, origin
from ._arrays import CheckpointError, read, write


def save(path: str | Path, learner: eqx.Module, *, card: Mapping[str, Any] = {}) -> None:
    """Write a learner to a safetensors file: its arrays, its parts and their constants.

    Writing is atomic and adds a checksum, as in [`lo_components.weights.save_arrays`][].

    **Arguments:**

    - `path`: the file, by convention `*.safetensors`; replaced if it exists.
    - `learner`: an optimizer, an aggregator or any other Equinox module. Its fields may hold modules, tuples, lists,
        dictionaries, arrays, numbers, strings, dtypes, and public functions of optax and jax.nn such as `optax.adam`.
    - `card`: anything JSON can hold, for instance the tasks and the length of meta-training, and the authors.

    Raises `TypeError` if `learner` is not a module, and `ValueError` if a file cannot hold one of its fields, which the
    error names, if two of its classes or arrays have the same name, or if JSON cannot hold the card.

    **Example:**

    ```pycon
    >>> learner = loc.recipes.mulo(key=jax.random.key(0))
    >>> loc.weights.save("mulo.safetensors", learner, card={"meta-trained on": "nothing yet"})
    >>> loc.weights.card("mulo.safetensors")
    {'meta-trained on': 'nothing yet'}
    ```
    """
    if not isinstance(learner, eqx.Module):
        raise TypeError(f"`learner` must be an Equinox module, such as the result of a recipe; got {learner!r}.")
    if RESERVED in card:
        raise ValueError(f"`card` must not have the key `{RESERVED}`, which describes the learner.")
    try:
        described, arrays = origin(learner)
    except ValueError as error:
        raise ValueError(f"`learner` cannot be saved: {error}") from None
    write(Path(path).expanduser(), arrays, {**card, RESERVED: described})


def load(path: str | Path, *, classes: Sequence[type] = ()) -> Any:
    """Read a learner from a file of `save` or a checkpoint of [`lo_components.meta.meta_train`][].

    No code from the file is run. Classes are looked up by name in this library and in `classes`, their fields are set,
    and their `__check_init__` is run.

    **Arguments:**

    - `path`: the file.
    - `classes`: classes of the learner that are not part of this library.

    **Returns:** the learner, with the same parts, constants and arrays, bit for bit.

    Raises `CheckpointError` if the file is truncated, differs in any byte from the one that was written, names a class
    that is neither in this library nor in `classes`, or does not describe a learner; `TypeError` if one of `classes` is
    not a concrete dataclass; `ValueError` if two of them have the same name.

    **Example:**

    ```pycon
    >>> learner = loc.recipes.mulo(key=jax.random.key(0))
    >>> loc.weights.save("mulo.safetensors", learner)
    >>> bool(eqx.tree_equal(loc.weights.load("mulo.safetensors"), learner))
    True
    ```
    """
    own = by_name(classes)
    arrays, metadata = read(Path(path).expanduser())
    match metadata.get(RESERVED):
        case {"version": str(version), "prefix": str(prefix), "learner": description}:
            pass
        case {"refused": str(reason)}:
            raise CheckpointError(
                f"`{path}` does not describe its learner, since {reason}: use `load_arrays(path, like)`."
            )
        case _:
            raise CheckpointError(f"`{path}` does not describe a learner: use `load_arrays(path, like)`.")
    named = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    try:
        learner = build(description, named, own)
        if named:
            raise ValueError(f"has an unexpected array `{min(named)}`")
        if not isinstance(learner, eqx.Module):
            raise ValueError("does not describe a module")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` {error}. It was written by lo_components {version}.") from None
    return learner


def card(path: str | Path) -> dict[str, Any]:
    """The card of a file of `save`; for a checkpoint, its meta-step, its meta-loss and the configuration of the run.

    **Arguments:**

    - `path`: the file.

    Raises `CheckpointError` if the file is truncated or differs in any byte from the one that was written.
    """
    return {name: value for name, value in read(Path(path).expanduser())[1].items() if name != RESERVED}
