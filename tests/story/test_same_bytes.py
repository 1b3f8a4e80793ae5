"""Same recipe and seed, another folder and process, no cache: the same bytes in every shipped model file."""

from pathlib import Path

import pytest
from story.conftest import Story
from story.harness import MODEL_FILES, sha256, tersor, tiny_recipe, write_recipe


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a second run, made by fresh interpreters in a folder of its own."""
    folder = tmp_path_factory.mktemp("another-folder")
    recipe = write_recipe(folder, tiny_recipe()).name
    for command in ("compress", "deploy"):
        # hash randomisation on: an order that depends on it would show here
        done = tersor(command, recipe, "--quiet", cwd=folder, environment={"PYTHONHASHSEED": "random"})
        assert done.code == 0, done.stderr
    return folder / "dist/tiny"


@pytest.mark.parametrize("name", MODEL_FILES)
def test_two_runs_give_the_same_bytes(name: str, story: Story, second: Path) -> None:
    assert sha256(second / name) == sha256(story.bundle / name)


def test_another_seed_gives_other_bytes(story: Story, server, tmp_path: Path) -> None:
    recipe = tiny_recipe(seed=1, stages=tiny_recipe()["stages"][:1])
    assert server.run("compress", write_recipe(tmp_path, recipe).name, cwd=tmp_path).code == 0
    assert sha256(tmp_path / "runs/tiny/model.onnx") != sha256(story.bundle / "baseline.onnx")
