"""Lets labels travel through a captured forward pass, step by step, by the rules."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tersor.models.program import Step, Tensor, Value, leaves
from tersor.pipeline.structure.capture import Captured
from tersor.pipeline.structure.flow import Flow
from tersor.pipeline.structure.rules import RULES


def run(captured: Captured, decisions: Mapping[Any, int]) -> Flow:
    """Let labels travel through all steps.

    Args:
        captured: the forward pass.
        decisions: of an earlier run's `alternatives`.
    """
    flow = Flow(captured, decisions)
    for name in captured.program.inputs:
        flow.of[name] = ["the network's inputs"] * len(captured.shapes[name])
    for step in captured.program.steps:
        flow.step = step
        rule = RULES.get(step.operator)
        if rule is None:
            flow.of[step.name] = unknown(flow, step)
        else:
            flow.of[step.name] = _checked(flow, step, rule.flow(flow, step.bound()))
    for leaf in leaves(captured.program.output):
        if isinstance(leaf, Value):
            for entry in flow.of[leaf.name]:
                flow.fixed(entry, "the network's outputs")
    return flow


def unknown(flow: Flow, step: Step) -> Any:
    """What an operator without a rule leaves: everything it touches is fixed."""
    why = flow.here("is not known")
    for leaf in leaves(step.arguments):
        if isinstance(leaf, Value | Tensor):
            dims = flow.dims(leaf)
            for entry in dims if not dims or not isinstance(dims[0], list) else [e for d in dims for e in d]:
                flow.fixed(entry, why)
    shape = flow.captured.shapes[step.name]
    if isinstance(shape, list):
        return [[why] * len(s) for s in shape]
    return [why] * len(shape)


def _checked(flow: Flow, step: Step, dims: Any) -> Any:
    """A rule that gives other lengths than the shape has is a mistake of ours: told at once."""
    shapes = flow.captured.shapes[step.name]
    listed = isinstance(shapes, list)
    for entries, shape in zip(dims if listed else [dims], shapes if listed else [shapes], strict=False):
        if len(entries) != len(shape):
            raise AssertionError(f"{step.operator}: {len(entries)} entries for {shape}")
        for entry, size in zip(entries, shape, strict=True):
            if isinstance(entry, np.ndarray) and len(entry) != size:
                raise AssertionError(f"{step.operator}: {len(entry)} labels for {size} positions of {shape}")
    return dims
