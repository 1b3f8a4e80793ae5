"""What the page of a study holds: its trials column by column, small enough for a thousand of them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tersor.pipeline.show import units

Json = Mapping[str, Any]

CURVE_BUDGET = 160_000
"""Numbers in all learning curves of a page together; with many trials each curve is thinned."""
CURVES = ("train_loss", "validation_loss", "train_accuracy_fraction", "validation_accuracy_fraction")
LEADING = (
    "validation_accuracy_fraction", "test_accuracy_fraction", "packed_bytes", "onnx_bytes", "macs",
    "latency_ms", "p50_ms", "training_seconds", "epochs", "sparsity_fraction",
)  # fmt: skip
"""Metrics shown first; the others wait in the page's list of columns."""
SHOWN = 6
PLAIN_PREFIXES = ("arguments.", "train.", "data.", "deploy.")
"""Where a setting's last words say enough."""
MISSING = "–"


def front(points: Sequence[Sequence[float | None]], directions: Sequence[str]) -> list[int]:
    """The Pareto front: indices of the points that no other beats in one value and matches in all.

    Equal points are all kept; a point with a missing or non-finite value is never on the front.

    Args:
        points: N points of K values each.
        directions: K times `maximize` or `minimize`.

    Returns:
        Indices into `points`, ascending.
    """
    whole = [i for i, point in enumerate(points) if all(units.known(v) is not None for v in point)]
    signs = np.array([1.0 if d == "maximize" else -1.0 for d in directions])
    values = np.array([points[i] for i in whole], float).reshape(len(whole), len(directions)) * signs
    kept = []
    for index, value in zip(whole, values):
        as_good = (values >= value).all(1)
        if not (as_good & (values > value).any(1)).any():
            kept.append(index)
    return kept


def kind(metric: str) -> str:
    """How a metric is written: share, size, ms, seconds, count or plain."""
    for suffix, name in (("_fraction", "share"), ("bytes", "size"), ("_ms", "ms"), ("seconds", "seconds")):
        if metric.endswith(suffix):
            return name
    counted = ("macs", "flops", "parameters", "weights", "images_per_second")
    return "count" if metric.endswith(counted) else "plain"


def label(metric: str) -> str:
    """A metric's name in words, without its unit."""
    for suffix, words in (("_fraction", ""), ("_bytes", " size"), ("_ms", ""), ("_seconds", " time")):
        if metric.endswith(suffix):
            metric = metric.removesuffix(suffix) + words
    words = metric.replace("_", " ").replace("macs", "MACs").replace("onnx", "ONNX")
    return "time, all stages" if metric == "seconds" else words


def show(metric: str, value: float | None, spread: float | None = None) -> str:
    """A value of a metric with its unit, and its standard deviation over seeds where there is one."""
    forms = {"share": units.share, "size": units.size, "ms": units.time, "seconds": units.seconds,
             "count": units.count, "plain": plain}  # fmt: skip
    form = forms[kind(metric)]
    if units.known(value) is None:
        return MISSING
    said = form(value).strip()
    return said if not spread else _with_spread(said, float(value or 0), spread, form(spread).strip())


def _with_spread(said: str, value: float, spread: float, alone: str) -> str:
    """`2.31 min` and a spread in seconds -> `2.31 ± 0.53 min`: in the value's unit, to its decimals."""
    number, _, unit = said.partition(" ")
    if not value or "e" in number:
        return f"{said} ± {alone}"
    decimals = len(number.partition(".")[2])
    return f"{number} ± {spread * float(number) / value:.{decimals}f} {unit}".rstrip()


def plain(value: float | None) -> str:
    """A number without a unit: whole numbers whole, others to four figures."""
    number = units.known(value)
    if number is None:
        return MISSING
    return f"{number:.0f}" if number == int(number) and abs(number) < 1e6 else f"{number:.4g}"


