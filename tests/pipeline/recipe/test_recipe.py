"""Recipes: read, overridden, and explained when wrong."""

from pathlib import Path

import pytest
import yaml

from tersor.errors import BadInput
from tersor.pipeline.recipe.read import parse_recipe, read_recipe, write_recipe

RECIPES = sorted((Path(__file__).parents[3] / "recipes").rglob("*.yaml"))
MINIMAL = {"name": "x", "model": "mnist", "stages": [{"stage": "train"}, {"stage": "tune"}]}


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_valid_and_named_for_their_file(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name.removeprefix("mnist-") == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_say_their_name_in_a_line_of_their_own_which_make_reads(path: Path) -> None:
    lines = [line.partition("#")[0].rstrip() for line in path.read_text().splitlines()]
    assert f"name: {read_recipe(path).name}" in lines


def test_resolved_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = read_recipe(RECIPES[0])
    write_recipe(recipe, tmp_path / "resolved.yaml")
    assert read_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("seed=7", lambda r: r.seed == 7),
        ("tune.epochs=3", lambda r: r.stages[1].epochs == 3),
        ("tune.augment.flip=true", lambda r: r.stages[1].augment.flip),
        ("gates.max_bytes=900", lambda r: r.gates.max_bytes == 900),
        ("deploy.batches=[1, 8]", lambda r: r.deploy.batches == [1, 8]),
        ("data.limit=50", lambda r: r.data.limit == 50),
    ],
)
def test_overrides_reach_their_setting(tmp_path: Path, override: str, read) -> None:  # type: ignore[no-untyped-def]
    assert read(read_recipe(written(tmp_path, MINIMAL), [override]))


def test_data_path_turns_digits_into_a_folder_and_leaves_other_kinds(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, MINIMAL), data=Path("pics")).data.kind == "folder"
    mnist = {**MINIMAL, "data": {"kind": "mnist"}}
    recipe = read_recipe(written(tmp_path, mnist), data=Path("sets"))
    assert (recipe.data.kind, recipe.data.path) == ("mnist", Path("sets"))


def with_stage(**stage: object) -> dict:
    return {**MINIMAL, "stages": [{"stage": "train"}, stage]}


def before_structure(**stage: object) -> dict:
    return {**MINIMAL, "stages": [{"stage": "train"}, stage, {"stage": "structure"}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**MINIMAL, "sead": 1}, r"unknown key 'sead'.*Did you mean 'seed'"),
        (with_stage(stage="tune", epoch=3), r"unknown key 'epoch'.*stages\.1\.epoch\. Did you mean 'epochs'"),
        (with_stage(stage="prune"), r"there is no stage 'prune'.*one of train, load, structure, tune"),
        (with_stage(stage="shering"), r"no stage 'shering'.*Did you mean 'sharing'"),
        (with_stage(stage="tune", epochs="many"), r"wrong value\. Got 'many'.*integer.*stages\.1\.epochs"),
        (with_stage(stage="structure", sparsity=1.5), r"Got 1\.5.*less than 1.*stages\.1\.sparsity"),
        (with_stage(stage="sharing", bits=2, values=9), r"values \(9\) do not fit 2 bits"),
        (with_stage(stage="sparsity", method="level", amount=2), r"fraction of the weights for method level"),
        (with_stage(stage="sparsity", method="global", per_layer={"fc": 0.5}), r"per_layer needs method std"),
        (with_stage(stage="sparsity", method="level", per_layer={"fc": 90}), r"per_layer holds fractions"),
        (with_stage(stage="sparsity", sensitivity="auto", per_layer={"fc": 2}), r"per_layer holds fractions"),
        (with_stage(stage="sharing", per_layer={"fc": 9}), r"Got 9.*less than or equal to 8"),
        (with_stage(stage="tune", batch_size=1), r"Got 1\..*greater than or equal to 2.*batch_size"),
        (before_structure(stage="sparsity"), r"`structure` comes before .* what `sparsity` has made"),
        (before_structure(stage="sharing"), r"`structure` comes before .* what `sharing` has made"),
        (before_structure(stage="linear"), r"`structure` comes before .* what `linear` has made"),
        (before_structure(stage="tune", ramp={}), r"`structure` comes before .* what `tune` has made"),
        (before_structure(stage="tune", penalty={"kind": "proximal"}), r"`structure` comes before"),
        (with_stage(stage="train", name="again"), r"`train` and `load` can only come first; found again"),
        (with_stage(stage="tune", name="train"), r"two stages are called train"),
        ({**MINIMAL, "stages": [{"stage": "tune"}]}, r"first stage must be `train` or `load`, not `tune`"),
        ({**MINIMAL, "stages": []}, r"at least 1 item"),
        ({**MINIMAL, "gates": {"max_byte": 1}}, r"unknown key 'max_byte'.*gates.*Did you mean 'max_bytes'"),
        ({**MINIMAL, "name": "../up"}, r"Got '\.\./up'"),
        ({k: v for k, v in MINIMAL.items() if k != "model"}, r"Field required.*model"),
        ([1, 2], r"no mapping\. Got list"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_recipe(written(tmp_path, content))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "cannot be read.*Wanted name.setting=value"),
        ("tun.epochs=3", "nothing in the recipe is called 'tun'.*Did you mean 'tune'"),
        ("tune.epochs=[", "value is not YAML"),
        ("tune.epoch=3", "unknown key 'epoch'.*Did you mean 'epochs'"),
    ],
)
def test_bad_overrides_are_explained(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_recipe(written(tmp_path, MINIMAL), [override])


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\n  model: [")
    with pytest.raises(BadInput, match=r"not readable as YAML.*line 2"):
        read_recipe(path)


def test_missing_recipe_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="recipe is missing"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_settings_of_deploy_do_not_decide_the_network() -> None:
    base = parse_recipe(MINIMAL, "here")
    other = parse_recipe({**MINIMAL, "name": "y", "gates": {"max_bytes": 5}}, "here")
    seeded = parse_recipe({**MINIMAL, "seed": 5}, "here")
    assert base.decides_network() == other.decides_network() != seeded.decides_network()


def test_where_the_data_lie_does_not_decide_the_network() -> None:
    here, there = (
        parse_recipe({**MINIMAL, "data": {"kind": "mnist", "path": path}}, "here") for path in ("a", "b")
    )
    assert here.decides_network() == there.decides_network()


def test_a_penalty_that_only_pulls_may_come_before_structure() -> None:
    parse_recipe(before_structure(stage="tune", penalty={"kind": "l1"}), "here")


def test_a_search_between_layers_takes_taylor_unless_told_otherwise() -> None:
    def pruner(**settings: object) -> str:
        """The pruner of a recipe's stage `structure`."""
        return parse_recipe(with_stage(stage="structure", **settings), "here").stages[1].pruner  # type: ignore[union-attr]

    assert pruner(search={"macs": 0.5}) == "taylor"
    assert pruner(search={"macs": 0.5}, pruner="l2norm") == "l2norm"
    assert pruner(sparsity=0.5) == "fpgm"
