"""What decides a stage's result changes its identity; what cannot change a network does not.

The settings are found by walking the models of the recipe: one that is added is covered by itself, or its
test says that it has to be classed. For each, values are tried until the recipe takes them.
"""

import contextlib
import copy
import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel, ValidationError

from tersor.errors import BadInput
from tersor.files import digest_of
from tersor.pipeline.data.load import load_data
from tersor.pipeline.recipe.recipe import KINDS, DataSettings, Recipe
from tersor.pipeline.stages import identity as identities
from tersor.pipeline.stages.identity import stage_identity, versions
from tersor.pipeline.stages.table import STAGES, row_of

Place = tuple[str, ...]
Raw = dict[str, Any]

FREE = {"name", "deploy", "gates", "data"}
"""Of a recipe: no stage looks at them. Of the data a stage's identity has the digest."""
FREE_IN_A_STAGE = {"name"}
FREE_IN_DATA = {"resize"}
"""Whether images of another size are refused; where the images lie (`path`) has a test of its own."""

TRAIN = {"stage": "train", "epochs": 4}
TRAINING = {"epochs": 4, "smaller": {"pixels": 6}, "ramp": {"method": "std"}, "penalty": {"kind": "l1"}}
SAMPLES: dict[str, list[list[Raw]]] = {
    "train": [[{"stage": "train", **TRAINING}]],
    "load": [[{"stage": "load", "weights": "weights.safetensors"}]],
    "tune": [[TRAIN, {"stage": "tune", **TRAINING}]],
    "structure": [
        [TRAIN, {"stage": "structure", "pruner": "l1norm", "schedule": {}}],
        [TRAIN, {"stage": "structure"}],
        *(
            [TRAIN, {"stage": "structure", "search": {budget: 1.5 if budget == "speedup" else 0.5}}]
            for budget in ("speedup", "latency_ms", "macs", "parameters")
        ),
    ],
    "sparsity": [[TRAIN, {"stage": "sparsity"}]],
    "sharing": [[TRAIN, {"stage": "sharing", "rate": 0.1}]],
    "linear": [[TRAIN, {"stage": "linear"}]],
    "activations": [[TRAIN, {"stage": "activations"}]],
    "vectors": [[TRAIN, {"stage": "vectors"}]],
}
"""Kind of stage -> stages that end with it. Together they have all nested settings: those are not made up."""
LIBRARIES = {"torch": "1"}


def recipe_of(stages: list[Raw]) -> Raw:
    """A recipe with all defaults spelled out."""
    raw = {"name": "x", "model": "mnist", "arguments": {"hidden": 8}, "stages": stages}
    return Recipe.model_validate(raw).model_dump(mode="json")


RECIPES = {kind: [recipe_of(stages) for stages in samples] for kind, samples in SAMPLES.items()}


def identity(
    raw: Raw,
    index: int = -1,
    *,
    data: str = "data",
    before: str = "before",
    libraries: Mapping[str, str] = LIBRARIES,
) -> str:
    """The digest of a stage's identity; of the last stage, if not said otherwise."""
    recipe = Recipe.model_validate(raw)
    index %= len(recipe.stages)
    version = row_of(recipe.stages[index]).version
    return digest_of(stage_identity(recipe, index, version, data, before, libraries))


def settings_in(model: type[BaseModel], place: Place = (), but: str = "") -> Iterator[tuple[Place, Any]]:
    """Where each setting stands, with its type; those inside other settings too; one may be left out."""
    for name, field in model.model_fields.items():
        here = (*place, name)
        if name == but:
            continue
        nested = [part for part in (field.annotation, *get_args(field.annotation)) if is_model(part)]
        if field.annotation not in nested:
            yield here, field.annotation
        for inner in nested:
            yield from settings_in(inner, here)