def text(value: Any) -> str:
    """A setting's value as a person writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and not any(isinstance(v, list | dict) for v in value):
        return ", ".join(map(text, value))
    return json.dumps(value, default=str, ensure_ascii=False)


def setting_names(rows: Sequence[Json]) -> list[str]:
    """The settings that differ between trials, in the order of the first trial that has them."""
    return list(dict.fromkeys(str(name) for row in rows for name in row["settings"]))


def setting_labels(names: Sequence[str]) -> list[str]:
    """Settings as column heads: `arguments.conv1_kernel` -> `conv1 kernel`; whole where not enough."""
    short = [name.removeprefix(name.partition(".")[0] + ".") if name.startswith(PLAIN_PREFIXES) else name
             for name in names]  # fmt: skip
    chosen = [s if short.count(s) == 1 else name for s, name in zip(short, names)]
    return [words.replace("_", " ").replace(".", " ") for words in chosen]


def metric_names(content: Json) -> list[str]:
    """All metrics of a study: those its tables and constraints name, the leading ones, the others."""
    found = dict.fromkeys(
        key
        for trial in content["trials"]
        for key, value in trial["metrics"].items()
        if units.known(value) is not None
    )
    named = [entry["metric"] for entry in [*content["top"], *content["constraints"]]]
    return [key for key in dict.fromkeys([*named, *LEADING, *found]) if key in found]


def direction(metric: str, content: Json) -> str:
    """Whether more of a metric is better: as the study's tables say, else by what it measures."""
    for table in content["top"]:
        if table["metric"] == metric:
            return str(table["direction"])
    more = any(word in metric for word in ("accuracy", "speedup", "ratio", "sparsity", "per_second"))
    return "maximize" if more else "minimize"


def inside(metrics: Json, constraints: Sequence[Json]) -> bool:
    """Whether metrics keep all constraints; a missing metric keeps none."""
    for limit in constraints:
        value = units.known(metrics.get(limit["metric"]))
        low, high = units.known(limit.get("min")), units.known(limit.get("max"))
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            return False
    return True


def payload(content: Json) -> dict[str, Any]:
    """Everything the page's script works on, as plain data without NaN."""
    trials, metrics = content["trials"], metric_names(content)
    names = setting_names(trials)
    axes = [_axis(name, trials) | {"label": said} for name, said in zip(names, setting_labels(names))]
    several = any(row["seeds"] + row["failed"] > 1 for row in content["summary"])
    rows = [{**t, "mean": t["metrics"], "std": {}} for t in trials]
    groups = list(content["summary"]) if several else []
    x, y = chart_metrics(content, metrics)
    return {
        "sort": content["top"][0]["metric"] if content["top"] else None,
        "axes": axes,
        "metrics": [{"key": m, "label": label(m), "kind": kind(m), "up": direction(m, content) == "maximize"}
                    for m in metrics],
        "trials": _columns(rows, axes, metrics, content)
        | {
            "number": [t["trial"] for t in trials],
            "seed": [t["seed"] for t in trials],
            "error": {str(i): str(t["error"]) for i, t in enumerate(trials) if t["state"] == "failed"},
        },
        "groups": _columns(groups, axes, metrics, content)
        | {
            "seeds": [g["seeds"] for g in groups],
            "members": _members(groups, trials),
            "spread": [[_short((g.get("std") or {}).get(m)) for g in groups] for m in metrics],
        }
        if groups
        else None,
        "x": metrics.index(x) if x else 0,
        "y": metrics.index(y) if y else 0,
        "shown": list(range(min(SHOWN, len(metrics)))),
        "limited": bool(content["constraints"]),
        "picked": _picked(content, trials),
    }  # fmt: skip


def chart_metrics(content: Json, metrics: Sequence[str]) -> tuple[str | None, str | None]:
    """The (x, y) metrics a chart starts with: what the tables rank, then accuracy against a cost."""
    if not metrics:
        return None, None
    ranked = [t["metric"] for t in content["top"] if t["metric"] in metrics]
    gains = [m for m in [*ranked, *metrics] if direction(m, content) == "maximize"]
    costs = [m for m in [*ranked, *LEADING, *metrics] if m in metrics and direction(m, content) == "minimize"]
    costs = [m for m in costs if len(_distinct(content, m)) > 1] or costs
    return (costs or list(metrics))[0], (gains or list(metrics))[0]


