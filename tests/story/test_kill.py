"""Killed at any moment and started again: the same bytes, finished stages not repeated, bundles intact."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from story.cases import QUICK
from story.conftest import Story
from story.harness import (
    MODEL_FILES,
    Server,
    contents,
    leftovers,
    sha256,
    stage_times,
    tiny_recipe,
    write_recipe,
)

EPOCHS = 12
"""Long enough to be caught in the middle, short enough for a test."""

FINAL_FILES = ("network.safetensors", "model.onnx", "model.tsr")


def long_recipe() -> dict[str, Any]:
    """The tiny recipe with trainings of several epochs."""
    stages = [
        {**stage, "epochs": EPOCHS}
        if stage.get("name", stage["stage"]) in ("train", "tune-sparsity")
        else stage
        for stage in tiny_recipe()["stages"]
    ]
    return tiny_recipe(stages=stages)


class Cache:
    """What lies in a folder's stage cache at the moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs/.stages"

    def finished(self) -> int:
        """How many stages are finished."""
        return len(list(self.folder.glob("*/sums.json"))) - len(list(self.folder.glob("*.partial/sums.json")))

    def under_way(self) -> bool:
        """Whether a stage works."""
        return any(self.folder.glob("*.partial"))

    def checkpoint(self) -> Path | None:
        """The checkpoint of the stage that works."""
        return next(iter(self.folder.glob("*.partial/checkpoint.pt")), None)


MOMENTS: dict[str, Callable[[Cache], Any]] = {
    "before the first epoch": lambda c: c.under_way(),
    "in the first training": lambda c: c.checkpoint(),
    "between the first two stages": lambda c: c.finished() == 1,
    "in the structure stage": lambda c: c.finished() == 1 and c.under_way(),
    "in a later fine-tuning": lambda c: c.finished() == 4 and c.checkpoint(),
    "when the last stage is done": lambda c: c.finished() == 7,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    done = server.run("compress", write_recipe(folder, long_recipe()).name, cwd=folder)
    assert done.code == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, server: Server) -> dict[str, Any]:
    """One run, killed at each of the moments in turn and started again after each.

    Returns folder; `kept` (moment -> whether finished stages were untouched by the next start);
    `reused` (how many stages each start found); `epochs` (those in the checkpoints when killed).
    """
    folder = tmp_path_factory.mktemp("killed")
    recipe, cache = write_recipe(folder, long_recipe()).name, Cache(folder)
    told: dict[str, Any] = {"folder": folder, "kept": {}, "reused": {}, "epochs": {}}
    for moment, reached in MOMENTS.items():
        running = server.start("compress", recipe, cwd=folder)
        running.send_when(lambda reached=reached: reached(cache))
        ended = running.wait()
        assert ended.code == -signal.SIGKILL, f"{moment}: {ended}"
        if checkpoint := cache.checkpoint():
            told["epochs"][moment] = mark(checkpoint)
        told["kept"][moment] = stage_times(folder / "runs")
    finished = cache.finished()
    last = server.run("compress", recipe, cwd=folder)
    assert last.code == 0, last.stderr
    told["reused"] = (last.stderr.count("(reused)"), finished)
    return told


def mark(checkpoint: Path) -> int:
    """Write a mark into a checkpoint's history, which decides no weight; returns its finished epochs."""
    state = torch.load(checkpoint, weights_only=True)
    state["history"][0]["marked"] = 1.0
    torch.save(state, checkpoint)
    return state["numbers"][0]


def history(folder: Path, stage: str) -> list[dict[str, float]]:
    """The learning curve of a finished stage."""
    return json.loads((folder / "runs/tiny" / stage / "metrics.json").read_text())["details"]["history"]


@pytest.mark.parametrize("name", FINAL_FILES)
def test_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(name: str, killed, whole: Path) -> None:
    assert sha256(killed["folder"] / "runs/tiny" / name) == sha256(whole / "runs/tiny" / name)


def test_every_stage_of_the_killed_run_has_the_same_network(killed, whole: Path) -> None:
    networks = {p.parent.name: sha256(p) for p in (whole / "runs/tiny").glob("*/network.safetensors")}
    again = {p.parent.name: sha256(p) for p in (killed["folder"] / "runs/tiny").glob("*/network.safetensors")}
    assert len(networks) == 7
    assert again == networks


def test_finished_stages_were_not_repeated(killed) -> None:
    last = stage_times(killed["folder"] / "runs")
    for moment, before in killed["kept"].items():
        assert {path: last[path] for path in before} == before, moment


def test_last_start_reused_what_was_finished(killed) -> None:
    assert killed["reused"] == (7, 7)


