"""Timing the networks of a study, one after another, when nothing else of the study runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tersor.errors import BadInput, Unavailable
from tersor.export.timing.benchmark import benchmark
from tersor.export.timing.latency import LatencyRow
from tersor.files import sha256_of
from tersor.pipeline.study import engine
from tersor.pipeline.study.file import Latency
from tersor.pipeline.study.trial import Trial
from tersor.progress import Tell

GROUP = 8
"""Networks timed in turn, besides the reference: each has a session of its own alive meanwhile."""


def untimed(records: Sequence[Path]) -> dict[Path, Trial]:
    """The finished trials that have no latency yet, by the paths of their records."""
    read = {path: Trial.read(path) for path in records}
    return {path: trial for path, trial in read.items() if trial.finished and not trial.timed}


def time_trials(
    settings: Latency, records: Sequence[Path], tell: Tell, *, reference: Path | None = None
) -> None:
    """Time every finished trial that has no latency yet, and write it into its record.

    Each network is timed in turn with the reference; files with the same bytes are timed once. One thread:
    idle threads of one network would disturb the next. Metrics added: latency_p50_ms and latency_p90_ms (of
    one run of a batch), latency_speedup over the reference with its 95 % interval latency_speedup_low,
    latency_speedup_high. Where a network cannot be timed, the record's `not_measured` says why.

    Args:
        settings: target, batch and seconds per network.
        records: paths of the study's records, the first trial first.
        tell: told the fraction done and a few words.
        reference: an ONNX file; default: the first finished trial's network after its first stage.
    """
    todo = untimed(records)
    if not todo:
        return
    engine.stop()  # even idle workers wake now and then
    if reference is None:
        read = map(Trial.read, records)
        reference = next(Path(trial.first) for trial in read if trial.finished and trial.first)
    files, lost = _distinct(todo)
    for path in lost:
        _write(path, todo[path], {}, "its ONNX file is not on this machine")
    groups = [list(files)[start : start + GROUP] for start in range(0, len(files), GROUP)]
    for index, digests in enumerate(groups):
        said = f"{index * GROUP}/{len(files)} networks"
        rows = _time(
            settings,
            reference,
            {d: Path(todo[files[d][0]].onnx or "") for d in digests},
            lambda done, i=index, said=said: tell((i + done) / len(groups), said),
        )
        for digest in digests:
            for path in files[digest]:
                found = rows[digest]
                if isinstance(found, str):
                    _write(path, todo[path], {}, found)
                else:
                    _write(path, todo[path], _metrics(found), None)
    tell(1.0, f"{len(files)} networks")


def _distinct(todo: Mapping[Path, Trial]) -> tuple[dict[str, list[Path]], list[Path]]:
    """SHA-256 of an ONNX file -> the records with this file; and the records whose file is not there."""
    files: dict[str, list[Path]] = {}
    lost = []
    for path, trial in todo.items():
        onnx = Path(trial.onnx or "")
        if onnx.is_file():
            files.setdefault(sha256_of(onnx), []).append(path)
        else:
            lost.append(path)
    return files, lost


def _time(
    settings: Latency, reference: Path, models: Mapping[str, Path], progress: Any
) -> dict[str, LatencyRow | str]:
    """A row for each model, or why there is none."""
    named = {"reference": reference, **models}
    try:
        timed = benchmark(
            named,
            settings.target,
            baseline="reference",
            batches=(settings.batch,),
            threads=(1,),
            seconds_per_model=settings.seconds_per_model,
            same_inputs=False,  # the size of the images may be what is studied
            progress=progress,
        )
    except (BadInput, Unavailable) as error:
        if len(models) == 1:
            return dict.fromkeys(models, str(error))
        # perhaps only one of them cannot be timed: each by itself, so that the others are
        alone = [_time(settings, reference, {name: path}, progress) for name, path in models.items()]
        return {name: row for rows in alone for name, row in rows.items()}
    refused = {f"not measured: {refused.reason}" for refused in timed.refused}
    if refused:
        return dict.fromkeys(models, refused.pop())
    return {str(row.file): row for row in timed.rows if row.file in models}


def _metrics(row: LatencyRow) -> dict[str, float]:
    return {
        "latency_p50_ms": row.p50_ms,
        "latency_p90_ms": row.p90_ms,
        "latency_speedup": row.speedup,
        "latency_speedup_low": row.speedup_low,
        "latency_speedup_high": row.speedup_high,
    }


def _write(path: Path, trial: Trial, metrics: Mapping[str, float], why_not: str | None) -> None:
    replace(trial, metrics={**trial.metrics, **metrics}, not_measured=why_not).write(path)
