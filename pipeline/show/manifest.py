"""What a manifest says, gathered into the rows that the page, the terminal and the picture show.

A manifest may lack anything: what is missing is None here and "not measured" where it is shown. A row is
about one file: its size, its speed and its accuracy, never three files' best.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tersor.pipeline.show import units

Json = Mapping[str, Any]
Target = tuple[str, int, int]
"""(provider, batch, threads)."""
BUSY = "the machine was busy"


@dataclass(frozen=True)
class Row:
    """One line of the before/after table, as text. note: the file that it is about, and where."""

    label: str
    before: str
    after: str
    change: str
    note: str = ""


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    middle: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def told(self) -> str:
        """A ratio in words: 1.50× [1.46, 1.55]."""
        return f"{units.times(self.middle)} {units.interval(self.low, self.high)}".rstrip()


@dataclass(frozen=True)
class Timing:
    """How long one file takes at one target, in ms, and against the baseline.

    speedup, in_turn, device: ratios: alone, by turns with the others, on the device. Without figures for the
        baseline itself.
    distinguishable: False where the interval of the ratio that decides says that nothing was shown.
    wide: the interval is wider than was asked for. busy: why the figures are not to be believed.
    noise: fraction by which the baseline differs from itself.
    """

    file: str
    p50: Interval
    speedup: Interval
    in_turn: Interval
    device_ms: float | None
    device: Interval
    distinguishable: bool
    wide: bool
    busy: str | None
    noise: float | None
    raw: Json

    @property
    def decisive(self) -> Interval:
        """The ratio that decides: on the device where that was timed, else alone."""
        return self.speedup if self.device.middle is None else self.device

    @property
    def alone_distinguishable(self) -> bool:
        """Whether the ratio alone shows something: beside a device's time its own interval says so."""
        low, high = self.speedup.low, self.speedup.high
        if self.device.middle is None or low is None or high is None:
            return self.distinguishable
        return not low <= 1.0 <= high

    @property
    def doubts(self) -> list[str]:
        """What has to be said beside the speed-up that decides."""
        against = self.speedup.middle is not None
        doubts = (
            ("not distinguishable", against and not self.distinguishable),
            ("wide", against and self.wide),
            ("machine busy", self.busy is not None),
        )
        return [word for word, holds in doubts if holds]


@dataclass(frozen=True)
class File:
    """One shipped file beside the baseline. ratio: the baseline's bytes over its own. change: of accuracy."""

    file: str
    kind: str
    bytes: float | None
    ratio: float | None
    accuracy: float | None
    change: float | None
    is_base: bool
    raw: Json


@dataclass(frozen=True)
class Pick:
    """The file recommended for a target and batch size. timing: its row there, None where there is none."""

    target: str
    batch: int | None
    file: str
    why: str
    setting: Target | None
    timing: Timing | None
    speedup: Interval

    @property
    def place(self) -> str:
        """Target and batch size in words."""
        if self.setting is not None:
            return target_name(self.setting)
        name = {"cpu": "CPU", "cuda": "CUDA"}.get(self.target, self.target)
        return name if self.batch is None else f"{name}, batch {self.batch}"


@dataclass(frozen=True)
class Headline:
    """One file, with its size, speed and accuracy; the packed file apart.

    place: target, batch size and threads of the speed. timing: None where it was not measured, or on a busy
        machine; `why_not` says which.
    packed, unpacks_to: the packed file and the one that it holds.
    """

    file: File | None
    base: File | None
    place: str
    timing: Timing | None
    why_not: str
    packed: File | None
    unpacks_to: str

    @property
    def speed(self) -> str:
        """The speed-up in words; never one that the clock does not stand behind."""
        if self.timing is None:
            return units.NOT_MEASURED
        if not self.timing.distinguishable:
            return "not distinguishable"
        return units.times(self.timing.decisive.middle)

    @property
    def stored(self) -> str:
        """What the packed file is, in words; empty where there is none."""
        if self.packed is None:
            return ""
        size, ratio = units.size(self.packed.bytes), units.times(self.packed.ratio)
        words = f"{self.packed.file}: the same network to store and send, {size} ({ratio} smaller)"
        return words + (f", unpacks to {self.unpacks_to}" if self.unpacks_to else "")


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


