"""The second story: from a finished run to a checked bundle.

What ships is what was measured: accuracy, parity and timing are taken on the final files. No stage reads
the test split; this does, once per file. `export` is handed plain files, arrays and callables.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tersor.errors import ClaimBroken, Unavailable
from tersor.export.bundle import folder as bundle
from tersor.export.bundle.advice import advise
from tersor.export.bundle.manifest import Manifest
from tersor.export.timing import providers
from tersor.export.timing.benchmark import Timings
from tersor.files import writing
from tersor.pipeline.data.load import Data, data_of
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.shipping import gates
from tersor.pipeline.shipping.files import confusions, make_files, measure_files, time_files
from tersor.pipeline.shipping.int8_choice import settled
from tersor.pipeline.shipping.manifest import make_manifest
from tersor.pipeline.show.report import write_report
from tersor.pipeline.stages.environment import prepare_torch
from tersor.pipeline.stages.run_folder import Run
from tersor.pipeline.stages.store import Store
from tersor.progress import Reporter, Step


def deploy(
    recipe: Recipe,
    store: Store,
    dist: Path,
    *,
    data: Data | None = None,
    require: Sequence[str] = (),
    force: bool = False,
    quiet: bool = False,
) -> tuple[Path, Manifest]:
    """Make, measure and ship the files of a finished run; returns the bundle's folder and manifest.

    Args:
        recipe: that the run was made by.
        store: the folder of runs.
        dist: the folder of bundles.
        data: the recipe's, if they are loaded already.
        require: targets that must be timed.
        force: keep times that were taken on a busy machine, marked.
        quiet: no progress.

    Raises:
        BadInput: there is no finished run of this recipe.
        Unavailable: a required target cannot be timed, or none of the recipe's can.
        ClaimBroken: a gate does not hold; the rejected bundle is left in the run folder to be looked at.
    """
    not_measured = missing_targets(recipe, require)
    target = dist / recipe.name
    check_place(target)
    run = Run(store.root / recipe.name)
    run.check_made_by(recipe)
    prepare_torch(recipe)
    data = data if data is not None else data_of(recipe)
    run.check_same_data(data)
    recipe = fitted(recipe, run.stages[0].macs)
    with (
        store.hold(recipe.name),
        run.work() as work,
        Reporter(steps(recipe), quiet=quiet) as reporter,
    ):
        with reporter.step() as tell:
            files, skipped, int8 = make_files(recipe, run, work, data, tell)
        with reporter.step() as tell:
            shipped = measure_files(recipe, files, run, work, data, tell)
        with reporter.step() as tell:
            missing = [target for target, _ in not_measured]
            timings = time_files(recipe, shipped, data, missing, force, tell)
            _check_timed(timings, require)
        manifest = make_manifest(
            settled(recipe, int8), data, shipped, timings, not_measured + skipped, run.stages
        )
        advice = tuple(advise(manifest.artifacts, recipe.deploy.targets, int8))
        manifest = replace(manifest, int8=int8, advice=advice, confusion=confusions(data, shipped))
        broken = gates.broken(manifest.gates or ())
        with reporter.step() as tell, writing(dist):
            told, stages = manifest.to_json(), [stage.to_json() for stage in run.stages]
            write_report(work / "report.html", told, stages, told["confusion"])
            (work / "README.md").write_text(bundle.model_card(manifest), encoding="utf-8")
            target = run.rejected if broken else target
            contents = {path.name: path for path in sorted(work.iterdir())}
            bundle.write_bundle(target, contents, manifest)
            if not broken:
                shutil.rmtree(run.rejected, ignore_errors=True)
            tell(1.0, str(target))
    if broken:
        raise ClaimBroken(
            "a gate does not hold, nothing was shipped",
            got="; ".join(broken),
            where=f"gates of {recipe.name}",
            todo=f"The rejected bundle is in {target}; change the recipe or the gate",
        )
    return target, manifest


LARGER_BATCHES, MOST_MACS = (64, 32, 16, 8, 4, 2), 16e9
"""Batch sizes that are timed beside 1, and multiply-adds of a run at most."""
CALIBRATION_MACS = 128e9
FILES_TIMED, OPENING = 6, 1.3
"""What a sitting times beside each other, the baseline twice; and how much longer with all opened."""


def fitted(recipe: Recipe, macs: int) -> Recipe:
    """The recipe with batch sizes and calibration images that fit the network, where it does not tell them.

    Args:
        macs: multiply-adds of an image; they decide and no clock, so that every machine does the same.
    """
    told = recipe.deploy
    chosen = {
        "batches": told.batches or batches_for(macs),
        "calibration_images": told.calibration_images or calibration_for(macs),
    }
    return recipe.model_copy(update={"deploy": told.model_copy(update=chosen)})


def calibration_for(macs: int) -> int:
    """256 images, or as many as take `CALIBRATION_MACS`, at least 64: large ones have values enough."""
    return int(min(256, max(64, CALIBRATION_MACS // max(1, macs))))


def batches_for(macs: int) -> list[int]:
    """1, and the largest of `LARGER_BATCHES` with which a run of the baseline takes about a quarter second.

    Args:
        macs: multiply-adds of an image.
    """
    return [1, *[size for size in LARGER_BATCHES if size * macs <= MOST_MACS][:1]]


def steps(recipe: Recipe) -> list[Step]:
    """The steps of a deploy and their rough durations; that of the timing in seconds."""
    d = recipe.deploy
    timing = d.seconds_per_model * FILES_TIMED * OPENING * len(d.batches) * len(d.threads)
    return [
        Step("export", 4.0),
        Step("accuracy", 1.0),
        Step("timing", timing, timed=True),
        Step("bundle", 0.5),
    ]


def missing_targets(recipe: Recipe, require: Sequence[str]) -> list[tuple[str, str]]:
    """(target, reason) of every target that cannot be timed here.

    Raises:
        Unavailable: one of them is required, or nothing can be timed at all: an earlier bundle with its
            timings is then left as it is.
    """
    wanted = list(dict.fromkeys([*recipe.deploy.targets, *require]))
    missing = [(target, reason) for target in wanted if (reason := providers.why_not(target))]
    for target, reason in missing:
        if target in require:
            raise Unavailable(
                f"target {target!r} is required but cannot be timed", got=reason, where="--require"
            )
    providers.check_any(recipe.deploy.targets, "setting `deploy.targets`")
    return missing


def _check_timed(timings: Timings, required: Sequence[str]) -> None:
    """Check that every required target was timed, not refused because the machine was busy.

    Raises:
        Unavailable: one was not.
    """
    providers_required = {providers.TARGETS[target] for target in required}
    Timings(refused=tuple(r for r in timings.refused if r.provider in providers_required)).needed()


def check_place(target: Path) -> None:
    """Check that nothing stands where the bundle goes but an earlier bundle, which will be replaced.

    Raises:
        Unavailable: a file, or a folder with something else in it.
    """
    if target.is_dir() and (not any(target.iterdir()) or (target / bundle.MANIFEST).is_file()):
        return
    if target.exists() or target.is_symlink():
        raise Unavailable(
            "something else stands where the bundle should be",
            got="a folder without a manifest.json" if target.is_dir() else "a file",
            where=target,
            todo="Move it away, or choose another folder with --dist",
        )


def rewrite_report(folder: Path) -> Path:
    """Write report.html of a bundle anew from its manifest; checksums follow. Returns the page's path.

    Raises:
        BadInput: no bundle there, or a damaged one.
    """
    manifest = bundle.read_manifest(folder)
    with TemporaryDirectory() as temporary:
        page = Path(temporary) / "report.html"
        told = manifest.to_json()
        write_report(page, told, manifest.stages or (), told.get("confusion"))
        kept = {p.name: p for p in folder.iterdir() if p.name not in (bundle.MANIFEST, bundle.SUMS)}
        bundle.write_bundle(folder, {**kept, "report.html": page}, manifest)
    return folder / "report.html"
