"""One recipe from another: what a file changes of its base, and how mistakes in either are explained."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tersor.errors import BadInput
from tersor.pipeline.recipe.read import parse_recipe, read_recipe, write_recipe
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.study.file import grid, read_study

BASE: dict[str, Any] = {
    "name": "whole",
    "seed": 3,
    "model": "mnist",
    "arguments": {"batch_norm": True, "dropout": [0.1, 0.3]},
    "data": {"kind": "mnist", "limit": 50},
    "stages": [
        {"stage": "train", "epochs": 4},
        {"stage": "tune", "name": "polish", "epochs": 2, "distill": 0.5, "augment": {"flip": True}},
    ],
    "deploy": {"threads": [2]},
    "gates": {"max_bytes": 900, "max_abs_diff": 0.001},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs, with the recipe `whole.yaml`."""
    monkeypatch.chdir(tmp_path)
    write("whole.yaml", BASE)
    return tmp_path


def write(name: str, content: object) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def derived(*overrides: str, base: str = "whole.yaml", **content: Any) -> Recipe:
    return read_recipe(write("part.yaml", {"base": base, **content}), overrides)


def whole(**changes: Any) -> Recipe:
    return parse_recipe({**BASE, **changes}, "here")


@pytest.mark.usefixtures("folder")
def test_a_base_alone_is_the_recipe() -> None:
    assert derived() == whole()


@pytest.mark.usefixtures("folder")
def test_own_keys_win_and_replace_lists_and_single_values() -> None:
    stages = [{"stage": "train", "epochs": 9}]
    assert derived(name="part", seed=8, stages=stages) == whole(name="part", seed=8, stages=stages)


@pytest.mark.parametrize(
    ("key", "own", "merged"),
    [
        ("data", {"limit": 7}, {"kind": "mnist", "limit": 7}),
        ("gates", {"max_latency_ms": 2}, {"max_bytes": 900, "max_abs_diff": 0.001, "max_latency_ms": 2}),
        ("arguments", {"dropout": [0, 0]}, {"batch_norm": True, "dropout": [0, 0]}),
        ("deploy", {"batches": [2]}, {"threads": [2], "batches": [2]}),
    ],
)
@pytest.mark.usefixtures("folder")
def test_sections_are_merged_key_by_key(key: str, own: dict[str, Any], merged: dict[str, Any]) -> None:
    assert derived(**{key: own}) == whole(**{key: merged})


@pytest.mark.usefixtures("folder")
def test_a_mapping_of_stages_changes_settings_of_the_stage_of_that_name() -> None:
    train, polish = BASE["stages"]
    changed = {**polish, "epochs": 6, "augment": {"shift_pixels": 1}}
    assert derived(stages={"polish": {"epochs": 6, "augment": {"shift_pixels": 1}}}) == whole(
        stages=[train, changed]
    )


@pytest.mark.usefixtures("folder")
def test_null_takes_out_what_the_base_says() -> None:
    train, polish = BASE["stages"]
    left = {key: value for key, value in polish.items() if key != "distill"}
    assert derived(stages={"polish": {"distill": None}}) == whole(stages=[train, left])
    assert derived(gates={"max_bytes": None}) == whole(gates={"max_abs_diff": 0.001})
    assert derived(gates=None) == whole(gates={})


@pytest.mark.usefixtures("folder")
def test_null_is_a_value_where_the_base_says_nothing() -> None:
    assert derived(arguments={"init": None}).arguments == {**BASE["arguments"], "init": None}
    with pytest.raises(BadInput, match=r"unknown key 'distil'.*part\.yaml.*Did you mean 'distill'"):
        derived(stages={"polish": {"distil": None}})


@pytest.mark.usefixtures("folder")
def test_a_stage_of_ones_own_goes_by_the_name_of_its_function() -> None:
    write("mine.py", "def small_net(network):\n    return network\n")
    own = {"stage": "mine.py:small_net"}
    write("whole.yaml", {**BASE, "stages": [*BASE["stages"], own]})
    recipe = derived(stages={"small-net": {"name": "smaller"}})
    assert [stage.name for stage in recipe.stages] == ["train", "polish", "smaller"]


