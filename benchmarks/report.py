"""Write the rows of a benchmark."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jax

import lo_components

RESULTS = Path(__file__).parent / "results"


def write(out: Path, rows: list[dict], **more: Any) -> None:
    """Write `rows` and `more` to `out` as JSON, with what they depend on."""
    save(out, {**facts(), **more, "rows": rows})


def save(out: Path, content: dict[str, Any]) -> None:
    """Write `content` to `out` as JSON; the file is whole or absent at any time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(out)


def facts() -> dict[str, Any]:
    """The versions of jax and of the library, and the devices."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "commit": commit(),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
    }


def commit() -> str | None:
    """The commit of the library in use, with `-dirty` if it was changed since; `None` outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    folder = Path(lo_components.__file__).parent
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
