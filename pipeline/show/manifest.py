"""What a manifest says, gathered into the rows that the page, the terminal and the picture show.

A manifest may lack anything: what is missing is None here and "not measured" where it is shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tersor.pipeline.show import units

Json = Mapping[str, Any]
Target = tuple[str, int, int]
"""(provider, batch, threads)."""


@dataclass(frozen=True)
class Row:
    """One line of the before/after table, as text."""

    label: str
    before: str
    after: str
    change: str
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """p50 latency of one file at one target, in ms, with its confidence interval.

    speedup: against the baseline in the same interleaved run, None for the baseline itself.
    distinguishable: False where the interval says that nothing was shown.
    """

    file: str
    p50_ms: float | None
    low_ms: float | None
    high_ms: float | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    distinguishable: bool
    raw: Json


@dataclass(frozen=True)
class Headline:
    """The three numbers, and which files they are about."""

    ratio: float | None
    packed: str
    speedup: float | None
    fastest: str
    fastest_where: str
    fastest_accuracy: float | None
    accuracy_change: float | None
    accuracy_before: float | None
    accuracy_after: float | None


def at(source: Any, *keys: str) -> Any:
    """The value below nested keys, or None as soon as one is missing."""
    for key in keys:
        if not isinstance(source, Mapping):
            return None
        source = source.get(key)
    return source


def entries(source: Any, key: str) -> list[Json]:
    """The list of mappings below `key`; anything else counts as missing."""
    found = at(source, key)
    return [e for e in found if isinstance(e, Mapping)] if isinstance(found, Sequence) else []


def target_name(target: Target) -> str:
    """Words for a target: `CPU, batch 64, 1 thread`."""
    provider, batch, threads = target
    name = str(provider).removesuffix("ExecutionProvider")
    name = {"cpu": "CPU", "cuda": "CUDA", "tensorrt": "TensorRT"}.get(name.lower(), name)
    return f"{name}, batch {batch}" + (f", {threads} thread{'s' * (threads != 1)}" if threads else "")


def baseline(manifest: Json) -> Json:
    """The baseline's entry; empty where there is none."""
    entry = at(manifest, "baseline")
    return entry if isinstance(entry, Mapping) else {}


def artifact(manifest: Json, *kinds: str) -> Json:
    """The first artifact of the first of `kinds` that there is; empty where there is none."""
    for kind in kinds:
        for entry in entries(manifest, "artifacts"):
            if entry.get("kind") == kind:
                return entry
    return {}


def timings(manifest: Json) -> dict[Target, list[Timing]]:
    """Target -> timings, the baseline first, then the artifacts in the manifest's order."""
    found: dict[Target, list[Timing]] = {}
    base = baseline(manifest)
    for entry in [base, *entries(manifest, "artifacts")]:
        for line in entries(entry, "latency"):
            if entry is base:
                # Against itself; the baseline is never the fastest file.
                line = {**line, "speedup": None}
            target = (str(line.get("provider")), _whole(line.get("batch")), _whole(line.get("threads")))
            found.setdefault(target, []).append(_timing(str(entry.get("file") or "?"), line))
    return found


def fastest(rows: Sequence[Timing]) -> Timing | None:
    """The row with the largest speedup that the measurement can tell from 1."""
    shown = [r for r in rows if r.speedup is not None and r.distinguishable]
    return max(shown, key=lambda r: r.speedup or 0, default=None)


