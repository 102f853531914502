"""Write the rows of a benchmark."""

import json
from pathlib import Path

import jax

RESULTS = Path(__file__).parent / "results"


def write(out: Path, rows: list[dict]) -> None:
    """Write `rows` to `out` as JSON, with the version of jax and the device."""
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
