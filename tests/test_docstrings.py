"""The examples in docstrings run, and print what they say."""

import doctest
import inspect
import re
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import public_objects

import lo_components as loc

_BLOCK = re.compile(r"^ *```pycon\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_EXAMPLES = {
    name: [textwrap.dedent(code) for code in _BLOCK.findall(inspect.getdoc(thing) or "")]
    for thing, name in public_objects().items()
}


@pytest.mark.usefixtures("quick_compilation", "standard_promotion")
@pytest.mark.parametrize("name", [name for name, blocks in _EXAMPLES.items() if blocks])
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in _EXAMPLES[name]:
        names = dict(eqx=eqx, jax=jax, jnp=jnp, loc=loc, optax=optax)
        test = doctest.DocTestParser().get_doctest(code, names, name, None, None)
        found: list[str] = []
        doctest.DocTestRunner(verbose=False).run(test, out=found.append)
        assert not found, "".join(found)


def test_every_prompt_is_in_a_block_that_runs():
    for thing, name in public_objects().items():
        prompts = len(re.findall(r"^ *>>> ", inspect.getdoc(thing) or "", re.MULTILINE))
        assert prompts == sum(code.count(">>> ") for code in _EXAMPLES[name]), name