def curves(trials: Sequence[Json]) -> dict[str, Any]:
    """The learning curves of all trainings of each trial one after another, thinned.

    Returns:
        {"names", "curves": {trial index: [epochs, one list of values for each name]}}.
    """
    keep = max(6, CURVE_BUDGET // (max(len(trials), 1) * (len(CURVES) + 1)))
    found = {}
    for index, trial in enumerate(trials):
        epochs = list(_epochs(trial))
        if len(epochs) < 2:
            continue
        chosen = np.unique(np.linspace(0, len(epochs) - 1, min(keep, len(epochs))).round().astype(int))
        lines = [[_short(epochs[i].get(name), 4) for i in chosen] for name in CURVES]
        found[str(index)] = [[int(i) + 1 for i in chosen], *lines]
    return {"names": list(CURVES), "curves": found}


def embedded(data: Any) -> str:
    """JSON that can stand inside a <script> element whatever text it holds."""
    written = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _epochs(trial: Json) -> Iterator[Json]:
    for stage in trial.get("stages") or []:
        yield from (stage.get("details") or {}).get("history") or []


def _axis(name: str, trials: Sequence[Json]) -> dict[str, Any]:
    """A setting's distinct values: numbers in their order, anything else in the order it came."""
    values = {text(t["settings"][name]): t["settings"][name] for t in trials if name in t["settings"]}
    numbers = [units.known(v) for v in values.values()]
    if None in numbers:
        return {"name": name, "texts": list(values), "numbers": None}
    order = sorted(range(len(numbers)), key=lambda i: numbers[i] or 0.0)
    texts = list(values)
    return {"name": name, "texts": [texts[i] for i in order], "numbers": [numbers[i] for i in order]}


def _columns(
    rows: Sequence[Json], axes: Sequence[Json], metrics: Sequence[str], content: Json
) -> dict[str, Any]:
    """Rows as columns: per axis the index of the value (-1: none), per metric the number."""
    places = [{words: i for i, words in enumerate(axis["texts"])} for axis in axes]
    return {
        "axes": [[place[text(row["settings"][axis["name"]])] if axis["name"] in row["settings"] else -1
                  for row in rows] for axis, place in zip(axes, places)],
        "values": [[_short(row["mean"].get(m)) for row in rows] for m in metrics],
        "outside": [i for i, row in enumerate(rows) if not inside(row["mean"], content["constraints"])],
    }  # fmt: skip


def _members(groups: Sequence[Json], trials: Sequence[Json]) -> list[list[int]]:
    found: dict[str, list[int]] = {}
    for index, trial in enumerate(trials):
        found.setdefault(_identity(trial), []).append(index)
    return [found.get(_identity(group), []) for group in groups]


def _picked(content: Json, trials: Sequence[Json]) -> list[int]:
    """Trials whose learning curves are shown at first: one of each row of the first top table."""
    best = {_identity(row) for table in content["top"][:1] for row in table["rows"][:5]}
    first: dict[str, int] = {}
    for index, trial in enumerate(trials):
        if trial["state"] == "finished":
            first.setdefault(_identity(trial), index)
    return [index for identity, index in first.items() if identity in best]


def _identity(row: Json) -> str:
    return json.dumps(row["settings"], sort_keys=True, default=str)


def _distinct(content: Json, metric: str) -> set[Any]:
    return {trial["metrics"][metric] for trial in content["trials"] if metric in trial["metrics"]}


def _short(value: Any, figures: int = 7) -> float | int | None:
    """A number with few characters: a page shows four figures and sorts by seven."""
    number = units.known(value)
    if number is None:
        return None
    number = number if isinstance(value, int) else float(f"{number:.{figures}g}")
    return int(number) if number == int(number) and abs(number) < 2**53 else number
