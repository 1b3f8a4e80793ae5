"""Kept results: the packed file of a headline row with its recipe, re-measured without training.

results/<name>/ holds model.tsr, recipe.yaml and result.json. What can be measured again is: the file's bytes
and hash, the size of the baseline's ONNX file (it depends on the architecture alone), and the test accuracy
of the decoded file. The baseline's own accuracy is what the run measured; proving it takes the training.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tersor.errors import BadInput
from tersor.export.bundle.verify import Check
from tersor.export.codec.pack import unpack
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing import parity
from tersor.export.timing.packed import load
from tersor.export.timing.providers import open_session
from tersor.files import read_json, sha256_of, write_json
from tersor.pipeline.data.load import Data, data_as_told
from tersor.pipeline.recipe.read import read_recipe, write_recipe
from tersor.pipeline.shipping.manifest import data_entry
from tersor.pipeline.stages.run_folder import PACKED, RECIPE, Run, new_contents
from tersor.pipeline.stages.table import fresh_network

RESULT = "result.json"


def keep(run: Path, results: Path, data_path: Path | None) -> Path:
    """Put a finished run's packed file, recipe and figures into results/<name>; returns that folder.

    Raises:
        BadInput: the run is not finished, or the data are not those it was made from.
    """
    finished = Run(run)
    recipe, data = finished.recipe, finished.data(data_path)
    inputs, labels = data.preprocessing.apply(data.test.images), data.test.labels
    first, packed = finished.onnx(0), finished.packed
    result = {
        "name": recipe.name,
        "baseline_bytes": first.stat().st_size,
        "baseline_accuracy_fraction": parity.accuracy(open_session(first, "cpu"), inputs, labels),
        "packed_bytes": packed.stat().st_size,
        "accuracy_fraction": parity.accuracy(load(packed), inputs, labels),
        "sha256": sha256_of(packed),
        "data": data_entry(recipe, data).to_json(),
        "stages": [
            {
                "name": stage.name,
                "stage": stage.stage,
                "validation_accuracy_fraction": stage.validation_accuracy_fraction,
                "packed_bytes": stage.packed_bytes,
            }
            for stage in finished.stages
        ],
    }
    folder = results / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    with new_contents(folder) as new:
        shutil.copyfile(packed, new / PACKED)
        anywhere = recipe.data.model_copy(update={"path": None})  # where the data lay is nobody's business
        write_recipe(recipe.model_copy(update={"data": anywhere}), new / RECIPE)
        write_json(new / RESULT, result)
    return folder


def recheck_all(results: Path, data: Path | None) -> list[tuple[dict[str, Any], list[Check]]]:
    """Every kept result with its checks; results of data sets that do not lie at `data` are not measured.

    Raises:
        BadInput: there is no result, or one is damaged.
    """
    folders = sorted(path.parent for path in results.glob(f"*/{RESULT}"))
    if not folders:
        raise BadInput("there are no kept results", where=results, todo="Keep one with `tersor kept add RUN`")
    checked = [recheck(folder, data) for folder in folders]
    if data is not None and not any(measured(checks) for _, checks in checked):
        raise BadInput(
            "the data of no result lie here", where=data, todo="Give the folder that holds the data sets"
        )
    return checked


def measured(checks: Sequence[Check]) -> bool:
    """Whether accuracy was measured."""
    return any(check.name == "accuracy" for check in checks)


def recheck(folder: Path, data_path: Path | None) -> tuple[dict[str, Any], list[Check]]:
    """A kept result and its checks: hash, bytes, the baseline's size, and accuracy when the data are there.

    Raises:
        BadInput: a file is missing or damaged.
    """
    result = read_json(folder / RESULT, "the kept result", "Get the folder again")
    try:
        return result, list(_checks(folder, result, _data(result, data_path)))
    except (KeyError, TypeError) as error:
        raise BadInput("the kept result is damaged", got=repr(error), where=folder / RESULT) from error


def _data(result: dict[str, Any], path: Path | None) -> Data | None:
    """The result's data; None when they lie elsewhere, or need a path and none is given."""
    told = result["data"]
    try:
        data = data_as_told(told, path)
    except BadInput:
        return None  # a folder with other sets than this one
    return data if data is not None and data.digest() == told["sha256"] else None


def _checks(folder: Path, result: dict[str, Any], data: Data | None) -> Iterator[Check]:
    packed = folder / PACKED
    if not packed.is_file():
        raise BadInput("the packed file is missing", where=packed, todo="Get the folder again")
    found = sha256_of(packed)
    yield Check("SHA-256", found == result["sha256"], found[:12], result["sha256"][:12])
    size = packed.stat().st_size
    yield Check("bytes", size == result["packed_bytes"], f"{size:,}", f"{result['packed_bytes']:,}")
    if data is None or found != result["sha256"]:
        return
    recipe = read_recipe(folder / RECIPE, (), None)
    with TemporaryDirectory() as scratch:
        plain = Path(scratch) / "baseline.onnx"
        export_onnx(fresh_network(recipe, data), plain, metadata={"licence": recipe.licence})
        baseline = plain.stat().st_size
        unpack(packed, Path(scratch) / "model.onnx")
        session = open_session(Path(scratch) / "model.onnx", "cpu")
        accuracy = parity.accuracy(session, data.preprocessing.apply(data.test.images), data.test.labels)
    yield Check(
        "baseline bytes",
        baseline == result["baseline_bytes"],
        f"{baseline:,}",
        f"{result['baseline_bytes']:,}",
    )
    claimed, count = result["accuracy_fraction"], len(data.test)
    close = abs(accuracy - claimed) <= 1.5 / count  # another processor may round one image the other way
    yield Check(
        "accuracy", close, f"{100 * accuracy:.2f} %", f"{100 * claimed:.2f} %", f"{count:,} test images"
    )


def table(checked: list[tuple[dict[str, Any], list[Check]]]) -> str:
    """The kept results as a table of text: size, ratio, accuracy, and what was checked now."""
    lines = [f"{'result':<24}{'bytes':>10}{'ratio':>9}{'baseline':>11}{'file':>9}{'points':>8}  checked"]
    for result, checks in checked:
        before, after = result["baseline_accuracy_fraction"], result["accuracy_fraction"]
        ratio = result["baseline_bytes"] / result["packed_bytes"]
        said = ", ".join(
            c.name if c.ok else f"{c.name} BROKEN (got {c.got}, claimed {c.wanted})" for c in checks
        )
        missing = "" if measured(checks) else "; accuracy not measured: no data"
        lines.append(
            f"{result['name']:<24}{result['packed_bytes']:>10,}{ratio:>8.1f}x{100 * before:>9.2f} %"
            f"{100 * after:>7.2f} %{100 * (after - before):>+8.2f}  {said}{missing}"
        )
    return "\n".join(lines)
