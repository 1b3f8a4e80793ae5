"""The first story: a recipe's stages in order, each one measured, each one resumable.

Resume and run are one thing: a stage whose result is in the cache is taken from there.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tersor.export.codec.pack import pack
from tersor.export.forms.to_onnx import export_onnx
from tersor.files import digest_of, replace_with_link, sha256_of, write_json
from tersor.models.layers import check_patterns
from tersor.models.network import Network
from tersor.models.user_code import is_file_place
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.data.load import Data, load_data
from tersor.pipeline.recipe.read import write_recipe
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.stages.environment import check_device, environment, prepare_torch, versions
from tersor.pipeline.stages.identity import stage_identity
from tersor.pipeline.stages.measure import measure
from tersor.pipeline.stages.store import CHECKPOINT, StageResult, Store, new_contents, show_stage
from tersor.pipeline.stages.table import STAGES, Context, fresh_network, stage_seed
from tersor.progress import Reporter, Tell


def compress(recipe: Recipe, store: Store, *, quiet: bool = False) -> Path:
    """Run a recipe: train, prune, tune, share, pack; returns the run folder.

    Raises:
        TersorError: any of its kinds, with the exit code that belongs to it.
    """
    check_device(recipe)
    prepare_torch(recipe)
    data = load_data(**recipe.data.model_dump(), seed=recipe.seed)
    with store.hold(recipe.name) as run, Reporter(steps(recipe), quiet=quiet) as reporter:
        results = run_stages(recipe, data, store, reporter)
        with reporter.step() as tell:
            tell(1.0, finish(recipe, data, run, results))
    return run


def run_stages(recipe: Recipe, data: Data, store: Store, reporter: Reporter) -> list[StageResult]:
    """Every stage's result, from the cache or computed now."""
    digest, results = "start", list[StageResult]()
    for index in range(len(recipe.stages)):
        digest = digest_of(stage_identity(recipe, index, data.digest(), digest, versions()))
        with reporter.step() as tell:
            results.append(store.find(digest) or compute(recipe, data, store, index, digest, results, tell))
            tell(1.0, summary(results[-1]))
    return results


def compute(
    recipe: Recipe,
    data: Data,
    store: Store,
    index: int,
    digest: str,
    done: Sequence[StageResult],
    tell: Tell,
) -> StageResult:
    """Run one stage in its working folder, measure its result, and put both into the cache."""
    before = done[-1] if done else None
    settings, began = recipe.stages[index], time.monotonic()
    with store.working_folder(digest, lambda: tell(0.0, "waiting for another run's same stage")) as folder:
        if (ready := store.find(digest)) is not None:
            return ready  # another process finished it while this one waited
        start = before.network() if before else checked_start(recipe, data, store.profiles, tell)
        baseline = done[0].network if done else None
        context = Context(
            recipe, data, stage_seed(recipe, index), folder / CHECKPOINT, store.profiles, tell, baseline
        )
        network, details = STAGES[settings.stage][1](start, settings, context)
        seconds = time.monotonic() - began
        validation = Images.of(data.validation, data.preprocessing)
        previous = before.onnx if before else None
        measured = measure(network, validation, folder / "model.onnx", previous, recipe.licence)
        network.save(folder / "network.safetensors")
        head = {"name": settings.name, "stage": settings.stage, "seconds": round(seconds, 3)}
        head["measuring_seconds"] = round(time.monotonic() - began - seconds, 3)
        write_json(folder / "metrics.json", {**head, **measured, "details": details})
        return store.finish(digest, folder)


def checked_start(recipe: Recipe, data: Data, profiles: Path, tell: Tell) -> Network:
    """The fresh network, after a rehearsal of what would else fail only after the training."""
    start = fresh_network(recipe, data)
    for settings in recipe.stages:
        if settings.stage == "structure":
            from tersor.pipeline.structure.stage import try_structure

            tell(0.0, "checking that its channels can be pruned")
            try_structure(start, settings, profiles, tell)
        elif settings.stage in ("sparsity", "sharing", "linear", "activations"):
            check_patterns(start, settings)
        elif settings.stage in ("train", "tune") and settings.ramp is not None:
            check_patterns(start, settings.ramp, f"stage `{settings.name}`, ramp")
    if is_file_place(recipe.model):
        tell(0.0, "checking that it can be exported")
        with TemporaryDirectory() as folder:
            export_onnx(start, Path(folder) / "model.onnx")
    return start


def finish(recipe: Recipe, data: Data, run: Path, results: list[StageResult]) -> str:
    """Fill the run folder: stage folders, the last stage's files, the packed one; returns a few words.

    A run that fails before everything is there leaves an earlier one as it was.
    """
    names = [f"{i + 1:02d}-{s.name}" for i, s in enumerate(recipe.stages)]
    with new_contents(run) as new:
        for name, result in zip(names, results, strict=True):
            show_stage(new / name, result)
        last = results[-1]
        replace_with_link(last.folder / "network.safetensors", new / "network.safetensors")
        replace_with_link(last.onnx, new / "model.onnx")
        report = pack(last.onnx, new / "model.tsr", coder=recipe.deploy.coder)
        write_recipe(recipe, new / "recipe.yaml")
        write_json(new / "environment.json", environment(recipe))
        digests = {
            "recipe_sha256": digest_of(recipe.decides_network()),
            "data_sha256": data.digest(),
            "stage_sha256": last.digest,
        }
        sizes = {"onnx_bytes": report.original_bytes, "packed_bytes": report.packed_bytes}
        first = [f"{names[0]}/model.onnx", f"{names[0]}/network.safetensors"]
        files = ["network.safetensors", "model.onnx", "model.tsr", *first]
        sums = {"sha256": {file: sha256_of(new / file) for file in files}}
        write_json(new / "metrics.json", {"stages": names, **digests, **sizes, **sums})
    return f"{report.original_bytes:,} -> {report.packed_bytes:,} bytes"


def steps(recipe: Recipe) -> list[tuple[str, float]]:
    """The steps of a run and their rough relative durations, in epochs."""
    return [(s.name, getattr(s, "epochs", 2.0)) for s in recipe.stages] + [("huffman", 1.0)]


def summary(result: StageResult) -> str:
    """One line about a finished stage."""
    m = result.metrics
    words = (
        f"validation {100 * m['validation_accuracy_fraction']:6.2f} %  packed {m['packed_bytes']:>9,} bytes"
    )
    return words + ("  (reused)" if result.reused else "")


def plan(recipe: Recipe, store: Store) -> str:
    """What a run would do: one line a stage, cached or not, with its share of the work."""
    prepare_torch(recipe)
    data = load_data(**recipe.data.model_dump(), seed=recipe.seed)
    digest, lines = "start", [f"{recipe.name}: {recipe.model} on {data.name}, {len(data.train):,} images"]
    for index, settings in enumerate(recipe.stages):
        digest = digest_of(stage_identity(recipe, index, data.digest(), digest, versions()))
        cached = store.find(digest)
        spent = f"cached, took {cached.metrics['seconds']:.1f} s" if cached else "to do"
        epochs = f"{settings.epochs} epochs" if hasattr(settings, "epochs") else ""
        lines.append(f"  {index + 1:2d} {settings.name:<16} {settings.stage:<10} {epochs:<10} {spent}")
    return "\n".join(lines)