@pytest.mark.usefixtures("folder")
def test_a_base_may_have_a_base() -> None:
    write(
        "middle.yaml", {"base": "whole.yaml", "seed": 5, "stages": {"polish": {"name": "fin", "epochs": 7}}}
    )
    recipe = derived(base="middle.yaml", stages={"fin": {"distill": 0.25}})
    assert (recipe.seed, recipe.stages[1].name) == (5, "fin")
    assert (recipe.stages[1].epochs, recipe.stages[1].distill) == (7, 0.25)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("folder")
def test_a_base_is_sought_beside_the_recipe_and_then_where_the_command_runs() -> None:
    write("deep/part.yaml", {"base": "whole.yaml"})
    assert read_recipe(Path("deep/part.yaml")).seed == 3
    write("deep/whole.yaml", {**BASE, "seed": 4})
    assert read_recipe(Path("deep/part.yaml")).seed == 4


@pytest.mark.usefixtures("folder")
def test_overrides_come_after_the_base() -> None:
    recipe = derived("polish.epochs=11", "gates.max_bytes=1", stages={"polish": {"epochs": 6}})
    assert (recipe.stages[1].epochs, recipe.gates.max_bytes) == (11, 1)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("folder")
def test_a_recipe_is_not_proposed_as_its_own_base() -> None:
    with pytest.raises(BadInput, match=r"base of the recipe is missing") as told:
        derived(base="parts.yaml")
    assert "'part.yaml'" not in str(told.value.todo)


def test_the_resolved_recipe_has_no_base(folder: Path) -> None:
    recipe = derived(name="part")
    write_recipe(recipe, folder / "resolved.yaml")
    assert "base" not in yaml.safe_load((folder / "resolved.yaml").read_text())
    (folder / "whole.yaml").unlink()
    assert read_recipe(folder / "resolved.yaml") == recipe


def test_a_study_takes_a_recipe_with_a_base(folder: Path) -> None:
    write("part.yaml", {"base": "whole.yaml", "stages": {"polish": {"epochs": 6}}})
    study = write("study.yaml", {"name": "s", "recipe": "part.yaml", "axes": {"polish.distill": [0, 1]}})
    points = grid(read_study(study), None)
    assert [point.recipe.stages[1].distill for point in points] == [0, 1]  # type: ignore[attr-defined]
    assert {point.recipe.stages[1].epochs for point in points} == {6}  # type: ignore[attr-defined]