def is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def values(kind: Any) -> list[Any]:
    """Some values of a type, as YAML has them; a recipe refuses those that are out of range."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return values(inner[0])
    if origin in (Union, UnionType):
        return [value for part in inner for value in values(part)]
    if origin is Literal:
        return list(inner)
    if origin is list:
        return [[], *([value] for value in values(inner[0]))]
    if origin is dict:
        return [{}, *({"other": value} for value in values(inner[1]))]
    if origin is tuple:
        return [list(together) for together in zip(*map(values, inner), strict=True)]
    if is_model(kind):
        return []  # what is in it is changed by itself
    plain: dict[Any, list[Any]] = {
        NoneType: [None],
        bool: [False, True],
        int: [1, 2, 3, 8, 9, 20],
        float: [0.0, 0.2, 0.3, 0.5, 2.0, 75.0],
        str: ["other", "1.2"],
        Path: ["other"],
        Any: ["other"],
    }
    assert kind in plain, f"`values` of this test has none of the type {kind}: give it some"
    return plain[kind]


def changed(raw: Raw, place: tuple[str | int, ...], kind: Any, model: type[BaseModel] = Recipe) -> list[Raw]:
    """`raw`, in which all defaults are spelled out, with each other value at `place` that is valid there."""
    found, before = [], model.model_validate(raw)
    for value in values(kind):
        other: Any = copy.deepcopy(raw)
        target = other
        for part in place[:-1]:
            target = target[part] if isinstance(part, int) else target.get(part)
            if target is None:
                return []  # this sample lacks the settings it belongs to
        target[place[-1]] = value
        with contextlib.suppress(ValidationError):
            if model.model_validate(other) != before:
                found.append(other)
    return found


def by_place(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Parameters that end with a place and its type, called by where they stand."""
    return [pytest.param(*row, id=".".join([*row[:-2], *row[-2]])) for row in rows]


def test_every_kind_of_stage_has_its_samples() -> None:
    assert SAMPLES.keys() == KINDS.keys() == STAGES.keys()
    assert all(recipe["stages"][-1]["stage"] == kind for kind, found in RECIPES.items() for recipe in found)
    last = [identity(recipe) for found in RECIPES.values() for recipe in found]
    assert len(set(last)) == len(last)


@pytest.mark.parametrize(
    ("stage", "place", "kind"),
    by_place(
        (stage, *setting)
        for stage, model in KINDS.items()
        for setting in settings_in(model, but="stage")  # its kind, which has no other value
    ),
)
def test_every_setting_of_a_stage_but_its_name_decides_its_result(
    stage: str, place: Place, kind: Any
) -> None:
    free, tried = place[0] in FREE_IN_A_STAGE, 0
    for recipe in RECIPES[stage]:
        for other in changed(recipe, ("stages", len(recipe["stages"]) - 1, *place), kind):
            tried += 1
            same = identity(other) == identity(recipe)
            assert same == free, f"{place} of {other['stages'][-1]}: into stage_identity, or FREE_IN_A_STAGE"
    assert tried, "no sample takes another value of it: add one to SAMPLES that does"


@pytest.mark.parametrize(("place", "kind"), by_place(settings_in(Recipe, but="stages")))
def test_every_setting_of_a_recipe_that_is_not_free_decides_all_stages(place: Place, kind: Any) -> None:
    free, tried = place[0] in FREE, 0
    for recipe in itertools.chain(*RECIPES.values()):
        for other in changed(recipe, place, kind):
            tried += 1
            for index in range(len(recipe["stages"])):
                same = identity(other, index) == identity(recipe, index)
                assert same == free, f"{place}: into stage_identity, or FREE of this test"
    assert tried, "no other value of it is valid: give `values` of this test one that is"


