"""Helpers for several test files. They import the package only inside functions (see conftest.py)."""

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

GOLDEN = Path(__file__).parent / "golden"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
SOURCE = Path(__file__).parent.parent / "src" / "lo_components"


class KeySource:
    """A new PRNG key on every call; the sequence is the same in every run."""

    def __init__(self, seed: int):
        self._seed, self._count = seed, 0

    def __call__(self):
        self._count += 1
        return jax.random.fold_in(jax.random.key(self._seed), self._count)


def SGD(learning_rate):
    from lo_components.optimizers import OptaxOptimizer

    return OptaxOptimizer(optax.sgd, learning_rate)


def Adam(learning_rate, **kwargs):
    from lo_components.optimizers import OptaxOptimizer

    return OptaxOptimizer(optax.adam, learning_rate, **kwargs)


def view_of(grad, param=None, step=0, **known):
    """What an accumulator sees of a tensor at one step."""
    from lo_components.accumulators import TensorView

    grad = jnp.asarray(grad, jnp.float32)
    param = jnp.zeros_like(grad) if param is None else param
    return TensorView(param, grad, (), jnp.asarray(step, jnp.int32), **known)


def assert_close(actual, expected, *, rtol=1e-5, atol=1e-7):
    """Assert equal structures, shapes and dtypes, and leaves that are equal within tolerance."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        a, b = jnp.asarray(a), jnp.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        np.testing.assert_allclose(
            np.asarray(a.astype(jnp.float32)), np.asarray(b.astype(jnp.float32)), rtol=rtol, atol=atol, err_msg=name
        )


def normal_tree(shapes: dict, key, dtype=jnp.float32) -> dict:
    """Normal samples of the given shapes, in the structure of `shapes` (dicts of tuples)."""
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten([jax.random.normal(k, s, dtype) for k, s in zip(keys, leaves, strict=True)])


def published(name: str) -> Path:
    """A published file: in `$LO_COMPONENTS_WEIGHTS`, else in `shared/weights` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "weights"
    return Path(os.environ.get("LO_COMPONENTS_WEIGHTS", beside)) / name


def published_weights(name: str) -> dict:
    path = published(f"{name}.npz")
    if not path.exists():
        pytest.skip(f"set LO_COMPONENTS_WEIGHTS to a folder that holds {path.name}")
    with np.load(path) as file:
        return dict(file)


def load_golden(name: str) -> dict:
    """A reference trajectory: `theta`, `params[t]` and `grads[t]`, keyed by leaf name (which may contain `/`)."""
    config = MANIFEST[name]
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)

    def under(prefix):
        return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}

    steps = config["T"]
    return {
        "config": config,
        "theta": published_weights(config["weights"]) if "weights" in config else under("theta/"),
        "losses": arrays.get("losses", np.zeros(steps, np.float32)),
        "params": [under(f"params/{t}/") for t in range(steps + 1)],
        "grads": [under(f"grads/{t}/") for t in range(steps)],
    }


def run_python(code: str, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter: no import hook, nothing imported yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)


class Watch:
    """Events that no file may cause while it watches: imports, code, processes, connections."""

    FORBIDDEN = ("exec", "compile", "os.", "subprocess", "pickle", "import", "socket", "ctypes", "shutil")

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self._notice)

    def _notice(self, event, args):
        if self.on and event.startswith(self.FORBIDDEN):
            self.seen.append((event, str(args)[:200]))


def refusals(attempts):
    """The message of each attempt's `ValueError`, or the returned value if there is no error."""
    found = {}
    for name, attempt in attempts.items():
        try:
            found[name] = str(attempt())
        except ValueError as error:
            found[name] = f"ValueError: {error}"
    return found


def public_objects() -> dict:
    """Every public class and function of the package, with one of its public names."""
    objects = {}
    for module in public_modules():
        for name, value in vars(module).items():
            defined_here = getattr(value, "__module__", "").startswith("lo_components")
            if not name.startswith("_") and defined_here and (inspect.isclass(value) or inspect.isfunction(value)):
                objects[value] = f"{module.__name__}.{name}"
    return objects


def public_modules() -> list:
    """The package itself, and its public subpackages and modules."""
    import lo_components

    names = [info.name for info in pkgutil.iter_modules(lo_components.__path__) if not info.name.startswith("_")]
    return [lo_components, *(importlib.import_module(f"lo_components.{name}") for name in names)]