MISTAKES = {
    "missing": (
        {"part.yaml": {"base": "while.yaml"}},
        r"base of the recipe is missing\. Got while\.yaml.*part\.yaml, base\. Did you mean 'whole\.yaml'\?",
    ),
    "itself": ({"part.yaml": {"base": "part.yaml"}}, r"leads back.*Got part\.yaml -> part\.yaml\."),
    "ring": (
        {"part.yaml": {"base": "b.yaml"}, "b.yaml": {"base": "c.yaml"}, "c.yaml": {"base": "b.yaml"}},
        r"leads back.*Got b\.yaml -> c\.yaml -> b\.yaml\..*c\.yaml \(base of b\.yaml\), base",
    ),
    "a list": ({"b.yaml": "- train\n"}, r"no mapping\. Got list\. Where: b\.yaml \(base of part\.yaml\)"),
    "no YAML": ({"b.yaml": "a: ["}, r"not readable as YAML.*line 1.*Where: b\.yaml \(base of part\.yaml\)"),
    "a number": ({"part.yaml": {"base": 3}}, r"`base` names no recipe\. Got 3\..*part\.yaml, base"),
    "nothing": ({"part.yaml": "base:\n"}, r"`base` names no recipe\. Got None"),
    "no base": (
        {"part.yaml": {"name": "x", "model": "mnist", "stages": {"tune": {"epochs": 1}}}},
        r"`stages` is a mapping.*there is no base\. Got tune\..*part\.yaml, stages",
    ),
    "unknown stage": (
        {"part.yaml": {"base": "whole.yaml", "stages": {"polsh": {"epochs": 1}}}},
        r"the base has no stage 'polsh'\. Wanted one of train, polish\..*Did you mean 'polish'\?",
    ),
    "stage of null": (
        {"part.yaml": {"base": "whole.yaml", "stages": {"polish": None}}},
        r"no mapping\. Got None\..*part\.yaml, stages\.polish\. To leave a stage out",
    ),
    "base without stages": (
        {"b.yaml": {"name": "x", "stages": 5}, "part.yaml": {"base": "b.yaml", "stages": {"tune": {}}}},
        r"no stage 'tune'\. Wanted a base with stages",
    ),
    "own value": (
        {"part.yaml": {"base": "whole.yaml", "stages": {"polish": {"epochs": "many"}}}},
        r"Got 'many'.*Where: part\.yaml, stages\.polish\.epochs",
    ),
    "value of the base": (
        {"part.yaml": {"base": "b.yaml", "gates": {"max_bytes": 3}}, "b.yaml": {**BASE, "gates": {"max": 3}}},
        r"unknown key 'max'.*Where: b\.yaml \(base of part\.yaml\), gates\.max",
    ),
    "value of the base in a changed stage": (
        {
            "part.yaml": {"base": "b.yaml", "stages": {"train": {"epochs": 1}}},
            "b.yaml": {**BASE, "stages": [{"stage": "train", "epoch": 0}]},
        },
        r"unknown key 'epoch'.*Where: b\.yaml \(base of part\.yaml\), stages\.0\.epoch",
    ),
    "mapping that replaces the base's": (
        {"part.yaml": {"base": "whole.yaml", "stages": {"polish": {"augment": {"flp": 1}}}}},
        r"unknown key 'flp'.*Where: part\.yaml, stages\.polish\.augment\.flp",
    ),
    "value in place of a mapping": (
        {"part.yaml": {"base": "whole.yaml", "gates": 3}},
        r"Got 3\..*Where: part\.yaml, gates\.",
    ),
    "value of the base's stage": (
        {"b.yaml": {**BASE, "stages": [{"stage": "train", "epochs": 0}]}},
        r"Got 0\..*Where: b\.yaml \(base of part\.yaml\), stages\.0\.epochs",
    ),
    "made together": (
        {"part.yaml": {"base": "whole.yaml", "stages": {"polish": {"name": "train"}}}},
        r"two stages are called train.*Where: part\.yaml \(base: whole\.yaml\), stages",
    ),
    "said nowhere": (
        {"part.yaml": {"base": "b.yaml"}, "b.yaml": {"name": "x", "stages": BASE["stages"]}},
        r"Field required.*Where: part\.yaml \(base: b\.yaml\), model",
    ),
    "misspelt": (
        {"part.yaml": {"bases": "whole.yaml", "name": "x"}},
        r"unknown key 'bases'.*Did you mean 'base'\?",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
@pytest.mark.usefixtures("folder")
def test_mistakes_name_the_file_in_which_they_stand(case: str) -> None:
    files, message = MISTAKES[case]
    for name, content in {"part.yaml": {"base": "b.yaml"}, **files}.items():
        write(name, content)
    with pytest.raises(BadInput, match=message):
        read_recipe(Path("part.yaml"))


@pytest.mark.usefixtures("folder")
def test_base_is_no_key_of_a_resolved_recipe() -> None:
    with pytest.raises(BadInput, match="unknown key 'base'"):
        parse_recipe({**BASE, "base": "whole.yaml"}, "here")


def test_sections_and_stages_of_a_wrong_type_are_told_with_overrides_too(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"Got 5\..*, data"):
        read_recipe(write("part.yaml", {**BASE, "data": 5}), data=folder)
    with pytest.raises(BadInput, match="nothing in the recipe is called 'tune'"):
        read_recipe(write("part.yaml", {**BASE, "stages": 5}), ["tune.epochs=1"])