@pytest.mark.parametrize(
    ("moment", "stage"),
    [("in the first training", "01-train"), ("in a later fine-tuning", "05-tune-sparsity")],
)
def test_training_goes_on_from_its_checkpoint(moment: str, stage: str, killed) -> None:
    assert 1 <= killed["epochs"][moment] < EPOCHS, "it was killed in the middle"
    curve = history(killed["folder"], stage)
    assert "marked" in curve[0], "the first epoch was taken from the checkpoint, not trained again"
    assert [row["epoch"] for row in curve] == list(range(1, EPOCHS + 1))


def test_nothing_is_left_over_by_the_kills(killed) -> None:
    assert leftovers(killed["folder"]) == []


def test_killed_at_every_rename_in_turn(story: Story, server: Server, copy: Path, tmp_path: Path) -> None:
    """Each start dies one rename later than the one before, until one gets through."""
    stages = [*tiny_recipe()["stages"][:1], {"stage": "sparsity"}, {"stage": "tune", "epochs": 2}]
    recipe = write_recipe(copy, tiny_recipe("killed", stages=stages)).name
    codes = []
    while not codes or (codes[-1] and len(codes) < 60):
        codes.append(server.run("compress", recipe, cwd=copy, kill_at_rename=len(codes) + 1).code)
    assert codes[-1] == 0
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert len(codes) > 20, "there were many moments"
    assert leftovers(copy) == []
    other = Path(shutil.copytree(story.folder, tmp_path / "uninterrupted"))
    write_recipe(other, tiny_recipe("killed", stages=stages))
    assert server.run("compress", recipe, cwd=other).code == 0
    for name in FINAL_FILES:
        assert sha256(copy / "runs/killed" / name) == sha256(other / "runs/killed" / name), name


def test_run_killed_while_it_replaces_another_is_not_taken_for_finished(
    story: Story, server: Server, tmp_path: Path
) -> None:
    """Its folder may then hold files of two runs: deploy takes a recipe only if the run is wholly its own."""
    work = Path(shutil.copytree(story.folder, tmp_path / "work"))
    stages = [*tiny_recipe()["stages"][:1], {"stage": "sparsity"}]
    changed = write_recipe(work, tiny_recipe("changed", stages=stages, deploy=QUICK)).name
    former = write_recipe(work, tiny_recipe("former", deploy=QUICK)).name
    assert server.run("compress", changed, cwd=work).code == 0, "now every stage is cached"
    same, codes, ended = ("--set", "name=tiny"), set(), None
    for count in range(1, 60, 2):
        folder = Path(shutil.copytree(work, tmp_path / "again"))
        ended = server.run("compress", changed, *same, cwd=folder, kill_at_rename=count).code
        pair = [server.run("deploy", recipe, *same, cwd=folder).code for recipe in (changed, former)]
        codes.add((ended, *pair))
        shutil.rmtree(folder)
        if ended == 0:
            break
    killed = -signal.SIGKILL
    # before: the earlier run stands; in between: neither is finished; after: the new one stands
    assert codes == {(killed, 2, 0), (killed, 2, 2), (0, 0, 2)}


def test_killed_deploys_leave_the_earlier_bundle_and_the_next_one_clears_up(
    story: Story, server: Server, copy: Path
) -> None:
    before, seen = contents(copy / "dist/tiny"), set[str]()
    for file in range(10, 60, 3):  # from inside the export to the writing of the bundle
        ended = server.run("deploy", "tiny.yaml", cwd=copy, kill_at_file=file)
        assert ended.code == -signal.SIGKILL
        left = [name for name in ("runs/tiny/deploy.partial", "dist/.tiny.new") if name in leftovers(copy)]
        assert left, "it was killed half-way"
        if not seen.issuperset(left):
            assert contents(copy / "dist/tiny") == before
            assert server.run("verify", "dist/tiny", cwd=copy).code == 0
        seen.update(left)
        if "dist/.tiny.new" in left:
            break
    assert seen == {"runs/tiny/deploy.partial", "dist/.tiny.new"}
    again = server.run("deploy", "tiny.yaml", cwd=copy)
    assert again.code == 0, again.stderr
    assert leftovers(copy) == []
    for name in MODEL_FILES:
        assert sha256(copy / "dist/tiny" / name) == sha256(story.bundle / name), name


def test_interrupt_says_one_line_and_the_next_start_goes_on(server: Server, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_recipe(stages=long_recipe()["stages"][:1])).name
    cache = Cache(tmp_path)
    running = server.start("compress", recipe, cwd=tmp_path)
    running.send_when(cache.checkpoint, signal.SIGINT)
    ended = running.wait()
    assert ended.code == 130
    assert ended.message == "tersor: Interrupted. Run the same command again to go on where it stopped."
    assert "Traceback" not in ended.stderr
    checkpoint = cache.checkpoint()
    assert checkpoint, "the checkpoint is kept"
    mark(checkpoint)
    assert server.run("compress", recipe, cwd=tmp_path).code == 0
    assert "marked" in history(tmp_path, "01-train")[0]
