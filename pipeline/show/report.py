"""report.html and the terminal's tables: what a run made, from its manifest and its stages.

The page is one file: it holds its style and its pictures, runs no script and loads nothing. Made
from the same JSON it is the same, byte for byte.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.files import write_whole
from tersor.pipeline.show import charts, units
from tersor.pipeline.show import manifest as summary
from tersor.pipeline.show.html import template
from tersor.pipeline.show.manifest import Json, at, entries
from tersor.pipeline.show.picture import write_picture

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["before_after_table", "stage_table", "write_picture", "write_report"]

CODERS = (
    ("onnx_bytes", "plain ONNX"),
    ("gzip_bytes", "gzip"),
    ("zstd_bytes", "zstd"),
    ("xz_bytes", "xz"),
    ("packed_bytes", "tersor"),
    ("entropy_bytes", "value entropy"),
)

OTHERS = ("gzip_bytes", "zstd_bytes", "xz_bytes")
"""What is measured for the last stage only, unless it is asked for."""


def write_report(
    path: Path, manifest: Json, stages: Sequence[Json], confusion: Mapping[str, Any] | None
) -> None:
    """Write the page to `path`, whole or not at all.

    Args:
        manifest: the bundle's manifest; whatever it lacks is shown as not measured.
        stages: the stages' metrics in their order, the baseline's training first.
        confusion: {"classes", "baseline", "model"}, counts with rows for the true class, or None.
    """
    page = template("report.html.j2").render(**_page(manifest, stages, confusion))
    write_whole(path, page)


def before_after_table(manifest: Json) -> "Table":
    """The before/after table for a terminal."""
    from rich.table import Table

    table = Table(title=f"{_name(manifest)}: before and after", title_justify="left")
    for column in ("", "before", "after", "change", "of"):
        table.add_column(column, justify="left" if column in ("", "of") else "right")
    for row in summary.before_after(manifest):
        table.add_row(row.label, row.before, row.after, row.change, row.note)
    return table


def stage_table(stages: Sequence[Json]) -> "Table":
    """One line a stage: accuracy, what is left, and the size of its file through each coder."""
    from rich.table import Table

    others = [key for key, _ in CODERS if key in OTHERS]
    unasked = any(_known(stage, key) is None for stage in stages for key in others)
    caption = "– not measured: compress --ledger all puts every stage's file through gzip, zstd and xz"
    notes: dict[str, Any] = {"caption": caption if unasked else None, "caption_justify": "left"}
    table = Table(title="Stage by stage", title_justify="left", **notes)
    table.add_column("stage")
    for column in ("accuracy", "non-zero", "MACs", *(name for _, name in CODERS), "time", "measuring"):
        table.add_column(column, justify="right")
    for stage in stages:
        table.add_row(
            str(stage.get("name", "?")),
            units.share(_known(stage, "validation_accuracy_fraction")),
            units.count(_known(stage, "nonzero_weights")),
            units.count(_known(stage, "macs")),
            *(_size_or_dash(stage, key) for key, _ in CODERS),
            units.seconds(_known(stage, "seconds")),
            units.seconds(_known(stage, "measuring_seconds")),
        )
    return table


def _size_or_dash(stage: Json, key: str) -> str:
    size = _known(stage, key)
    return "–" if size is None and key in OTHERS else units.size(size)


def _page(manifest: Json, stages: Sequence[Json], confusion: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything the template shows; pictures are marked as safe, for they escape their own words."""
    from markupsafe import Markup

    timings = summary.timings(manifest)
    return {
        "name": _name(manifest),
        "manifest": manifest,
        "head": summary.headline(manifest),
        "rows": summary.before_after(manifest),
        "files": list(_files(manifest)),
        "trade": Markup(charts.both(charts.trade, stages)),
        "ledger": list(_ledger(stages)),
        "coders": [name for _, name in CODERS],
        "coder_bars": Markup(_coder_bars(stages)),
        "latency": [(summary.target_name(t), Markup(_latency(t, rows))) for t, rows in timings.items()],
        "advice": _sentences(at(manifest, "advice")),
        "not_measured": entries(manifest, "not_measured"),
        "recommended": _items(at(manifest, "recommended")),
        "gates": entries(manifest, "gates"),
        "parity": list(_flat(at(manifest, "parity"))),
        "environment": list(_flat(at(manifest, "environment"))),
        "stages": [(stage, list(_flat(stage.get("details")))) for stage in stages],
        "matrices": [(title, Markup(svg)) for title, svg in _matrices(confusion)],
        "per_class": list(_per_class(confusion)),
    }


