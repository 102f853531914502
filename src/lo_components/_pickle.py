"""Read values from pickles without running them.

Not `pickle.Unpickler` with `find_class`: that runs no code either, but a key made of a million nested tuples crashes
Python, 300 bytes take forever to hash, and 9 bytes with a large memo index allocate 4 GB.
"""

from collections.abc import Callable, Iterator, Mapping
from pickletools import genops
from typing import Any, NamedTuple

_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Name(NamedTuple):
    """The function or class that a pickle refers to."""

    name: str


def _no_persistent_objects(identifier: Any) -> Any:
    raise ValueError("it asks for the operation BINPERSID")


def interpret(
    content: Any,
    *,
    names: Mapping[tuple[str, str], str],
    call: Callable[[Any, Any], Any],
    set_state: Callable[[Any, Any], None],
    persistent: Callable[[Any], Any] = _no_persistent_objects,
    max_operations: int,
) -> Any:
    """The value of a pickle, `bytes` or an `mmap`, on a stack machine that imports and calls nothing a file names.

    It does not recurse, and its allocations and the number of operations are bounded by the size of `content`. It has
    only the operations that build numbers, text, tuples, lists and dictionaries with text as keys. A file may ask for
    the `names`, by module and name, and gets a `Name`; what it does with them is up to `call(name, arguments)`,
    `set_state(state, target)` and `persistent(identifier)`, which raise `ValueError` for whatever they do not know.

    Raises `ValueError`, `IndexError` or `KeyError` if `content` is anything else.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int | None = None) -> list[Any]:
        """The last `count` values, or those since the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        if start < 0:
            raise ValueError("it takes more values from its stack than there are")
        values = stack[start:]
        del stack[start:]
        return values

    operations: Iterator[tuple[Any, Any, Any]] = genops(content)
    for count, (operation, argument, position) in enumerate(operations):
        if count > max_operations:
            raise ValueError("it has far more operations than a file of its size needs")
        match operation.name:
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(pop(int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(pop()))
            case "APPEND" | "APPENDS" as name:
                _extend(pop(1 if name == "APPEND" else None), stack[-1])
            case "SETITEM" | "SETITEMS" as name:
                _set_items(pop(2 if name == "SETITEM" else None), stack[-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_find_name(names, *argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_find_name(names, *pop(2)))
            case "BINPERSID":
                stack.append(persistent(*pop(1)))
            case "REDUCE":
                stack.append(call(*pop(2)))
            case "BUILD":
                set_state(pop(1)[0], stack[-1])
            case "STOP":
                value = stack.pop()
                if stack:
                    raise ValueError("it has more values than one")
                if position != len(content) - 1:
                    raise ValueError("something follows its end")
                return value
            case name:
                raise ValueError(f"it asks for the operation {name}")


def _extend(values: list[Any], target: Any) -> None:
    if type(target) is not list:
        raise ValueError("it appends to something that is not a list")
    target.extend(values)


def _set_items(items: list[Any], target: Any) -> None:
    keys = items[::2]
    # No other keys are needed, and hashing nested tuples recurses.
    if type(target) is not dict or not all(isinstance(key, str) for key in keys):
        raise ValueError("it contains a dictionary whose keys are not strings")
    size = len(target) + len(keys)
    target.update(zip(keys, items[1::2], strict=True))
    if len(target) != size:
        raise ValueError("it contains a dictionary with a key twice")


def _find_name(names: Mapping[tuple[str, str], str], module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("it asks for a name that is not text")
    if (module, name) not in names:
        raise ValueError(f"it asks for `{module[:80]}.{name[:80]}`")
    return Name(names[module, name])
