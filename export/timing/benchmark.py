"""Time models against each other: alone and in turn, against their own noise, never on a busy machine."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tersor.errors import BadInput, Unavailable
from tersor.export.codec.pack import unpack_bytes
from tersor.export.timing import clock
from tersor.export.timing.clock import Signs, together
from tersor.export.timing.device import open_bound
from tersor.export.timing.feeds import check_runs, check_same, described, feed
from tersor.export.timing.latency import FEWEST_SITTINGS, MOST_SITTINGS, Figure, LatencyRow, figure, noise_of
from tersor.export.timing.providers import TARGETS, open_session, tf32
from tersor.export.timing.sampling import Sitting, Way, sit
from tersor.records import Record

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

DEFAULT_BATCHES = (1, 64)
PRECISION = 0.02
"""Half of a speed-up's interval, as a fraction: when all are within it, no more sittings are needed."""
LONGEST = 4
"""Times what was asked for, opening and warming up included, after which wide intervals stay as they are."""
USUAL_SITTINGS = (FEWEST_SITTINGS + MOST_SITTINGS) / 2
MOST_BUSY = 6
"""Sittings during which others used the machine, after which a quiet moment is no longer waited for."""
AGAIN = "\0the baseline again"
"""Name of the baseline's second session: the A/A test."""

Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Refused(Record):
    """A setting that there is no figure of, because the machine was busy while it was timed."""

    provider: str
    batch: int
    threads: int
    reason: str


@dataclass(frozen=True)
class Conditions(Record):
    """What the clock saw while one setting was timed: the state of the machine that is claimed of.

    load: average of the last minute before. governor: of the processor's clock speed.
    share: of elapsed time that the timing thread had a processor. others, stolen: processors that other
    processes and other machines used. noise_fraction: of the baseline against itself.
    sittings, busy_sittings: that count, and that were thrown away.
    tf32: whether fp32 files multiplied TF32 numbers; None on the CPU, which has none.
    """

    provider: str
    batch: int
    threads: int
    processors: int
    governor: str
    share: float
    noise_fraction: float
    sittings: int
    busy_sittings: int
    fed: str
    load: float | None = None
    involuntary_switches_per_s: float | None = None
    others: float | None = None
    stolen: float | None = None
    tf32: bool | None = None


@dataclass(frozen=True)
class Timings(Record):
    """What a benchmark gave: rows, in the order asked for; what was refused; under which conditions."""

    rows: tuple[LatencyRow, ...] = ()
    refused: tuple[Refused, ...] = ()
    conditions: tuple[Conditions, ...] = ()

    def __add__(self, other: "Timings") -> "Timings":
        return Timings(
            self.rows + other.rows, self.refused + other.refused, self.conditions + other.conditions
        )

    def needed(self) -> tuple[LatencyRow, ...]:
        """The rows, where all were measured.

        Raises:
            Unavailable: the machine was busy during some.
        """
        for refused in self.refused:
            raise Unavailable(
                "not measured: the machine was busy",
                got=refused.reason,
                where=f"batch {refused.batch}, {refused.threads} thread(s)",
                todo="Stop what else runs here and try again, or keep the raw figures with --force",
            )
        return self.rows