def _name(manifest: Json) -> str:
    return str(at(manifest, "name") or "unnamed")


def _sentences(found: Any) -> list[str]:
    return [text for text in found if isinstance(text, str) and text] if isinstance(found, list) else []


def _known(stage: Json, key: str) -> float | None:
    return units.known(stage.get(key))


def _files(manifest: Json) -> Iterator[dict[str, Any]]:
    """The shipped files, the baseline first, each with its ratio and change against it."""
    base = summary.baseline(manifest)
    for entry in [base, *entries(manifest, "artifacts")]:
        if not entry:
            continue
        number = {k: units.known(entry.get(k)) for k in ("bytes", "accuracy_fraction", "max_abs_diff")}
        yield {
            "file": entry.get("file") or "?",
            "kind": entry.get("kind") or "",
            "size": units.size(number["bytes"]),
            "ratio": units.times(units.over(units.known(base.get("bytes")), number["bytes"])),
            "accuracy": units.share(number["accuracy_fraction"]),
            "change": units.points(
                units.minus(number["accuracy_fraction"], units.known(base.get("accuracy_fraction")))
            ),
            "max_abs_diff": units.small(number["max_abs_diff"]),
            "sha256": str(entry.get("sha256") or "")[:12],
            "is_base": entry is base,
        }


def _ledger(stages: Sequence[Json]) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """(stage, [(size, is the smallest file)]); the entropy is no file."""
    for stage in stages:
        numbers = [_known(stage, key) for key, _ in CODERS]
        asked = all(_known(stage, key) is not None for key in OTHERS)  # else there is nothing to beat
        smallest = min((n for n in numbers[:-1] if n is not None), default=None) if asked else None
        cells = [(units.size(n), n is not None and n == smallest and i < 5) for i, n in enumerate(numbers)]
        yield str(stage.get("name", "?")), cells


def _coder_bars(stages: Sequence[Json]) -> str:
    """The last stage's file through each coder, the plain one left out for it dwarfs the rest."""
    last = next((s for s in reversed(stages) if _known(s, "packed_bytes") is not None), None)
    if last is None:
        return ""
    rows = [
        charts.Bar(name, value, units.size(value), "bar" if key == "packed_bytes" else "soft")
        for key, name in CODERS[1:]
        if (value := _known(last, key)) is not None
    ]
    return charts.both(charts.bars, rows, f"Size after {last.get('name')} through each coder")


def _latency(target: summary.Target, rows: Sequence[summary.Timing]) -> str:
    label = f"Latency p50 on {summary.target_name(target)}"
    return charts.both(charts.bars, charts.latency_bars(rows), label)


def _matrices(confusion: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    for side, title in (("baseline", "Before"), ("model", "After")):
        matrix = at(confusion, side)
        if matrix:
            yield (
                title,
                charts.confusion(matrix, _classes(confusion, matrix), f"Confusion matrix, {title.lower()}"),
            )


def _per_class(confusion: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Class by class: how many test images, how many right before and after."""
    before, after = at(confusion, "baseline"), at(confusion, "model")
    matrix = before or after
    if not matrix:
        return
    for label, name in enumerate(_classes(confusion, matrix)):
        first, last = (_recall(m, label) for m in (before, after))
        images = sum(matrix[label])
        yield {
            "name": name,
            "images": images,
            "before": "–" if first is None else units.share(first),
            "after": "–" if last is None else units.share(last),
            "change": units.points(units.minus(last, first)).replace(" points", "") if images else "–",
            "worse": (units.minus(last, first) or 0) < 0,
        }


def _classes(confusion: Mapping[str, Any] | None, matrix: Sequence[Any]) -> list[str]:
    names = [str(name) for name in at(confusion, "classes") or []]
    return names + [str(i) for i in range(len(names), len(matrix))]


def _recall(matrix: Sequence[Sequence[int]] | None, label: int) -> float | None:
    if not matrix or not sum(matrix[label]):
        return None
    return matrix[label][label] / sum(matrix[label])


def _items(source: Any) -> list[tuple[str, Any]]:
    return list(source.items()) if isinstance(source, Mapping) else []


def _flat(source: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted key, text), in their own order."""
    if isinstance(source, Mapping):
        for key, value in source.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif source is not None or prefix:
        yield prefix, units.plain(source)