def files(manifest: Json) -> list[File]:
    """The baseline, if it is told, and every shipped file."""
    base = baseline(manifest)
    return [_file(e, base) for e in [base, *entries(manifest, "artifacts")] if e]


def timings(manifest: Json) -> dict[Target, list[Timing]]:
    """Target -> timings, the baseline first, then the artifacts in the manifest's order."""
    found: dict[Target, list[Timing]] = {}
    base = baseline(manifest)
    for entry in [base, *entries(manifest, "artifacts")]:
        for line in entries(entry, "latency"):
            setting = setting_of(line)
            found.setdefault(setting, []).append(_timing(_name(entry), line, entry is base))
    return found


def setting_of(line: Json) -> Target:
    """Provider, batch and threads of a row of timings or of what the clock saw."""
    return str(line.get("provider")), _whole(line.get("batch")), _whole(line.get("threads"))


def picks(manifest: Json) -> list[Pick]:
    """The recommended file of each target and batch size; in bundles of old, of each target."""
    told = entries(manifest, "recommendations")
    old = at(manifest, "recommended")
    if not told and isinstance(old, Mapping):
        told = [{**p, "target": p.get("target") or t} for t, p in old.items() if isinstance(p, Mapping)]
    timed = timings(manifest)
    return [_pick(entry, timed) for entry in told]


def missing(manifest: Json) -> list[tuple[str, str]]:
    """(what was not measured, why), in words."""
    listed = entries(manifest, "not_measured")
    return [(str(e.get("what") or "?"), str(e.get("reason") or "no reason given")) for e in listed]


def noise(rows: Sequence[Timing]) -> float | None:
    """The noise floor of a setting, a fraction; None where it was not taken."""
    return next((row.noise for row in rows if row.noise is not None), None)


def headline(manifest: Json) -> Headline:
    """The file recommended for the first target and batch size; without a recommendation the plain one."""
    listed, first = files(manifest), next(iter(picks(manifest)), None)
    own = [f for f in listed if not f.is_base]
    plain = next((f for f in own if f.kind == "fp32"), None)
    packed = next((f for f in own if f.kind == "packed"), None)
    chosen = next((f for f in own if first and f.file == first.file), plain or next(iter(own), None))
    timing = first.timing if first and chosen and chosen.file == first.file else None
    why_not = _why_not(manifest, first) if timing is None else ""
    if timing is not None and timing.busy is not None:
        why_not, timing = f"{BUSY} ({timing.busy}); its raw figures are marked", None
    return Headline(
        chosen,
        next((f for f in listed if f.is_base), None),
        first.place if first else "",
        timing,
        why_not,
        packed,
        plain.file if plain else "",
    )


def before_after(manifest: Json) -> list[Row]:
    """Bytes, parameters, MACs and accuracy, then latency and throughput; each line about one file."""
    return [*_network_rows(manifest), *_latency_rows(manifest)]


def _network_rows(manifest: Json) -> Iterator[Row]:
    head, known = headline(manifest), units.known
    before = head.base.bytes if head.base else None
    for label, file in (("Size on disk", head.file), ("Stored and sent", head.packed)):
        if file is None and label != "Size on disk":
            continue
        size, ratio = (file.bytes, file.ratio) if file else (None, None)
        change = _unless_missing(units.times(ratio), "smaller")
        yield Row(label, units.size(before), units.size(size), change, file.file if file else "")
    for key, label, words in (("parameters", "Parameters", ""), ("macs", "Multiply-adds", ", an image")):
        first, last = (known(at(manifest, "cost", side, key)) for side in ("baseline", "model"))
        change = _unless_missing(units.times(units.over(first, last)), "fewer")
        yield Row(label, units.count(first), units.count(last), change, head.unpacks_to + words)
    before, after = (f.accuracy if f else None for f in (head.base, head.file))
    points = units.points(head.file.change if head.file else None)
    name = head.file.file if head.file else ""
    yield Row("Test accuracy", units.share(before), units.share(after), points, name)