def pictures(folder: Path, *sizes: int) -> Path:
    """A folder of two classes, 30 square colour images each, of these sizes in turn."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(30):
            size = sizes[index % len(sizes)]
            image = rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def data_samples(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Raw, str]]:
    """Settings of data, all defaults spelled out, with the digests of the data they give."""
    mixed = pictures(tmp_path_factory.mktemp("mixed"), 6, 7)
    equal = pictures(tmp_path_factory.mktemp("equal"), 6)
    resized = {"kind": "folder", "path": mixed, "image_size": [6, 6], "resize": True}
    samples: list[Raw] = [
        resized,
        {**resized, "channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]},
        {**resized, "channels": 1, "mean": [0.5], "std": [0.25]},
        {"kind": "folder", "path": equal},
    ]
    plain = [DataSettings.model_validate(sample).model_dump(mode="json") for sample in samples]
    return [(sample, data_digest(sample)) for sample in plain]


def data_digest(settings: Raw, seed: int = 0) -> str:
    """Of the data that these settings give, which is what stage_identity takes of them."""
    return load_data(**DataSettings.model_validate(settings).model_dump(), seed=seed).digest()


@pytest.mark.parametrize(("place", "kind"), by_place(settings_in(DataSettings, but="path")))
def test_every_setting_of_the_data_that_is_not_free_decides_their_digest(
    data_samples: list[tuple[Raw, str]], place: Place, kind: Any
) -> None:
    digests: list[tuple[str, str]] = []
    for sample, before in data_samples:
        for other in changed(sample, place, kind, DataSettings):
            with contextlib.suppress(BadInput):  # such as a size that the images do not have
                digests.append((before, data_digest(other)))
    assert digests, "no sample takes another value of it: add one to data_samples that does"
    if place[0] in FREE_IN_DATA:
        assert all(before == after for before, after in digests)
    else:
        assert any(before != after for before, after in digests), (
            f"data.{place[0]}: into the digest of the data, or FREE_IN_DATA of this test"
        )


def test_the_same_images_elsewhere_are_the_same_data(
    data_samples: list[tuple[Raw, str]], tmp_path: Path
) -> None:
    sample, before = data_samples[0]
    shutil.copytree(sample["path"], tmp_path / "moved")
    assert data_digest({**sample, "path": str(tmp_path / "moved")}) == before
    assert data_digest(sample, seed=1) != before


@pytest.mark.parametrize("kind", KINDS)
def test_data_libraries_and_what_came_before_decide_a_stages_result(kind: str) -> None:
    recipe = RECIPES[kind][0]
    found = {
        identity(recipe),
        identity(recipe, data="other"),
        identity(recipe, before="other"),
        identity(recipe, libraries={}),
        identity(recipe, libraries={"torch": "2"}),
        identity(recipe, libraries={"torch": "1", "numpy": "1"}),
    }
    assert len(found) == 6


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("train", "load")])
def test_the_same_stage_one_place_later_is_another_one(kind: str) -> None:
    """Its seed is that of its place."""
    stage, between = SAMPLES[kind][0][-1], {"stage": "structure", "name": "between"}
    assert identity(recipe_of([TRAIN, stage])) != identity(recipe_of([TRAIN, between, stage]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_version_of_a_stage_makes_its_results_new(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[kind][0]
    before = identity(recipe)
    newer = dataclasses.replace(STAGES[kind], version=STAGES[kind].version + 1)
    monkeypatch.setitem(STAGES, kind, newer)
    assert identity(recipe) != before


@pytest.mark.parametrize(
    "library", ["torch", "torchvision", "nni", "onnx", "onnxscript", "onnxruntime", "numpy"]
)
def test_another_version_of_a_library_makes_all_results_new(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPES["train"][0]
    real, before = identities._version, identity(recipe, libraries=versions())
    assert identity(recipe, libraries=versions()) == before
    monkeypatch.setattr(identities, "_version", lambda name: "0.0" if name == library else real(name))
    assert identity(recipe, libraries=versions()) != before


def test_another_instruction_set_makes_all_results_new(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["train"][0]
    before = identity(recipe, libraries=versions())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
    assert identity(recipe, libraries=versions()) != before


def test_other_weights_under_the_same_name_are_another_result(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    recipe = recipe_of([{"stage": "load", "weights": str(file)}])
    missing = identity(recipe)
    file.write_bytes(b"one")
    one = identity(recipe)
    file.write_bytes(b"two")
    two = identity(recipe)
    assert len({missing, one, two}) == 3
    file.write_bytes(b"one")
    assert identity(recipe) == one


@pytest.mark.parametrize("kind", KINDS)
def test_another_factory_under_the_same_name_is_another_result(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    recipe = {**RECIPES[kind][0], "model": f"{file}:factory"}
    found = []
    for source in ("one", "two", "one"):
        file.write_text(source)
        found.append(identity(recipe))
    assert found[0] == found[2] != found[1]


def test_a_stage_of_ones_own_is_decided_by_its_function_source_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    source = """from pydantic import BaseModel
class Mine(BaseModel):
    amount: float = 0.5
def one(network, settings: Mine):
    return network
other = one
"""
    file.write_text(source)
    stage = {"stage": f"{file}:one"}
    recipe = recipe_of([TRAIN, stage])
    found = {
        identity(recipe),
        identity(recipe_of([TRAIN, {"stage": f"{file}:other"}])),
        identity(recipe_of([TRAIN, {**stage, "amount": 0.6}])),
    }
    assert len(found) == 3
    assert identity(recipe_of([TRAIN, {**stage, "amount": 0.5, "name": "named"}])) == identity(recipe)
    before = identity(recipe)
    file.write_text(source + "# as before, but who knows\n")
    assert identity(recipe) != before