def headline(manifest: Json) -> Headline:
    """Ratio, fastest speedup and change of accuracy."""
    small = artifact(manifest, "packed", "fp32")
    before = units.known(at(manifest, "baseline", "accuracy_fraction"))
    after = units.known(small.get("accuracy_fraction"))
    if after is None:
        after = units.known(artifact(manifest, "fp32").get("accuracy_fraction"))
    ratio = units.known(at(manifest, "compression_ratio"))
    best: tuple[Target, Timing] | None = None
    for target, rows in timings(manifest).items():
        row = fastest(rows)
        if row and (best is None or (row.speedup or 0) > (best[1].speedup or 0)):
            best = (target, row)
    quick = best[1] if best else None
    shipped = {e.get("file"): units.known(e.get("accuracy_fraction")) for e in entries(manifest, "artifacts")}
    return Headline(
        ratio=ratio,
        packed=str(small.get("file") or ""),
        speedup=quick.speedup if quick else None,
        fastest=quick.file if quick else "",
        fastest_where=target_name(best[0]) if best else "",
        fastest_accuracy=shipped.get(quick.file) if quick else None,
        accuracy_change=units.minus(after, before),
        accuracy_before=before,
        accuracy_after=after,
    )


def before_after(manifest: Json) -> list[Row]:
    """Bytes, parameters, MACs and accuracy, then latency and throughput of the fastest file per target."""
    return [*_network_rows(manifest), *_latency_rows(manifest)]


def _network_rows(manifest: Json) -> Iterator[Row]:
    head, small = headline(manifest), artifact(manifest, "packed", "fp32")
    known = units.known
    before, after = known(at(manifest, "baseline", "bytes")), known(small.get("bytes"))
    change = units.times(head.ratio if head.ratio is not None else units.over(before, after))
    yield Row(
        "Size on disk", units.size(before), units.size(after), _unless_missing(change, "smaller"), head.packed
    )
    for key, label, word in (("parameters", "Parameters", "fewer"), ("macs", "Multiply-adds", "fewer")):
        first, last = (known(at(manifest, "cost", side, key)) for side in ("baseline", "model"))
        change = _unless_missing(units.times(units.over(first, last)), word)
        yield Row(label, units.count(first), units.count(last), change, "an image" if key == "macs" else "")
    first, last = head.accuracy_before, head.accuracy_after
    yield Row(
        "Test accuracy",
        units.share(first),
        units.share(last),
        units.points(head.accuracy_change),
        head.packed,
    )


def _with_interval(row: Timing) -> str:
    """A speed-up and, where the manifest has it, its 95 % interval."""
    if row.speedup_low is None or row.speedup_high is None:
        return units.times(row.speedup)
    return f"{units.times(row.speedup)} [{row.speedup_low:.2f}, {row.speedup_high:.2f}]"


def _latency_rows(manifest: Json) -> Iterator[Row]:
    base_file = str(baseline(manifest).get("file") or "?")
    for target, rows in timings(manifest).items():
        base = next((r for r in rows if r.file == base_file), None)
        best = fastest(rows) or next((r for r in rows if r.file != base_file), None)
        first, last = (r.raw if r else {} for r in (base, best))
        where = target_name(target) + (f", {best.file}" if best else "")
        for key in ("p50_ms", "p90_ms", "p99_ms"):
            a, b = units.known(first.get(key)), units.known(last.get(key))
            ratio = best.speedup if best and key == "p50_ms" else units.over(a, b)
            change = units.times(ratio)
            if best and key == "p50_ms":
                change = _with_interval(best) if best.distinguishable else "not distinguishable"
            yield Row(f"Latency {key[:-3]}", units.time(a), units.time(b, like_ms=a), change, where)
        a, b = (units.known(r.get("throughput_per_s")) for r in (first, last))
        yield Row("Throughput", units.rate(a), units.rate(b), units.times(units.over(b, a)), where)


def _timing(file: str, line: Json) -> Timing:
    p50, low, high, speedup, speedup_low, speedup_high = (
        units.known(line.get(key))
        for key in ("p50_ms", "p50_low_ms", "p50_high_ms", "speedup", "speedup_low", "speedup_high")
    )
    shown = line.get("distinguishable") is not False
    return Timing(file, p50, low, high, speedup, speedup_low, speedup_high, shown, line)


def _whole(value: Any) -> int:
    return int(units.known(value) or 0)


def _unless_missing(text: str, word: str) -> str:
    return text if text == units.NOT_MEASURED else f"{text} {word}"