def _latency_rows(manifest: Json) -> Iterator[Row]:
    base_file, chosen = _name(baseline(manifest)), headline(manifest).file
    best = {(_short(p.setting[0]), p.setting[1]): p.file for p in picks(manifest) if p.setting}
    for target, rows in timings(manifest).items():
        name = best.get((_short(target[0]), target[1]), chosen.file if chosen else "")
        base = next((r for r in rows if r.file == base_file), None)
        own = next((r for r in rows if r.file == name), None)
        first, last = (r.raw if r else {} for r in (base, own))
        where = target_name(target) + (f", {name}" if name else "")
        for key in ("p50_ms", "p90_ms", "p99_ms"):
            a, b = units.known(first.get(key)), units.known(last.get(key))
            change = _change(own) if key == "p50_ms" else _unless_busy(own, units.over(a, b))
            yield Row(f"Latency {key[:-3]}", units.time(a), units.time(b, like_ms=a), change, where)
        a, b = (units.known(r.get("throughput_per_s")) for r in (first, last))
        yield Row("Throughput", units.rate(a), units.rate(b), _unless_busy(own, units.over(b, a)), where)


def _change(row: Timing | None) -> str:
    """The speed-up with its interval and its doubts; none where nothing was shown."""
    if row is None or row.speedup.middle is None:
        return units.NOT_MEASURED
    if not row.distinguishable:
        return ", ".join(row.doubts)
    return ", ".join([row.speedup.told, *row.doubts])


def _unless_busy(row: Timing | None, ratio: float | None) -> str:
    return "machine busy" if row is not None and row.busy is not None else units.times(ratio)


def _why_not(manifest: Json, pick: Pick | None) -> str:
    """Why there is no speed of the recommended file, where the manifest says it."""
    if pick is None:
        return ""
    place = f"{pick.target} at batch {pick.batch},"
    return next((why for what, why in missing(manifest) if what == pick.target or what.startswith(place)), "")


def _pick(entry: Json, timed: Mapping[Target, Sequence[Timing]]) -> Pick:
    target, file = str(entry.get("target") or "?"), str(entry.get("file") or "?")
    batch = units.known(entry.get("batch"))
    threads = units.known(entry.get("threads"))
    fitting = [
        setting
        for setting in timed
        if _short(setting[0]) == target.split(",")[0].lower()
        and batch in (None, setting[1])
        and threads in (None, setting[2])
    ]
    setting = min(fitting, key=lambda s: s[2], default=None)
    row = next((r for r in timed[setting] if r.file == file), None) if setting else None
    speedup = _interval(entry, "speedup")
    if row is not None and row.decisive.middle == speedup.middle:
        speedup = row.decisive  # bundles of old tell no interval here
    whole = None if batch is None else int(batch)
    return Pick(target, whole, file, str(entry.get("why") or ""), setting, row, speedup)


def _file(entry: Json, base: Json) -> File:
    size, accuracy = (units.known(entry.get(k)) for k in ("bytes", "accuracy_fraction"))
    return File(
        _name(entry),
        str(entry.get("kind") or ""),
        size,
        units.over(units.known(base.get("bytes")), size),
        accuracy,
        units.minus(accuracy, units.known(base.get("accuracy_fraction"))),
        entry is base,
        entry,
    )


def _timing(file: str, line: Json, is_base: bool) -> Timing:
    p50 = Interval(*(units.known(line.get(key)) for key in ("p50_ms", "p50_low_ms", "p50_high_ms")))
    ratios = [_interval(line, name) for name in ("speedup", "in_turn_speedup", "device_speedup")]
    alone, in_turn, device = [Interval()] * 3 if is_base else ratios  # against itself: nothing is told
    busy = line.get("busy")
    return Timing(
        file,
        p50,
        alone,
        in_turn,
        units.known(line.get("device_p50_ms")),
        device,
        line.get("distinguishable") is not False,
        line.get("narrow") is False,
        None if busy is None else str(busy),
        units.known(line.get("noise_fraction")),
        line,
    )


def _interval(line: Json, name: str) -> Interval:
    return Interval(*(units.known(line.get(key)) for key in (name, f"{name}_low", f"{name}_high")))


def _name(entry: Json) -> str:
    return str(entry.get("file") or "?")


def _short(provider: str) -> str:
    """`cpu` of CPUExecutionProvider: the target's name."""
    return provider.removesuffix("ExecutionProvider").lower()


def _whole(value: Any) -> int:
    return int(units.known(value) or 0)


def _unless_missing(text: str, word: str) -> str:
    return text if text == units.NOT_MEASURED else f"{text} {word}"
