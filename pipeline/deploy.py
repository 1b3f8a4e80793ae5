"""The second story: from a finished run to a checked bundle.

What ships is what was measured: accuracy, parity and timing are taken on the final files. No stage reads
the test split; this does, once per file. `export` is handed plain files, arrays and callables.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tersor.errors import BadInput, ClaimBroken, Unavailable
from tersor.export.bundle import folder as bundle
from tersor.export.bundle.advice import advise
from tersor.export.timing import providers
from tersor.files import digest_of, read_json, sha256_of, writing
from tersor.pipeline.data.load import Data, load_data
from tersor.pipeline.recipe.read import read_recipe
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.shipping import gates
from tersor.pipeline.shipping.files import confusions, make_files, measure_files, time_files
from tersor.pipeline.shipping.manifest import make_manifest
from tersor.pipeline.show.report import write_report
from tersor.pipeline.stages.environment import prepare_torch
from tersor.pipeline.stages.run_folder import stage_metrics
from tersor.pipeline.stages.store import Store
from tersor.progress import Reporter


def deploy(
    recipe: Recipe, store: Store, dist: Path, *, require: Sequence[str] = (), quiet: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Make, measure and ship the files of a finished run; returns the bundle's folder and manifest.

    Raises:
        BadInput: there is no finished run of this recipe.
        Unavailable: a required target cannot be timed.
        ClaimBroken: a gate does not hold; the rejected bundle is left in the run folder to be looked at.
    """
    not_measured = missing_targets(recipe, require)
    target = dist / recipe.name
    check_place(target)
    done = check_finished(recipe, store.root / recipe.name)
    prepare_torch(recipe)
    data = load_data(**recipe.data.model_dump(), seed=recipe.seed)
    check_same_data(done, data)
    with (
        store.hold(recipe.name) as run,
        fresh_folder(run / "deploy.partial") as work,
        Reporter(steps(recipe), quiet=quiet) as reporter,
    ):
        with reporter.step() as tell:
            files, skipped, notes = make_files(recipe, run, work, data, tell)
        with reporter.step() as tell:
            shipped = measure_files(files, run, work, data, tell)
        with reporter.step() as tell:
            latency = time_files(recipe, shipped, data, [t for t, _ in not_measured], tell)
        stages = stage_metrics(run)
        manifest = make_manifest(recipe, data, shipped, latency, not_measured + skipped, stages)
        manifest |= notes | {"advice": advise(manifest["artifacts"], recipe.deploy.targets)}
        manifest["confusion"] = confusions(data, shipped)
        broken = gates.broken(manifest["gates"])
        with reporter.step() as tell, writing(dist):
            write_report(work / "report.html", manifest, stages, manifest["confusion"])
            (work / "README.md").write_text(bundle.model_card(manifest), encoding="utf-8")
            target = run / "rejected" if broken else target
            contents = {path.name: path for path in sorted(work.iterdir())}
            bundle.write_bundle(target, contents, manifest)
            if not broken:
                shutil.rmtree(run / "rejected", ignore_errors=True)
            tell(1.0, str(target))
    if broken:
        raise ClaimBroken(
            "a gate does not hold, nothing was shipped",
            got="; ".join(broken),
            where=f"gates of {recipe.name}",
            todo=f"The rejected bundle is in {target}; change the recipe or the gate",
        )
    return target, manifest


def steps(recipe: Recipe) -> list[tuple[str, float]]:
    """The steps of a deploy and their rough durations, in seconds."""
    d = recipe.deploy
    timing = d.seconds_per_model * 4 * len(d.batches) * len(d.threads)
    return [("export", 4.0), ("accuracy", 1.0), ("timing", timing), ("bundle", 1.0)]


def missing_targets(recipe: Recipe, require: Sequence[str]) -> list[tuple[str, str]]:
    """(target, reason) of every target that cannot be timed here.

    Raises:
        Unavailable: one of them is required.
    """
    wanted = list(dict.fromkeys([*recipe.deploy.targets, *require]))
    missing = [(target, reason) for target in wanted if (reason := providers.why_not(target))]
    for target, reason in missing:
        if target in require:
            raise Unavailable(
                f"target {target!r} is required but cannot be timed", got=reason, where="--require"
            )
    return missing


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


def check_finished(recipe: Recipe, run: Path) -> dict[str, Any]:
    """Check that the run was made by this recipe and is as it was then; returns the run's metrics.

    Raises:
        BadInput: it is missing, unfinished, damaged, or was made with other settings.
    """
    todo = "Run `tersor compress` with the same recipe, data and settings first"
    done = read_json(run / "metrics.json", f"run {recipe.name!r} is not finished: its metrics.json", todo)
    if done.get("recipe_sha256") != digest_of(recipe.decides_network()):
        raise BadInput(
            "the run was made with other settings than this recipe's",
            got=_differing(recipe, run / "recipe.yaml"),
            wanted="the recipe and --set that `tersor compress` was given",
            where=run,
            todo=todo,
        )
    for name, digest in done["sha256"].items():
        if not (run / name).is_file() or sha256_of(run / name) != digest:
            raise BadInput("a file of the run is damaged or missing", where=run / name, todo=todo)
    return done


def _differing(recipe: Recipe, made_with: Path) -> str:
    """The first settings in which a recipe differs from that of the run, a few of them."""
    try:
        before = _flat(read_recipe(made_with).decides_network())
    except BadInput:
        return "a run of another version of tersor, or a damaged one"
    now = _flat(recipe.decides_network())
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    told = [f"{name} was {before.get(name)}, is {now.get(name)}" for name in names[:3]]
    return "; ".join(told) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; a stage by its own name."""
    if isinstance(settings, dict):
        inner = list(settings.items())
    elif isinstance(settings, list) and settings and all(isinstance(s, dict) for s in settings):
        inner = [(str(s.get("name", at)), s) for at, s in enumerate(settings)]
        inner.append(("order", [name for name, _ in inner]))
    else:
        return {prefix: settings}
    return {k: v for name, part in inner for k, v in _flat(part, f"{prefix}.{name}".lstrip(".")).items()}


def check_same_data(done: Mapping[str, Any], data: Data) -> None:
    """Check that the data have not changed since the run: its training images could be our test images.

    Raises:
        BadInput: other images, labels or classes.
    """
    if done.get("data_sha256") != data.digest():
        raise BadInput(
            "the data have changed since the run was made",
            got=f"SHA-256 {data.digest()}",
            wanted=f"SHA-256 {done.get('data_sha256')}",
            where=f"data `{data.name}`",
            todo="Restore them, or run `tersor compress` again",
        )


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """An empty folder, gone again at the end; what an interrupted deploy left there is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def rewrite_report(folder: Path) -> Path:
    """Write report.html of a bundle anew from its manifest; checksums follow. Returns the page's path.

    Raises:
        BadInput: no bundle there, or a damaged one.
    """
    manifest = bundle.read_manifest(folder)
    with TemporaryDirectory() as temporary:
        page = Path(temporary) / "report.html"
        write_report(page, manifest, manifest.get("stages", []), manifest.get("confusion"))
        kept = {p.name: p for p in folder.iterdir() if p.name not in (bundle.MANIFEST, bundle.SUMS)}
        bundle.write_bundle(folder, {**kept, "report.html": page}, manifest)
    return folder / "report.html"
