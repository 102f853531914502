"""The collective operations of a compiled program, read from its HLO."""

import math
import re

_CALL = re.compile(
    r"^\s*(?:ROOT )?%?\S+ = (?P<shape>\(.*?\)|\S+) "
    r"(?P<kind>all-(?:reduce|gather)|(?:ragged-)?all-to-all|reduce-scatter|collective-[a-z]+|send|recv)(?:-start)?\(",
    re.MULTILINE,
)
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<sizes>[\d,]*)\]")


def collectives(hlo: str) -> list[dict]:
    """Kind and bytes of the result of each collective operation in the text of a compiled program."""
    return [{"kind": m["kind"], "bytes": sum(map(_bytes, _ARRAY.finditer(m["shape"])))} for m in _CALL.finditer(hlo)]


def bytes_sent(found: list[dict], devices: int) -> float:
    """The bytes that each device sends in these operations, if `devices` devices form a ring."""
    rounds = {"all-reduce": 2, "all-gather": 1, "all-to-all": 1, "reduce-scatter": devices}
    fraction = (devices - 1) / devices
    return sum(c["bytes"] * (rounds[c["kind"]] * fraction if c["kind"] in rounds else 1) for c in found)


def leading_sizes(hlo: str) -> set[int]:
    """The sizes of the leading axes of all arrays with at least two axes."""
    shapes = (m["sizes"].split(",") for m in _ARRAY.finditer(hlo))
    return {int(sizes[0]) for sizes in shapes if len(sizes) > 1}


def _bytes(array: re.Match) -> int:
    size = math.prod(int(n) for n in array["sizes"].split(",") if n)
    return size * max(1, int(array["bits"] or 8) // 8)
