"""Pipelines map a tensor's gradient to its update: accumulators, features, a head and a step rule."""

from ._pipeline import Pipeline as Pipeline
from ._trees import PipelineState as PipelineState
from ._trees import init_tree as init_tree
from ._trees import summarize_tree as summarize_tree
from ._trees import update_tree as update_tree
