"""The first story: a recipe's stages in order, each one measured, each one resumable.

Resume and run are one thing: a stage whose result is in the cache is taken from there.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from tersor.errors import TersorError
from tersor.export.forms.to_onnx import export_onnx
from tersor.files import digest_of
from tersor.models.computed_weights import check_no_hooks, check_plain
from tersor.models.network import Network
from tersor.models.repeatable import check_repeatable
from tersor.models.user_code import is_file_place, is_package_place
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.data.load import Data, data_of
from tersor.pipeline.recipe.own_stage import Own
from tersor.pipeline.recipe.recipe import Load, Recipe
from tersor.pipeline.recipe.training import Training
from tersor.pipeline.stages.environment import check_device, prepare_torch
from tersor.pipeline.stages.identity import library_versions, stage_identity, stage_seed, versions
from tersor.pipeline.stages.measure import measure, size_ledger
from tersor.pipeline.stages.metrics import StageMetrics
from tersor.pipeline.stages.run_folder import Run, flat, write_run
from tersor.pipeline.stages.store import CHECKPOINT, METRICS, NETWORK, ONNX, StageResult, Store
from tersor.pipeline.stages.table import Context, fresh_network, row_of
from tersor.pipeline.training import ranks
from tersor.pipeline.training.fit import follow
from tersor.progress import Reporter, Tell

Which = Literal["none", "last", "all"]
"""The stages whose files other compressors are asked about: minutes for large networks."""
MEASURED = 0.9
"""Of a stage's step, by then its result is there and measured."""


def compress(
    recipe: Recipe,
    store: Store,
    *,
    data: Data | None = None,
    ledger: Which = "last",
    quiet: bool = False,
) -> Run:
    """Run a recipe: train, prune, tune, share, pack.

    Args:
        recipe: what to do.
        store: the folder of runs.
        data: the recipe's, if they are loaded already.
        ledger: after which stages the file goes through gzip, zstd and xz too.
        quiet: no progress.

    Raises:
        TersorError: any of its kinds, with the exit code that belongs to it.
    """
    ranks.check_alone("this training")
    check_device(recipe)
    prepare_torch(recipe)
    data = data if data is not None else data_of(recipe)
    with store.hold(recipe.name) as folder, Reporter(steps(recipe), quiet=quiet) as reporter:
        results = run_stages(recipe, data, store, reporter, ledger)
        with reporter.step() as tell:
            run = write_run(folder, recipe, data, results)
            tell(1.0, f"{run.metrics.onnx_bytes:,} -> {run.metrics.packed_bytes:,} bytes")
    return run


def compress_together(recipe: Recipe, store: Store, *, ledger: Which = "last", quiet: bool = False) -> Run:
    """`compress` in one of the processes that torchrun started: the first one runs the recipe, the others
    train along.

    Args:
        recipe, store, ledger, quiet: as for `compress`.

    Raises:
        TersorError: any of its kinds; BadInput where the processes disagree. SystemExit: in all processes
            but the first, when that has ended.
    """
    facts: dict[str, Any] | TersorError
    with ranks.joined(recipe.device) as team:
        try:
            check_device(recipe)
            prepare_torch(recipe)
            data = data_of(recipe)
            facts = {**flat(recipe.decides_network()), **library_versions(), "data, SHA-256": data.digest()}
        except TersorError as error:
            facts = error
        ranks.agree(team, facts)
        if team.rank:
            sys.exit(follow(data, recipe.device))
        return compress(recipe, store, data=data, ledger=ledger, quiet=quiet)


def run_stages(
    recipe: Recipe, data: Data, store: Store, reporter: Reporter, ledger: Which = "last"
) -> list[StageResult]:
    """Every stage's result, from the cache or computed now."""
    results, last = list[StageResult](), len(recipe.stages) - 1
    for index, digest in enumerate(stage_digests(recipe, data)):
        with reporter.step() as tell:

            def compute(folder: Path, index: int = index, tell: Tell = tell) -> None:
                """Run this stage in its working folder."""
                run_stage(recipe, data, store, index, folder, results, tell)

            results.append(
                store.cached(digest, compute, lambda: tell(0.0, "waiting for another run's same stage"))
            )
            if ledger == "all" or (ledger == "last" and index == last):
                add_ledger(results[-1], store, tell)
            if results[-1].reused:
                reporter.reused()
            tell(1.0, summary(results[-1]))
    return results


def add_ledger(result: StageResult, store: Store, tell: Tell) -> None:
    """Put a stage's file through other compressors, unless that was done: it may have become the last."""
    if not result.metrics.has_ledger:
        tell(MEASURED, "size by gzip, zstd and xz")
        store.keep_ledger(result, size_ledger(result.onnx.read_bytes()))