def time_files(
    models: Sequence[Path],
    target: str,
    *,
    batches: Sequence[int] | None = None,
    threads: Sequence[int] = (1,),
    seconds: float,
    shapes: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> Timings:
    """Time .onnx and .tsr files against the first one; as `benchmark`. The same file twice is an A/A test.

    Raises:
        BadInput: a file is missing or damaged. Unavailable: the target is not there.
    """
    missing = [path for path in models if not path.is_file()]
    if missing:
        raise BadInput("a model file is missing", where=missing[0], todo="Run `tersor deploy` first")
    named = {
        name: unpack_bytes(path.read_bytes()) if path.suffix == ".tsr" else path
        for name, path in zip(_names(models), models, strict=True)
    }
    return benchmark(
        named,
        target,
        baseline=next(iter(named)),
        batches=batches,
        threads=threads,
        seconds_per_model=seconds,
        shapes=shapes,
        force=force,
        progress=progress,
    )


def benchmark(
    models: Mapping[str, Path | bytes],
    target: str,
    *,
    baseline: str,
    batches: Sequence[int] | None = None,
    threads: Sequence[int] = (1,),
    seconds_per_model: float = 1.0,
    inputs: np.ndarray | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    same_inputs: bool = True,
    force: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Timings:
    """Time all models at every batch size and number of threads.

    Sessions are opened anew in each of at least four sittings. In a sitting every model runs *alone* in warm
    blocks that take turns, and then *in turn*, one run each; the baseline is opened twice, and what differs
    between the two is the noise floor. Sittings go on until every speed-up's interval is within 2 %, ten at
    most, or four times the time asked for has passed. One during which others used the machine is thrown
    away; after six of them the setting is refused.

    Runs go through Python with numpy arrays. On a GPU they are end to end, copies included, and beside them
    stands the device's own time, with a CUDA graph where the model allows one (see `device`): it decides.
    Very fast models are timed over several runs a sample, whose mean counts as one run in the percentiles.

    Args:
        models: name -> file, or bytes.
        target: a key of `providers.TARGETS`.
        baseline: the name whose p50 the speed-ups divide.
        batches: images per run; None: 1 and 64, or the file's where it is fixed.
        threads: intra-op threads; with more than one, idle workers sleep (see `open_session`).
        seconds_per_model: spent on each model at each (batch, threads), at least; about 4 times that at most.
        inputs: images to run, float32 (N, C, H, W), repeated as needed; None: noise.
        shapes: of inputs with free dimensions beside the batch; see `feeds.feed`.
        same_inputs: whether all models must take inputs of the same shapes.
        force: keep what was timed on a busy machine, marked.
        progress: called with the fraction done, 0 to 1.

    Returns:
        One row per batch, threads and model, in this order, without those that are refused.

    Raises:
        BadInput: the baseline is not among the models; a model does not load or fit the inputs; the models
            take different inputs. Unavailable: the target is not there or does not run every node.
    """
    if baseline not in models:
        raise BadInput("the baseline is not among the models", got=baseline, wanted=", ".join(models))
    batches = batches or _batches(models[baseline], target)
    settings = [(batch, count) for batch in batches for count in threads]
    opened = {AGAIN: models[baseline], **models}
    timings = Timings()
    for done, (batch, count) in enumerate(settings):
        asked = _Asked(TARGETS[target], batch, count, on_processor=target == "cpu", force=force)
        notes = _Notes()
        make = partial(feed, batch=batch, shapes=shapes, inputs=inputs)
        opening = partial(
            _sessions,
            opened,
            target,
            make,
            count,
            notes,
            compared=tuple(models) if same_inputs else (baseline,),
            given=inputs is not None,
        )

        def report(fraction: float, done: int = done) -> None:
            """Tell the fraction of all settings that is done."""
            if progress is not None:
                progress((done + fraction) / len(settings))

        timings += _time(opening, baseline, asked, seconds_per_model, notes, report)
        report(1.0)
    return timings


def time_calls(
    calls: Calls,
    *,
    baseline: str,
    provider: str,
    batch: int,
    threads: int,
    seconds_per_call: float = 1.0,
    force: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> Timings:
    """Time functions against each other the way `benchmark` times models.

    Args:
        calls: name -> a function of no arguments, one run of a whole batch each.
        baseline: the name whose p50 the speed-ups divide.
        provider, batch, threads: what the rows are to say; the functions see to it themselves.
        seconds_per_call: time spent per function, at least.
        force: keep what was timed on a busy machine, marked.
        progress: called with the fraction done, 0 to 1.

    Raises:
        BadInput: the baseline is not among the functions.
    """
    if baseline not in calls:
        raise BadInput("the baseline is not among the functions", got=baseline, wanted=", ".join(calls))
    asked = _Asked(provider, batch, threads, on_processor=True, force=force)

    @contextmanager
    def opening() -> Iterator[_Opened]:
        """The functions as they are: only models can be opened anew."""
        yield _Opened({AGAIN: calls[baseline], **calls})

    return _time(opening, baseline, asked, seconds_per_call, _Notes("functions"), progress)


Feed = Mapping[str, np.ndarray]


@contextmanager
def _sessions(
    models: Mapping[str, Path | bytes],
    target: str,
    make: Callable[..., Feed],
    threads: int,
    notes: "_Notes",
    *,
    compared: Sequence[str],
    given: bool,
) -> Iterator["_Opened"]:
    """All sessions, anew; that they fit together is checked the first time.

    Args:
        models, target, threads: as for `benchmark`.
        make: what a session is fed.
        notes: get what is told of the sessions.
        compared: names of models that must take the same inputs, the baseline among them.
        given: whether the first input's values were given.
    """
    first = not notes.fed
    if target == "cpu":
        sessions, feeds = _on_cpu(models, make, threads, check=first)
        now = _Opened({n: partial(s.run, None, feeds[n]) for n, s in sessions.items()})
    else:
        bounds = {name: open_bound(model, make, target, threads=threads) for name, model in models.items()}
        feeds = {name: dict(bound.feed) for name, bound in bounds.items()}
        now = _Opened(
            {name: bound.end_to_end for name, bound in bounds.items()},
            {name: bound.device_ms for name, bound in bounds.items()},
        )
        notes.no_graph = {name: bound.why_no_graph for name, bound in bounds.items()}
    if first:
        check_same({name: feeds[name] for name in compared})
    notes.fed = described(feeds[AGAIN], given)
    yield now


def _on_cpu(
    models: Mapping[str, Path | bytes], make: Callable[..., Feed], threads: int, *, check: bool
) -> tuple[dict[str, "InferenceSession"], dict[str, Feed]]:
    """A session of each model and what it is fed; what does not fit is told in words, where it is checked."""
    sessions = {name: open_session(model, "cpu", threads=threads) for name, model in models.items()}
    feeds = {name: make(session) for name, session in sessions.items()}
    for name, session in sessions.items() if check else ():
        check_runs(session, feeds[name])
    return sessions, feeds


@dataclass(frozen=True)
class _Opened:
    """What a sitting times. queues: of runs on a device, in milliseconds a run; empty on the CPU."""

    calls: Calls
    queues: Mapping[str, Callable[[int], float]] = field(default_factory=dict)


@dataclass
class _Notes:
    """What is told of the sessions once they have been opened."""

    fed: str = ""
    no_graph: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """A setting. on_processor: the timing thread works all the time, it does not wait for a device."""

    provider: str
    batch: int
    threads: int
    on_processor: bool
    force: bool


def _time(
    opening: Callable[[], AbstractContextManager[_Opened]],
    baseline: str,
    asked: _Asked,
    seconds: float,
    notes: _Notes,
    report: Callable[[float], None],
) -> Timings:
    """Sittings until the intervals are narrow, or the machine was busy too often."""
    load, kept, busy = clock.load_average(), list[Sitting](), list[Signs]()
    began = time.perf_counter()
    while True:
        sitting = _sitting(
            opening,
            asked,
            seconds / FEWEST_SITTINGS,
            len(kept) + len(busy),
            lambda f: report(min(0.95, (len(kept) + f) / USUAL_SITTINGS)),
        )
        if not asked.force and sitting.signs.busy(on_processor=asked.on_processor):
            busy.append(sitting.signs)
        else:
            kept.append(sitting)
        if len(busy) >= MOST_BUSY:
            reason = together(busy).busy(on_processor=asked.on_processor) or "others used it now and then"
            refused = Refused(asked.provider, asked.batch, asked.threads, f"the machine was busy ({reason})")
            return Timings(refused=(refused,))
        if len(kept) >= FEWEST_SITTINGS:
            late = time.perf_counter() - began > LONGEST * seconds * len(kept[0].alone)
            widths = [f.half_width for f in _figures(kept, baseline, _deciding(kept)).values()]
            if len(kept) == MOST_SITTINGS or late or max(widths) <= PRECISION:
                break
    signs, noise = together([sitting.signs for sitting in kept]), _noise(kept, baseline, _deciding(kept))
    seen = _conditions(asked, signs, noise, (len(kept), len(busy)), notes.fed, load)
    return Timings(_rows_of(kept, baseline, asked, notes.no_graph), conditions=(seen,))


def _deciding(kept: Sequence[Sitting]) -> Way:
    """What is compared: on a device the time there, else that alone."""
    return "device" if kept[0].device else "alone"


def _sitting(
    opening: Callable[[], AbstractContextManager[_Opened]],
    asked: _Asked,
    seconds: float,
    turn: int,
    progress: Callable[[float], None],
) -> Sitting:
    """Open, time, close: before the next ones open, for idle sessions hold threads and memory."""
    with opening() as now:
        return sit(now.calls, seconds, queues=now.queues, threads=asked.threads, turn=turn, progress=progress)


def _rows_of(
    kept: Sequence[Sitting],
    baseline: str,
    asked: _Asked,
    no_graph: Mapping[str, str | None] | None = None,
) -> tuple[LatencyRow, ...]:
    """What was timed, as rows in the order of the models."""
    alone, in_turn = (_figures(kept, baseline, way) for way in ("alone", "in_turn"))
    signs = together([sitting.signs for sitting in kept])
    why_busy = signs.busy(on_processor=asked.on_processor) if asked.force else None
    noise = _noise(kept, baseline, _deciding(kept))
    rows = {n: _row(n, asked, kept, alone[n], in_turn[n], noise, why_busy) for n in alone if n != AGAIN}
    if kept[0].device:
        device = _figures(kept, baseline, "device")
        rows = {n: _with_device(row, device[n], (no_graph or {}).get(n)) for n, row in rows.items()}
    return tuple(rows.values())


def _with_device(row: LatencyRow, device: Figure, no_graph: str | None) -> LatencyRow:
    """The row with what the device takes, which then decides."""
    low, middle, high = device.speedup
    return replace(
        row,
        device_p50_ms=device.p50_ms[1],
        device_speedup=middle,
        device_speedup_low=low,
        device_speedup_high=high,
        distinguishable=not low <= 1.0 <= high,
        narrow=device.half_width <= PRECISION,
        no_graph=no_graph,
    )


def _conditions(
    asked: _Asked, signs: Signs, noise: float, sittings: tuple[int, int], fed: str, load: float | None
) -> Conditions:
    def rounded(value: float | None, digits: int) -> float | None:
        """What is told of the machine, without digits that mean nothing."""
        return None if value is None else round(value, digits)

    return Conditions(
        provider=asked.provider,
        batch=asked.batch,
        threads=asked.threads,
        processors=signs.processors,
        governor=clock.governor(),
        share=round(signs.share, 4),
        noise_fraction=round(noise, 5),
        sittings=sittings[0],
        busy_sittings=sittings[1],
        fed=fed,
        load=rounded(load, 2),
        involuntary_switches_per_s=rounded(signs.switches_per_s, 1),
        others=rounded(signs.others, 2),
        stolen=rounded(signs.stolen, 3),
        tf32=tf32(asked.provider),
    )


def _noise(kept: Sequence[Sitting], baseline: str, way: Way) -> float:
    medians = [sitting.medians(way) for sitting in kept]
    return noise_of([m[baseline] for m in medians], [m[AGAIN] for m in medians])


def _figures(kept: Sequence[Sitting], baseline: str, way: Way) -> dict[str, Figure]:
    """Name -> median and ratio, in the order of `opening`."""
    medians = [sitting.medians(way) for sitting in kept]
    base, noise = [m[baseline] for m in medians], _noise(kept, baseline, way)
    return {
        name: figure(base, base if name == baseline else [m[name] for m in medians], noise)
        for name in medians[0]
    }


def _row(
    name: str,
    asked: _Asked,
    kept: Sequence[Sitting],
    alone: Figure,
    in_turn: Figure,
    noise: float,
    busy: str | None,
) -> LatencyRow:
    samples = np.concatenate([sitting.alone[name] for sitting in kept])
    low, p50, high = alone.p50_ms
    speedup_low, speedup, speedup_high = alone.speedup
    p90, p99 = (max(p50, float(v)) for v in np.percentile(samples, [90, 99]))
    return LatencyRow(
        file=name,
        provider=asked.provider,
        batch=asked.batch,
        threads=asked.threads,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        speedup=speedup,
        p50_low_ms=low,
        p50_high_ms=high,
        speedup_low=speedup_low,
        speedup_high=speedup_high,
        distinguishable=not speedup_low <= 1.0 <= speedup_high,
        throughput_per_s=asked.batch / p50 * 1e3,
        rounds=len(samples),
        in_turn_p50_ms=in_turn.p50_ms[1],
        in_turn_speedup=in_turn.speedup[1],
        in_turn_speedup_low=in_turn.speedup[0],
        in_turn_speedup_high=in_turn.speedup[2],
        noise_fraction=noise,
        sittings=len(kept),
        narrow=alone.half_width <= PRECISION,
        busy=busy,
    )


def _names(models: Sequence[Path]) -> list[str]:
    """A name for each file; one that is given again is counted."""
    names: list[str] = []
    for path in map(str, models):
        count = sum(name == path or name.startswith(f"{path} (") for name in names)
        names.append(f"{path} ({count + 1})" if count else path)
    return names


def _batches(model: Path | bytes, target: str) -> Sequence[int]:
    """What is timed where nothing is asked for: the file's batch size where it is fixed."""
    inputs = open_session(model, target).get_inputs()
    first = inputs[0].shape[:1] if inputs else []
    return first if first and isinstance(first[0], int) else DEFAULT_BATCHES
