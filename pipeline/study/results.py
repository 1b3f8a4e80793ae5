"""What a study found: its tables as CSV, JSON, a page, and for the terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from tersor.errors import BadInput
from tersor.files import write_csv, write_json
from tersor.pipeline.show.study_data import label, setting_labels, setting_names, show, text
from tersor.pipeline.study.file import Limit, StudyFile, Top
from tersor.pipeline.study.trial import Trial


def write_results(folder: Path, study: StudyFile, records: Sequence[Trial]) -> None:
    """results.json (everything), results.csv (a line a trial) and report.html."""
    from tersor.pipeline.show.study_page import write_page

    summary = summarize(records)
    content = {
        "name": study.name,
        "axes": list(study.axes),
        "trials": [trial.to_json() for trial in records],
        "summary": summary,
        "top": [{**t.model_dump(), "rows": top(summary, t, study.constraints)} for t in study.top],
        "constraints": [c.model_dump() for c in study.constraints],
    }
    write_json(folder / "results.json", content)
    rows = [
        {
            "trial": trial.trial,
            "seed": trial.seed,
            "state": trial.state,
            **trial.settings,
            **trial.metrics,
            "error": trial.error,
        }
        for trial in records
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(folder / "results.csv", columns, rows)
    write_page(folder / "report.html", content)


def summarize(records: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row per setting of the axes: mean and standard deviation over its finished seeds."""
    groups: dict[str, list[Trial]] = {}
    for trial in records:
        groups.setdefault(json.dumps(trial.settings, sort_keys=True, default=str), []).append(trial)
    rows = []
    for group in groups.values():
        finished = [trial.metrics for trial in group if trial.finished]
        keys = [k for k in finished[0] if all(k in m for m in finished)] if finished else []
        mean = {k: float(np.mean([m[k] for m in finished])) for k in keys}
        spread = {
            k: float(np.std([m[k] for m in finished], ddof=1)) if len(finished) > 1 else None for k in keys
        }
        row = {"settings": group[0].settings, "seeds": len(finished), "mean": mean, "std": spread}
        rows.append({**row, "failed": len(group) - len(finished)})
    return rows


def top(summary: Sequence[Mapping[str, Any]], table: Top, limits: Sequence[Limit]) -> list[Mapping[str, Any]]:
    """The best rows by the mean of a metric, among those within the constraints.

    Raises:
        BadInput: no trial has the metric.
    """
    known = sorted({key for row in summary for key in row["mean"]})
    if known and table.metric not in known:
        raise BadInput(
            f"no trial has a metric {table.metric!r}", wanted=f"one of {', '.join(known)}", where="top"
        )
    rows = [row for row in summary if table.metric in row["mean"] and within(row["mean"], limits)]
    return sorted(rows, key=lambda r: r["mean"][table.metric], reverse=table.direction == "maximize")[
        : table.count
    ]


def top_tables(study: StudyFile, records: Sequence[Trial]) -> list[Table]:
    """The study's tables of best trials, for the terminal: mean over seeds, spread behind it."""
    summary, tables = summarize(records), []
    shown = ("validation_accuracy_fraction", "test_accuracy_fraction", "training_seconds", "packed_bytes")
    for table in study.top:
        rows = top(summary, table, study.constraints)
        wanted = dict.fromkeys([table.metric, *shown])
        columns = [key for key in wanted if any(key in row["mean"] for row in rows)]
        settings = setting_names(rows)
        out = Table(title=f"{study.name}: best by {label(table.metric)}")
        for heading in setting_labels(settings):
            out.add_column(heading)
        for key in columns:
            out.add_column(label(key), justify="right")
        for row in rows:
            cells = [text(row["settings"][k]) if k in row["settings"] else "" for k in settings]
            out.add_row(*cells, *(show(k, row["mean"].get(k), row["std"].get(k)) for k in columns))
        tables.append(out)
    return tables


def within(metrics: Mapping[str, float], limits: Sequence[Limit]) -> bool:
    """Whether metrics keep all constraints; a missing metric keeps none."""
    for limit in limits:
        value = metrics.get(limit.metric)
        low = -math.inf if limit.min is None else limit.min
        high = math.inf if limit.max is None else limit.max
        if value is None or not low <= value <= high:
            return False
    return True
