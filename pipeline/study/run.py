"""Studies: many recipes that differ in a few settings, run once each, resumable, in parallel.

runs/studies/<name>/   study.yaml as resolved, trials/<key>.json one a trial, results.csv, results.json,
                       report.html; the stage cache is the one of all runs, so common stages are run once
"""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from tersor.errors import Unavailable
from tersor.export.timing.providers import check_any
from tersor.files import digest_of, lock, write_whole, writing
from tersor.pipeline.study import engine
from tersor.pipeline.study.file import Latency, Point, StudyFile, grid
from tersor.pipeline.study.heartbeat import listen
from tersor.pipeline.study.job import Job
from tersor.pipeline.study.keys import Sources, decides
from tersor.pipeline.study.results import write_results
from tersor.pipeline.study.trial import Trial
from tersor.progress import Reporter, Tell

PAGE_SECONDS = 30.0
"""How often the tables and the page of a study under way are written anew."""


def run_study(
    study: StudyFile, runs: Path, data: Path | None, *, yes: bool = False, quiet: bool = False
) -> tuple[Path, list[Trial]]:
    """Run what is not yet there of a study; returns its folder and all trials in order.

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
        records: list[Trial] = []
        rounds = _rounds(study, data, yes, records)
        first = next(rounds)  # mistakes in the study are told before any server is asked
        _check_gpu(study, first)
        run = _Run(study, runs, quiet, records)
        write_whole(folder / "study.yaml", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
        try:
            for points in itertools.chain([first], rounds):
                run.round(points)
        except BaseException:  # Ctrl-C too: what is finished is on the page, unless the disk is full
            if run.records or run.ended:
                with contextlib.suppress(OSError):
                    run.write()
            raise
        run.write()
        if run.untracked is not None:
            raise run.untracked
    return folder, records


def _rounds(study: StudyFile, data: Path | None, yes: bool, records: list[Trial]) -> Iterator[list[Point]]:
    """The points to run: a grid at once, a search in rounds that look at what came before."""
    if study.search.kind == "grid":
        yield grid(study, data, yes=yes)
        return
    from tersor.pipeline.study.optuna_search import rounds

    yield from rounds(study, data, records)


def _check_gpu(study: StudyFile, points: Sequence[Point]) -> None:
    """Check that what would train or be timed on a GPU can: before the trials, not after or in each of them.

    Raises:
        Unavailable: no GPU is there. Trials of a Ray cluster train elsewhere, where it may be.
    """
    if study.latency:
        check_any([study.latency.target], "setting `latency.target` of the study")
    if study.engine == "local" and any(point.recipe.device != "cpu" for point in points):
        from tersor.pipeline.stages.environment import (
            check_device,
        )  # torch, which a resumed study does without

        for point in points:
            check_device(point.recipe)


def workers_of(study: StudyFile) -> int:
    """How many trials run at once: as many as the cores have room for, unless the study says."""
    return study.workers or max(1, engine.default_workers() // study.threads)


class _Run:
    """A study under way. untracked: why the tracking server no longer takes records."""

    def __init__(self, study: StudyFile, runs: Path, quiet: bool, records: list[Trial]) -> None:
        self.study, self.runs, self.quiet = study, runs, quiet
        self.folder, self.sources = runs / "studies" / study.name, Sources()
        self.workers = workers_of(study)
        self.engine = study.engine
        self.records = records
        self.ended: dict[int, Trial] = {}
        self.written = time.monotonic()
        self.untracked: Unavailable | None = None
        self.tracker = self._open_tracker()

    def round(self, points: Sequence[Point]) -> None:
        """Run the points without a finished record, time them one after another, append all records."""
        jobs = [_job(self.study, point, self.runs, self.folder, self.sources) for point in points]
        if self.study.workers is None and any(_by_the_clock(point) for point in points):
            self.workers = 1  # widths are chosen by the clock, which trials beside it would disturb
        self.ended = {job.number: found for job in jobs if (found := _finished(job)) is not None}
        if new := [job for job in jobs if job.number not in self.ended]:
            self._reach_engine()
            common = list(shared_prefixes(new))
            steps = [(f"stage {depth}", _epochs(jobs, depth - 1)) for depth, jobs in enumerate(common, 1)]
            steps.append(("trials", _epochs(new, len(common))))
            with Reporter(steps, quiet=self.quiet) as reporter:
                for depth, shared in enumerate(common, 1):
                    self._run_common(shared, depth, reporter)
                with reporter.step() as tell:
                    self._run_new(new, tell)
        if self.study.latency:  # also of trials that ended before an interruption, or before it was asked for
            self._time(self.study.latency, [Path(job.record) for job in jobs])
        self.ended = {}
        for trial in map(_read, jobs):
            self.records.append(trial)
            self._track(trial)

    def _run_common(self, jobs: list[Job], depth: int, reporter: Reporter) -> None:
        """A stage that several trials have in common: once for each of its distinct settings."""
        count = reused = 0

        def done(trial: Trial) -> None:
            """Say how far the stage is; what the cache had tells nothing about the time left."""
            nonlocal count, reused
            count, reused = count + 1, reused + bool(trial.reused)
            if trial.reused:
                reporter.skipped += _epochs(jobs, depth - 1) / len(jobs)
            words = f"{count}/{len(jobs)}, common to several trials"
            tell(count / len(jobs), words + (f", {reused} reused" if reused else ""))

        with reporter.step() as tell:
            reporter.announce(f"{jobs[0].recipe['stages'][depth - 1]['name']}, common to several trials")
            watch = _watch(tell, len(jobs), lambda: count)
            engine.run_jobs(jobs, self.engine, self.workers, done, self.study.address, watch)

    def _run_new(self, jobs: list[Job], tell: Tell) -> None:
        """The trials, from their common stages on."""
        count = failed = 0

        def done(trial: Trial) -> None:
            """Count a trial and show it."""
            nonlocal count, failed
            count, failed = count + 1, failed + (not trial.finished)
            tell(count / len(jobs), f"{count}/{len(jobs)}" + (f", {failed} failed" if failed else ""))
            self.ended[trial.trial] = trial
            if not self.study.latency:
                self._track(trial)
            if time.monotonic() - self.written > PAGE_SECONDS:
                self.write()

        watch = _watch(tell, len(jobs), lambda: count)
        engine.run_jobs(jobs, self.engine, self.workers, done, self.study.address, watch)

    def _time(self, settings: Latency, records: list[Path]) -> None:
        """Time what has not been timed, in all rounds of a search against the study's first network."""
        from tersor.pipeline.study.latency import time_trials, untimed

        if untimed(records):
            first = next((Path(r.first) for r in self.records if r.finished and r.first), None)
            with Reporter([("latency", 1.0)], quiet=self.quiet) as reporter, reporter.step() as tell:
                time_trials(settings, records, tell, reference=first)

    def write(self) -> None:
        """The tables and the page of all that is finished by now."""
        under_way = [trial for _, trial in sorted(self.ended.items())]
        write_results(self.folder, self.study, [*self.records, *under_way])
        self.written = time.monotonic()

    def _open_tracker(self) -> Callable[[Trial], None]:
        if self.study.tracking is None:
            return lambda trial: None
        from tersor.pipeline.study.tracking import open_tracker

        with self._or_local("tracking in runs/mlflow.db"):
            return open_tracker(self.study.name, self.study.tracking, self.runs)
        return open_tracker(self.study.name, "sqlite", self.runs)

    def _reach_engine(self) -> None:
        """Connect at once: a cluster that is not there must not be noticed after an hour."""
        with self._or_local("trials run on this machine"):
            engine.prepare(self.engine, self.workers, self.study.threads, self.study.address)
            return
        self.engine = "local"

    @contextlib.contextmanager
    def _or_local(self, instead: str) -> Iterator[None]:
        """Let what cannot be reached pass, with a word about it, if the study allows that."""
        try:
            yield
        except Unavailable as error:
            if not self.study.or_local:
                raise
            print(f"tersor: {error} Going on: {instead}.", file=sys.stderr)

    def _track(self, trial: Trial) -> None:
        """A server that goes away does not stop the trials; the next run of the study logs what it missed."""
        if self.untracked is None:
            try:
                self.tracker(trial)
            except Unavailable as error:
                self.untracked = error


