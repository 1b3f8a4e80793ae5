"""One tiny recipe, run once through the real commands; tests look at it or work on copies of it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from story.harness import Outcome, Server, tiny_recipe, write_recipe


@dataclass(frozen=True)
class Story:
    """A folder in which `tiny.yaml` was compressed and deployed, and what the commands said."""

    folder: Path
    compressed: Outcome
    deployed: Outcome

    @property
    def bundle(self) -> Path:
        """dist/tiny."""
        return self.folder / "dist/tiny"

    @property
    def run(self) -> Path:
        """runs/tiny."""
        return self.folder / "runs/tiny"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """What starts commands without importing torch each time."""
    started = Server()
    yield started
    started.close()


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Story:
    """The finished story; not to be changed. test_same_bytes.py makes it again, by fresh interpreters."""
    folder = tmp_path_factory.mktemp("story")
    recipe = write_recipe(folder, tiny_recipe()).name
    compressed = server.run("compress", recipe, cwd=folder)
    assert compressed.code == 0, compressed.stderr
    deployed = server.run("deploy", recipe, "--json", cwd=folder)
    assert deployed.code == 0, deployed.stderr
    return Story(folder, compressed, deployed)


@pytest.fixture
def copy(story: Story, tmp_path: Path) -> Path:
    """A copy of the finished story's folder, to be damaged at will."""
    return Path(shutil.copytree(story.folder, tmp_path / "copy"))
