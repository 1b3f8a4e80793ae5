"""report.html and the terminal's tables: what a run made, from its manifest and its stages.

The page is one file: it holds its style and its pictures, runs no script and loads nothing. Made
from the same JSON it is the same, byte for byte.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.files import write_whole
from tersor.pipeline.show import charts, units
from tersor.pipeline.show import manifest as summary
from tersor.pipeline.show.html import template
from tersor.pipeline.show.manifest import Json, at, entries
from tersor.pipeline.show.picture import write_picture
from tersor.pipeline.show.pruned import pruned_told

if TYPE_CHECKING:
    from rich.console import Group
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
CELLS = ("name", "size", "accuracy", "p50", "speedup", "in_turn")
"""Of a line of the table of files; each a pair of words, the second small."""

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


def before_after_table(manifest: Json) -> "Group":
    """For a terminal: each file with its size, speed and accuracy together, then before and after."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = summary.headline(manifest)
    table = Table(title=Text(f"{_name(manifest)}: before and after"), title_justify="left")
    for column in ("", "before", "after", "change", "of"):
        table.add_column(column, justify="left" if column in ("", "of") else "right")
    for row in summary.before_after(manifest):
        table.add_row(*map(Text, (row.label, row.before, row.after, row.change, row.note)))
    lines = [Text(words) for words in (head.stored, *map(_refused, summary.missing(manifest))) if words]
    return Group(_file_table(manifest), table, *lines)


def _file_table(manifest: Json) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{_name(manifest)}: the files"), title_justify="left", show_lines=False)
    sections = list(_sections(manifest))
    on_device = any(line["on_device"] for _, _, lines in sections for line in lines)
    names = ["file", "size", "accuracy", "p50 alone", "speed-up", "in turn", *["on device"] * on_device, ""]
    for name in names:
        table.add_column(name, justify="left" if name in ("file", "") else "right")
    for title, noise, lines in sections:
        table.add_section()
        table.add_row(Text(f"{title}{f' (noise {noise})' if noise else ''}", style="italic"))
        for line in lines:
            cells = [*(line[key] for key in CELLS), *[line["on_device"]] * on_device, line["remark"]]
            style = "dim" if line["busy"] else "bold" if line["taken"] else ""
            table.add_row(*(Text("\n".join(filter(None, cell)), style=style) for cell in cells))
    return table


def _refused(item: tuple[str, str]) -> str:
    return f"{item[0]}: {units.NOT_MEASURED}: {item[1]}"


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
        "sections": list(_sections(manifest)),
        "on_device": any(row.device_ms is not None for rows in timings.values() for row in rows),
        "picks": summary.picks(manifest),
        "conditions": list(_conditions(manifest)),
        "some_busy": any(row.busy is not None for rows in timings.values() for row in rows),
        "rows": summary.before_after(manifest),
        "files": list(_files(manifest)),
        "trade": Markup(charts.both(charts.trade, stages)),
        "ledger": list(_ledger(stages)),
        "coders": [name for _, name in CODERS],
        "coder_bars": Markup(_coder_bars(stages)),
        "latency": [(summary.target_name(t), Markup(_latency(t, rows))) for t, rows in timings.items()],
        "advice": _sentences(at(manifest, "advice")),
        "not_measured": summary.missing(manifest),
        "gates": entries(manifest, "gates"),
        "parity": list(_flat(at(manifest, "parity"))),
        "environment": list(_flat(at(manifest, "environment"))),
        "stages": [(stage, list(_flat(stage.get("details")))) for stage in stages],
        "pruned": pruned_told(stages),
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
    """What is checked of each shipped file."""
    for file in summary.files(manifest):
        yield {
            "file": file.file,
            "kind": file.kind + (", before" if file.is_base else ""),
            "bytes": units.NOT_MEASURED if file.bytes is None else f"{file.bytes:,.0f}",
            "max_abs_diff": units.small(units.known(file.raw.get("max_abs_diff"))),
            "sha256": str(file.raw.get("sha256") or "")[:12],
        }