def _watch(tell: Tell, total: int, ended: Callable[[], int]) -> Callable[[Sequence[Job]], None]:
    """What shows how far the jobs under way are, beside the ended ones."""

    def watch(jobs: Sequence[Job]) -> None:
        """Add what the workers say to the count."""
        done, words = listen(jobs)
        if words:
            tell((ended() + done) / total, f"{ended()}/{total}, {words}")

    return watch


def shared_prefixes(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """For each depth the distinct first stages that several trials have in common, one job for each."""
    deepest = max(len(job.recipe["stages"]) for job in jobs)
    for depth in range(1, deepest):
        groups: dict[str, list[Job]] = {}
        for job in jobs:
            if depth < len(job.recipe["stages"]):
                prefix = {**job.recipe, "stages": job.recipe["stages"][:depth]}
                groups.setdefault(digest_of(decides(prefix)), []).append(job)
        common = [group[0] for group in groups.values() if len(group) > 1]
        if not common:
            return
        yield [Job(**{**vars(job), "depth": depth, "key": f"{job.key}-{depth}"}) for job in common]


def _by_the_clock(point: Point) -> bool:
    """Whether a stage of a trial times layers or networks to choose widths."""
    for stage in point.recipe.stages:
        search = getattr(stage, "search", None)
        if getattr(stage, "align", None) == "auto" or (search is not None and search.timed):
            return True
    return False


def _epochs(jobs: Sequence[Job], first: int) -> float:
    """Rough work of the jobs' stages from the index `first` on, as a run counts it, and never none at all."""
    stages = [stage for job in jobs for stage in job.recipe["stages"][first : job.depth]]
    return sum(float(stage.get("epochs", 2.0)) for stage in stages) + 0.1 * len(jobs)


def _job(study: StudyFile, point: Point, runs: Path, folder: Path, sources: Sources) -> Job:
    recipe = point.recipe.model_dump(mode="json") | {"threads": study.threads}
    key = digest_of([decides(recipe), study.test, sources.of(recipe)])[:24]
    record = folder / "trials" / f"{key}.json"
    return Job(point.number, key, point.settings, recipe, str(runs), str(record), study.test)


def _finished(job: Job) -> Trial | None:
    trial = _read(job) if Path(job.record).is_file() else None
    return trial if trial and trial.finished else None


def _read(job: Job) -> Trial:
    """A job's record, by the number and the settings that it has in this study."""
    return replace(Trial.read(Path(job.record)), trial=job.number, settings=job.settings)