def stage_digests(recipe: Recipe, data: Data) -> Iterator[str]:
    """The digest of each stage's identity, one after the other."""
    digest, data_digest, known = "start", data.digest(), versions()
    for index, settings in enumerate(recipe.stages):
        version = row_of(settings).version
        digest = digest_of(stage_identity(recipe, index, version, data_digest, digest, known))
        yield digest


def run_stage(
    recipe: Recipe,
    data: Data,
    store: Store,
    index: int,
    folder: Path,
    done: Sequence[StageResult],
    tell: Tell,
) -> None:
    """Run one stage, measure its result, and write both into its working folder."""
    settings, began = recipe.stages[index], time.monotonic()
    before = done[-1] if done else None
    baseline = done[0].network if done else None
    checkpoint, seed = folder / CHECKPOINT, stage_seed(recipe, index)
    context = Context(recipe, data, seed, checkpoint, store.profiles, tell, baseline)
    start = before.network() if before else checked_start(context)
    network, details = row_of(settings).run(start, settings, context)
    seconds = time.monotonic() - began
    validation, previous = Images.of(data.validation, data.preprocessing), before.onnx if before else None
    measured = measure(network, validation, folder / ONNX, previous, recipe.licence)
    network.save(folder / NETWORK)
    StageMetrics(
        name=settings.name,
        stage=settings.stage,
        seconds=round(seconds, 3),
        measuring_seconds=round(time.monotonic() - began - seconds, 3),
        details=details,
        **measured,
    ).write(folder / METRICS)


def checked_start(context: Context) -> Network:
    """The fresh network, after a rehearsal of what would else fail only after the training."""
    recipe = context.recipe
    start = fresh_network(recipe, context.data)
    if brought := is_file_place(recipe.model) or is_package_place(recipe.model):
        check_no_hooks(start)
        check_repeatable(start)
        _check_plain(start, recipe)
    for settings in recipe.stages:
        row_of(settings).rehearse(start, settings, context)
    if brought:
        context.progress(0.0, "checking that it can be exported")
        with TemporaryDirectory() as folder:
            export_onnx(start, Path(folder) / ONNX)
    return start


def _check_plain(start: Network, recipe: Recipe) -> None:
    """Weights that are computed can be trained, and changed only once they were folded."""
    for settings in recipe.stages:
        if getattr(settings, "fold_parametrizations", False):
            return
        if not isinstance(settings, Training | Load | Own):
            check_plain(start, settings.name)


def steps(recipe: Recipe) -> list[tuple[str, float]]:
    """The steps of a run and their rough relative durations, in epochs."""
    return [(s.name, getattr(s, "epochs", 2.0)) for s in recipe.stages] + [("huffman", 1.0)]


def summary(result: StageResult) -> str:
    """One line about a finished stage."""
    accuracy, packed = result.metrics.validation_accuracy_fraction, result.metrics.packed_bytes
    words = f"validation {100 * accuracy:6.2f} %  packed {packed:>9,} bytes"
    return words + ("  (reused)" if result.reused else "")


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    name, model, data: of the recipe; images: to train on.
    stages: name, kind, epochs (None: it has none), seconds that a cached one took (None: it is to do).
    """

    name: str
    model: str
    data: str
    images: int
    stages: tuple[tuple[str, str, float | None, float | None], ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        keys = ("name", "stage", "epochs", "cached_seconds")
        return {**asdict(self), "stages": [dict(zip(keys, stage)) for stage in self.stages]}


def plan(recipe: Recipe, store: Store) -> Plan:
    """What a run would do, stage by stage.

    Raises:
        BadInput: the data are not there, or a file that decides a stage.
    """
    prepare_torch(recipe)
    data = data_of(recipe)
    stages = []
    for settings, digest in zip(recipe.stages, stage_digests(recipe, data)):
        cached = store.find(digest)
        seconds = cached.metrics.seconds if cached else None
        stages.append((settings.name, settings.stage, getattr(settings, "epochs", None), seconds))
    return Plan(recipe.name, recipe.model, data.name, len(data.train), tuple(stages))


def plan_text(plan: Plan) -> str:
    """A plan in words: one line a stage, cached or not, with its share of the work."""
    lines = [f"{plan.name}: {plan.model} on {plan.data}, {plan.images:,} images"]
    for index, (name, stage, epochs, seconds) in enumerate(plan.stages, 1):
        work = f"{epochs} epochs" if epochs is not None else ""
        spent = f"cached, took {seconds:.1f} s" if seconds is not None else "to do"
        lines.append(f"  {index:2d} {name:<16} {stage:<10} {work:<10} {spent}")
    return "\n".join(lines)
