"""docs/operators.md: every operator that structural pruning knows, read off its rules."""

from collections.abc import Callable
from typing import Any

from tersor.pipeline.show.markdown import markdown_table
from tersor.pipeline.structure.rules import RULES

HEAD = """# Operators that structural pruning knows

Written by `tersor table operators`. A network is exported with `torch.export`; channels travel through its
operators by one rule each, whatever Python class, method or function called them. An operator that is not
here fixes all channels that it touches, and the layer is named with it under `not_pruned`.

*Rewritten*: sizes, groups or bounds that are written into the call follow the channels, where the graph
takes the place of the network's Python. *Mixes*: a result depends on several channels without a weight, so
the proof computes it on the channels that stay.
"""


def operators_page() -> str:
    """Markdown: one row for each rule, with all operators that follow it."""
    families: dict[tuple[str, bool, bool], list[str]] = {}
    for name, rule in RULES.items():
        families.setdefault((_says(rule.flow), rule.narrow is not None, rule.mixes), []).append(name)
    rows = [
        (", ".join(f"`{n.removesuffix('.default')}`" for n in names), says, _yes(narrows), _yes(mixes))
        for (says, narrows, mixes), names in families.items()
    ]
    table = markdown_table(("operators", "channels", "rewritten", "mixes"), rows)
    return f"{HEAD}\n{len(RULES)} operators, {len(rows)} rules.\n\n{table}\n"


def _says(rule: Callable[..., Any]) -> str:
    words = " ".join((rule.__doc__ or "").split())
    assert words, f"the rule {rule.__qualname__} does not say what it does"
    return words


def _yes(value: bool) -> str:
    return "yes" if value else ""