def _sections(manifest: Json) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(target, noise floor, a line for each file that can be run there)."""
    files = [f for f in summary.files(manifest) if f.kind != "packed"]
    picks, timings = summary.picks(manifest), summary.timings(manifest)
    for target, rows in timings.items():
        taken = {p.file for p in picks if p.setting == target}
        noise = summary.noise(rows)
        by_file = {row.file: row for row in rows}
        lines = [_line(f, by_file.get(f.file), f.file in taken) for f in files]
        yield summary.target_name(target), "" if noise is None else units.share(noise), lines
    if not timings and files:
        taken = {p.file for p in picks}
        yield "speed: not measured", "", [_line(f, None, f.file in taken) for f in files]


def _line(file: summary.File, row: summary.Timing | None, taken: bool) -> dict[str, Any]:
    """Size, accuracy and speed of one file; pairs of words, the second small."""
    none = ("–", "")
    p50 = row.p50 if row else summary.Interval()
    taken = taken and (row is None or row.busy is None)
    remarks = [*["recommended"] * taken, *(row.doubts if row else [])]
    if row and row.raw.get("no_graph") is not None:
        remarks.append(f"no CUDA graph: {row.raw['no_graph']}")
    return {
        "name": (file.file, "before" if file.is_base else file.kind),
        "size": (units.size(file.bytes), "" if file.is_base else f"{units.times(file.ratio)} smaller"),
        "accuracy": (units.share(file.accuracy), "" if file.is_base else units.points(file.change)),
        "p50": (units.time(p50.middle), units.time_interval(p50.low, p50.high, like_ms=p50.middle))
        if row
        else none,
        "speedup": _pair(row.speedup, row.alone_distinguishable) if row else none,
        "in_turn": _pair(row.in_turn) if row else none,
        "on_device": (units.time(row.device_ms), row.device.told if row.device.middle else "")
        if row and row.device_ms is not None
        else (),
        "remark": tuple(remarks),
        "busy": row is not None and row.busy is not None,
        "taken": taken,
    }


def _pair(ratio: summary.Interval, shown: bool = True) -> tuple[str, str]:
    """A ratio and its interval; the interval alone where it shows no difference."""
    if ratio.middle is None or not shown:
        return "–", units.interval(ratio.low, ratio.high)
    return units.times(ratio.middle), units.interval(ratio.low, ratio.high)


def _conditions(manifest: Json) -> Iterator[tuple[str, list[str]]]:
    """What the clock saw, a row for each sign and a column for each setting; the first row names these."""
    seen = entries(manifest, "clock")
    if not seen:
        return
    yield "", [summary.target_name(summary.setting_of(line)) for line in seen]
    for label, tell in CONDITIONS:
        yield label, [tell(line) for line in seen]


def _sign(key: str, form: str) -> Callable[[Json], str]:
    """A number that the clock saw, in words."""

    def told(line: Json) -> str:
        """The number, or that this system does not tell it."""
        value = units.known(line.get(key))
        return "not told" if value is None else form.format(value)

    return told


def _sittings(line: Json) -> str:
    kept, thrown = (_known(line, key) for key in ("sittings", "busy_sittings"))
    if kept is None:
        return "not told"
    return f"{kept:.0f}" + (f", {thrown:.0f} thrown away" if thrown else "")


CONDITIONS: Sequence[tuple[str, Callable[[Json], str]]] = (
    ("load before", _sign("load", "{:.2f}")),
    ("processors", _sign("processors", "{:.0f}")),
    ("used by others", _sign("others", "{:.2f}")),
    ("governor", lambda line: str(line.get("governor") or "not told")),
    ("share of time had", _sign("share", "{:.1%}")),
    ("involuntary switches a second", _sign("involuntary_switches_per_s", "{:.1f}")),
    ("taken by the hypervisor", _sign("stolen", "{:.1%}")),
    ("noise floor", _sign("noise_fraction", "{:.1%}")),
    ("sittings", _sittings),
    ("fed", lambda line: str(line.get("fed") or "not told")),
)
"""Label and words of each sign."""


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
    return charts.both(charts.latency, rows, summary.noise(rows), label)


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


def _flat(source: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted key, text), in their own order."""
    if isinstance(source, Mapping):
        for key, value in source.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif source is not None or prefix:
        yield prefix, units.plain(source)
