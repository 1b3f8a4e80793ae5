"""report.html of a study: what was tried, what came out best, and charts to look around in.

The page is one file: its style, its data and its script are inside, and it loads nothing. Without
the script it still shows its tables. Made from the same results it is the same, byte for byte.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.files import write_whole
from tersor.pipeline.show import study_data
from tersor.pipeline.show.html import template
from tersor.pipeline.show.study_data import Json, direction, front, inside, label, show

if TYPE_CHECKING:
    pass

__all__ = ["front", "write_page"]

STATIC_ROWS = 200
"""Rows of the large table that are there without the script."""
HEADLINES = 3
ERRORS = 200


def write_page(path: Path, content: dict[str, Any]) -> None:
    """Write the page of a study to `path`, whole or not at all.

    Args:
        path: the HTML file.
        content: what results.json holds: name, axes, trials, summary, top, constraints.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(path, template("study.html.j2").render(**_page(content)))


def _page(content: Json) -> dict[str, Any]:
    from markupsafe import Markup

    trials, metrics = content["trials"], study_data.metric_names(content)
    names = study_data.setting_names(trials)
    failed = [t for t in trials if t["state"] == "failed"]
    shown = metrics[: study_data.SHOWN]
    x, y = study_data.chart_metrics(content, metrics)
    return {
        "name": str(content["name"]),
        "trials": len(trials),
        "failed": len(failed),
        "settings": len(content["summary"]),
        "seeds": sorted({t["seed"] for t in trials}),
        "names": list(zip(names, study_data.setting_labels(names))),
        "best": list(_best(content))[:HEADLINES],
        "tables": [_table(table, content, names, metrics) for table in content["top"]],
        "constraints": [_limit(limit) for limit in content["constraints"]],
        "columns": [label(m) for m in shown],
        "rows": [_row(row, names, shown) for row in content["summary"][:STATIC_ROWS]],
        "front": _front(content, names, x, y),
        "front_metrics": [(label(m), direction(m, content)) for m in (y, x) if m],
        "errors": [_failure(t) for t in failed[:ERRORS]],
        "has_metrics": bool(metrics),
        "data": Markup(study_data.embedded(study_data.payload(content))),
        "curves": Markup(study_data.embedded(study_data.curves(trials))),
    }


def _best(content: Json) -> Iterator[dict[str, str]]:
    """For each top table its first row: the value, what it is, the settings."""
    for table in content["top"]:
        if not table["rows"]:
            continue
        row, metric = table["rows"][0], table["metric"]
        word = "highest" if table["direction"] == "maximize" else "lowest"
        yield {
            "value": show(metric, row["mean"].get(metric)),
            "what": f"{word} {label(metric)}",
            "settings": _settings(row),
        }


def _table(table: Json, content: Json, names: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """A top table: the ranked metric first, then what the other tables rank and the leading metrics."""
    ranked = [t["metric"] for t in content["top"]]
    wanted = [table["metric"], *ranked, *study_data.LEADING]
    columns = [m for m in dict.fromkeys(wanted) if m in metrics][:5]
    word = "highest" if table["direction"] == "maximize" else "lowest"
    return {
        "title": f"The {word} {label(table['metric'])}",
        "columns": [label(m) for m in columns],
        "rows": [_row(row, names, columns) for row in table["rows"]],
    }


def _row(row: Json, names: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    spread = row.get("std") or {}
    return {
        "settings": [_setting(row, name) for name in names],
        "cells": [show(m, row["mean"].get(m), spread.get(m)) for m in metrics],
        "seeds": row["seeds"],
        "failed": row["failed"],
    }


def _front(content: Json, names: Sequence[str], x: str | None, y: str | None) -> list[dict[str, Any]]:
    """The rows of the chart's first Pareto front, cheapest first."""
    if x is None or y is None or x == y:
        return []
    rows = [row for row in content["summary"] if inside(row["mean"], content["constraints"])]
    points = [(row["mean"].get(x), row["mean"].get(y)) for row in rows]
    chosen = front(points, [direction(x, content), direction(y, content)])
    chosen.sort(key=lambda i: points[i][0] or 0.0)
    return [_row(rows[i], names, (y, x)) for i in chosen]


def _limit(limit: Json) -> str:
    metric = limit["metric"]
    parts = [
        f"{words} {show(metric, limit[end])}"
        for end, words in (("min", "at least"), ("max", "at most"))
        if limit.get(end) is not None
    ]
    return f"{label(metric)} {' and '.join(parts)}"


def _failure(trial: Json) -> dict[str, Any]:
    return {
        "trial": trial["trial"],
        "seed": trial["seed"],
        "settings": _settings(trial),
        "error": str(trial["error"]),
    }


def _settings(row: Json) -> str:
    labels = study_data.setting_labels(list(row["settings"]))
    values = [study_data.text(value) for value in row["settings"].values()]
    return ", ".join(f"{name} {value}" for name, value in zip(labels, values))


def _setting(row: Json, name: str) -> str:
    return study_data.text(row["settings"][name]) if name in row["settings"] else study_data.MISSING
