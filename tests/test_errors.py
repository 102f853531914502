"""Common mistakes raise one sentence that fits on a screen and names something of the user's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Each message must hold these words: the argument or leaf, and the way out.
EXPECTED = {
    "init of a model with functions in it": ("`params`", "eqx.filter"),
    "an integer leaf": ("`params`", "`steps`", "int32"),
    "a Python number as a leaf": ("`params`", "`scale`"),
    "one None in the gradients": ("`grads`", "lacks"),
    "a gradient of another shape": ("`grads`", "(7,)"),
    "gradients of the whole model": ("`grads`",),
    "no parameters": ("`params`", "update(grads, state, params)"),
    "the state of another model": ("`state`", "`init`"),
    "the state of another optimizer": ("`state`", "PipelineState"),
    "the state of another recipe": ("`state`", "`init`"),
    "a recipe instead of its result": ("`optimizer`", "small_fc_lopt", "call it"),
    "a recipe inside a wrapper": ("`optimizer`", "small_fc_lopt", "call it"),
    "an aggregator in as_optax": ("`optimizer`", "`Mean`", "aggregator"),
    "a learned aggregator in as_optax": ("`optimizer`", "`LearnedAggregator`", "aggregator"),
    "theta alone": ("`optimizer`", "equinox.combine"),
    "Clipped with its arguments exchanged": ("`optimizer`", "1.0"),
    "Scaled with its arguments exchanged": ("`optimizer`",),
    "scales of another model": ("`scales`",),
    "one scale too few": ("`scales`", "`b`"),
    "one scale too many": ("`scales`", "`b`"),
    "widths as scales": ("`scales`", "update_scales"),
    "muP inside optax.flatten": ("`scales`", "optax.flatten"),
    "one loss per example": ("`loss`", "(7,)"),
    "a feature that needs the length of training": ("`num_steps`", "StepContext"),
    "a feature of aggregators in an optimizer": ("`deltas`", "LearnedAggregator"),
    "something else as optimizer": ("`transformation`",),
    "an optimizer in LocalRound's place of an aggregator": ("`learner`", "aggregator"),
    "an aggregator in a gradient step": ("`learner`", "LocalRound"),
    "something else as an outer optimizer": ("`optimizer`",),
    "an optimizer as aggregator": ("`aggregator`",),
    "a seed instead of a key": ("`key`", "jax.random.key(0)"),
    "a number of steps that is not whole": ("`num_steps`", "int", "2.5"),
    "the task and the learner exchanged": ("`learner`", "`"),
    "deltas without workers": ("`deltas`", "workers"),
}


@pytest.fixture(scope="module")
def messages() -> dict[str, str | None]:
    command = [sys.executable, Path(__file__).with_name("mistakes.py")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_every_mistake_is_listed(messages):
    assert messages.keys() == EXPECTED.keys()


@pytest.mark.parametrize("mistake", EXPECTED)
def test_a_mistake_raises_one_short_sentence_that_says_what_to_do(messages, mistake):
    message = messages[mistake]
    assert message is not None, "no error"
    assert len(message) < 600, message
    assert "\n" not in message
    assert all(words in message for words in EXPECTED[mistake]), message
