import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._atomic import exclusive, write_atomically

_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run.

    `config.json` and `constants.json` identify the run, `log.jsonl` and the checkpoints hold its progress, and `.lock`
    exists while a process writes here.

    **Arguments:**

    - `path`: the folder.
    - `config`: the configuration that identifies the run.
    """

    path: Path
    config: dict[str, Any]

    @staticmethod
    def open(path: str | Path, config: Mapping[str, Any]) -> "RunFolder":
        """The folder of the run with this configuration, created if it does not exist.

        **Arguments:**

        - `path`: the folder; `~` is the home folder.
        - `config`: identifies the run, as JSON.

        Raises `FileExistsError` if the folder holds anything else, which is left untouched; `PermissionError` if it
        cannot be written; `ValueError` if JSON cannot hold `config`.
        """
        path = Path(path).expanduser()
        try:
            text = json.dumps(dict(config), indent=1, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`config` must be anything JSON can hold ({error}).") from None
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"`{path}` is a file; give a folder to write to.")
        stamp = path / "config.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            found = sorted(p.name for p in path.iterdir() if not p.name.startswith((f".{stamp.name}.", _LOCK)))
        except OSError as error:
            raise _not_writable(path, error) from None
        expected = json.loads(text)
        if found:
            _check_stamp(stamp, expected, found)
            return RunFolder(path, expected)
        try:
            write_atomically(stamp, text.encode())
        except OSError as error:
            raise _not_writable(path, error) from None
        return RunFolder(path, expected)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A block in which no other process can write here, until it or this process ends, even if that is killed.

        Reading needs no lock. File systems without locks are not protected.

        Raises `FileExistsError` if another process, or another thread of this one, has the lock.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self.path / _LOCK))
            except BlockingIOError as error:
                raise FileExistsError(
                    f"`{self.path}` is in use by {error}; wait until it ends, or choose another folder."
                ) from None
            except OSError as error:
                raise _not_writable(self.path, error) from None
            yield

    def claim(self, constants: Mapping[str, str]) -> None:
        """Record the constants of a run, or check them against the recorded ones.

        Constants are checked if there are checkpoints, and recorded otherwise. Names that only one side has, for
        instance those of another version, are not compared.

        **Arguments:**

        - `constants`: by name, as text.

        Raises `FileExistsError` if a constant differs; nothing is changed then.
        """
        stamp = self.path / "constants.json"
        if not (self.checkpoints and stamp.exists()):
            write_atomically(stamp, json.dumps(dict(constants), indent=1).encode())
            return
        try:
            actual = dict(json.loads(stamp.read_text()))
        except (ValueError, TypeError):
            raise FileExistsError(
                f"`{stamp}` is corrupt. Delete it if the run started with the present constants."
            ) from None
        differing = [name for name in constants if name in actual and actual[name] != constants[name]]
        if differing:
            words = [
                f"`{_short(name)}` is {_short(actual[name])} there, {_short(constants[name])} here"
                for name in differing[:3]
            ]
            more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
            raise FileExistsError(
                f"`{self.path}` belongs to a run with other constants ({'; '.join([*words, *more])}); it was left "
                f"untouched. Choose another folder, or delete its `{stamp.name}` if it is the same run."
            )

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after `step` meta-steps."""
        return self.path / f"checkpoint-{step:08d}.safetensors"

    @property
    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(self.path.glob("checkpoint-*.safetensors"), key=lambda path: (len(path.name), path.name))

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest meta-loss."""
        return self.path / "best.safetensors"

    @property
    def _log(self) -> Path:
        return self.path / "log.jsonl"

    def log(self, row: Mapping[str, Any]) -> None:
        """Append `row` to the log as one line; numbers that are not finite become `null`."""
        with self._log.open("a") as file:
            file.write(json.dumps({k: v if math.isfinite(v) else None for k, v in row.items()}) + "\n")

    def truncate_log(self, step: int) -> None:
        """Remove the lines after meta-step `step` and a truncated last line; a resumed run writes them again."""
        if not self._log.exists():
            return
        kept = []
        for line in self._log.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["step"] <= step:
                kept.append(line + "\n")
        write_atomically(self._log, "".join(kept).encode())


def _check_stamp(stamp: Path, expected: dict[str, Any], found: list[str]) -> None:
    """Raise unless the folder's `config.json` is the expected one."""
    if stamp.name not in found:
        raise FileExistsError(
            f"`{stamp.parent}` holds something else ({', '.join(found[:3])}); it was left untouched. Choose an empty "
            "folder."
        )
    try:
        actual = json.loads(stamp.read_text())
    except ValueError:
        actual = None
    if actual != expected:
        raise FileExistsError(
            f"`{stamp.parent}` belongs to a run with another configuration{_difference(actual, expected)}; it was left "
            "untouched. Choose another folder, or delete this one."
        )


def _short(text: str) -> str:
    """A text of at most 60 characters, without its middle."""
    return text if len(text) <= 60 else f"{text[:20]}...{text[-37:]}"


def _not_writable(path: Path, error: OSError) -> PermissionError:
    return PermissionError(f"`{path}` cannot be written to ({error.strerror}); choose another folder.")


def _difference(actual: Any, expected: dict[str, Any]) -> str:
    if not isinstance(actual, dict):
        return ""
    for key in sorted(set(actual) | set(expected)):
        if actual.get(key) != expected.get(key):
            return f" (`{key}` is {actual.get(key)!r} there, {expected.get(key)!r} here)"
    return ""
