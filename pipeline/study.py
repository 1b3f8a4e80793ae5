"""Studies: many recipes that differ in a few settings, run once each, resumable, in parallel.

runs/studies/<name>/   study.yaml as resolved, trials/<key>.json one a trial, results.csv, results.json,
                       report.html; the stage cache is the one of all runs, so common stages are run once
"""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from tersor.models.errors import BadInput
from tersor.pipeline import engine
from tersor.pipeline.progress import Reporter, Tell
from tersor.pipeline.store import lock, write_json, writing
from tersor.pipeline.study_file import Limit, Point, StudyFile, Top, grid
from tersor.pipeline.trial import Job

Record = dict[str, Any]
PACKAGES = ("tersor", "torch", "nni", "numpy", "onnx", "onnxscript")


def run_study(
    study: StudyFile, runs: Path, data: Path | None, *, yes: bool = False, quiet: bool = False
) -> tuple[Path, list[Record]]:
    """Run what is not yet there of a study; returns its folder and the records of all trials in order.

    Raises:
        BadInput: an axis names no setting, the grid is empty or too large.
        Unavailable: the cluster or tracking server cannot be reached, or the disk is full; finished
            trials are kept.
        Busy: another process runs this study.
    """
    folder = runs / "studies" / study.name
    with writing(folder):
        (folder / "trials").mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock", f"study {study.name!r}"), writing(folder):
        tracker = _tracker(study, runs)
        (folder / "study.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
        records: list[Record] = []
        for points in _rounds(study, data, yes, records):
            records += _run_points(study, points, runs, folder, data, quiet, tracker)
            write_results(folder, study, records)
    return folder, records


def _rounds(study: StudyFile, data: Path | None, yes: bool, records: list[Record]) -> Iterator[list[Point]]:
    """The points to run: a grid at once, a search in rounds that look at what came before."""
    if study.search.kind == "grid":
        yield grid(study, data, yes=yes)
        return
    from tersor.pipeline.search import rounds

    yield from rounds(study, data, records)


def _tracker(study: StudyFile, runs: Path) -> Callable[[Record], None]:
    if study.tracking is None:
        return lambda record: None
    from tersor.pipeline.tracking import open_tracker

    return open_tracker(study.name, study.tracking, runs)


def _run_points(
    study: StudyFile, points: Sequence[Point], runs: Path, folder: Path, data: Path | None, quiet: bool,
    tracker: Callable[[Record], None],
) -> list[Record]:  # fmt: skip
    """Run the points without a finished record, time them one after another, and return all records."""
    workers = study.workers or engine.default_workers()
    threads = max(1, engine.default_workers() // workers)
    sources = _source_digest(data)
    jobs = [_job(study, point, runs, folder, threads, sources) for point in points]
    new = [job for job in jobs if _finished(job) is None]
    if new:
        steps = [("trials", float(len(new)))] + ([("latency", len(new) * 0.1)] if study.latency else [])
        with Reporter(steps, quiet=quiet) as reporter:
            with reporter.step() as tell:
                _run_new(study, new, workers, tell)
            if study.latency:
                from tersor.pipeline.latency import time_trials

                with reporter.step() as tell:
                    time_trials(study.latency, [Path(job.record) for job in jobs], tell)
    records = []
    for job in jobs:
        record = _read(job)
        if job in new:
            tracker(record)
        records.append(record)
    return records


def _run_new(study: StudyFile, jobs: list[Job], workers: int, tell: Tell) -> None:
    """Common prefixes first, level by level, each once; then the trials."""
    counts = {"finished": 0, "failed": 0}

    def done(record: Record) -> None:
        """Count a record and say so."""
        counts[record["state"]] += 1
        said = f"{sum(counts.values())}/{len(jobs)}" + (
            f", {counts['failed']} failed" if counts["failed"] else ""
        )
        tell(sum(counts.values()) / len(jobs), said)

    for shared in shared_prefixes(jobs):
        engine.run_jobs(shared, study.engine, workers, lambda _: None, study.address)
    engine.run_jobs(jobs, study.engine, workers, done, study.address)


def shared_prefixes(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """For each depth the distinct first stages that several trials have in common, one job for each."""
    deepest = max(len(job.recipe["stages"]) for job in jobs)
    for depth in range(1, deepest):
        groups: dict[str, list[Job]] = {}
        for job in jobs:
            if depth < len(job.recipe["stages"]):
                prefix = {**job.recipe, "stages": job.recipe["stages"][:depth]}
                groups.setdefault(
                    _digest({k: v for k, v in prefix.items() if k not in _NOT_TRAINED}), []
                ).append(job)
        common = [group[0] for group in groups.values() if len(group) > 1]
        if not common:
            return
        yield [Job(**{**vars(job), "depth": depth, "key": f"{job.key}-{depth}"}) for job in common]


_NOT_TRAINED = ("name", "deploy", "gates")


def _job(study: StudyFile, point: Point, runs: Path, folder: Path, threads: int, sources: str) -> Job:
    recipe = point.recipe.model_dump(mode="json") | {"threads": threads}
    decides = {k: v for k, v in recipe.items() if k not in _NOT_TRAINED}
    versions = {package: _version(package) for package in PACKAGES}
    key = _digest([decides, study.test, versions, sources, _factory_digest(recipe["model"])])[:24]
    record = folder / "trials" / f"{key}.json"
    return Job(point.number, key, point.settings, recipe, str(runs), str(record), study.test)


def _finished(job: Job) -> Record | None:
    record = _read(job) if Path(job.record).is_file() else None
    return record if record and record["state"] == "finished" else None


def _read(job: Job) -> Record:
    record = json.loads(Path(job.record).read_text())
    return {**record, "trial": job.number, "settings": job.settings}


def write_results(folder: Path, study: StudyFile, records: Sequence[Record]) -> None:
    """results.json (everything), results.csv (a line a trial) and report.html."""
    from tersor.pipeline.study_page import write_page

    summary = summarize(records)
    content = {
        "name": study.name, "axes": list(study.axes), "trials": list(records), "summary": summary,
        "top": [{**t.model_dump(), "rows": top(summary, t, study.constraints)} for t in study.top],
        "constraints": [c.model_dump() for c in study.constraints],
    }  # fmt: skip
    write_json(folder / "results.json", content)
    rows = [{"trial": r["trial"], "seed": r["seed"], "state": r["state"], **r["settings"], **r["metrics"],
             "error": r["error"]} for r in records]  # fmt: skip
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = folder / "results.csv.tmp"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(folder / "results.csv")
    write_page(folder / "report.html", content)


def summarize(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row per setting of the axes: mean and standard deviation over its finished seeds."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(record["settings"], sort_keys=True, default=str), []).append(record)
    rows = []
    for group in groups.values():
        finished = [r["metrics"] for r in group if r["state"] == "finished"]
        keys = [k for k in finished[0] if all(k in m for m in finished)] if finished else []
        mean = {k: float(np.mean([m[k] for m in finished])) for k in keys}
        spread = {
            k: float(np.std([m[k] for m in finished], ddof=1)) if len(finished) > 1 else None for k in keys
        }
        row = {"settings": group[0]["settings"], "seeds": len(finished), "mean": mean, "std": spread}
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


def top_tables(study: StudyFile, records: Sequence[Record]) -> list[Table]:
    """The study's tables of best trials, for the terminal: mean over seeds, spread behind it."""
    summary, tables = summarize(records), []
    shown = ("validation_accuracy_fraction", "test_accuracy_fraction", "training_seconds", "packed_bytes")
    for table in study.top:
        columns = list(dict.fromkeys([table.metric, *shown]))
        rows = top(summary, table, study.constraints)
        out = Table(title=f"{study.name}: best by {table.metric}")
        settings = list(dict.fromkeys(k for row in rows for k in row["settings"]))
        for heading in [*settings, *columns]:
            out.add_column(heading, justify="right" if heading in columns else "left")
        for row in rows:
            cells = [str(row["settings"].get(k, "")) for k in settings]
            out.add_row(*cells, *(_spread(row, k) for k in columns))
        tables.append(out)
    return tables


def _spread(row: Mapping[str, Any], key: str) -> str:
    if key not in row["mean"]:
        return "not measured"
    scale = 100 if key.endswith("_fraction") else 1
    spread = row["std"].get(key)
    return f"{scale * row['mean'][key]:,.2f}" + (f" ± {scale * spread:,.2f}" if spread is not None else "")


def within(metrics: Mapping[str, float], limits: Sequence[Limit]) -> bool:
    """Whether metrics keep all constraints; a missing metric keeps none."""
    for limit in limits:
        value = metrics.get(limit.metric)
        low = -math.inf if limit.min is None else limit.min
        high = math.inf if limit.max is None else limit.max
        if value is None or not low <= value <= high:
            return False
    return True


def _source_digest(data: Path | None) -> str:
    """What the data's files look like from outside: names, sizes, times; cheap, and changes when they do."""
    files = sorted(p for p in data.rglob("*") if p.is_file()) if data and data.is_dir() else []
    return _digest([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files])


def _factory_digest(model: str) -> str | None:
    path = Path(model.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
