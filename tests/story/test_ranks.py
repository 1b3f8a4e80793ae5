"""Two processes, as torchrun starts them, train one network: as good as one, one writer, words on failure."""

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from story.harness import Outcome, Running, Server, contents, leftovers, sha256, tiny_recipe, write_recipe

RECIPE = tiny_recipe(
    "two",
    stages=[
        {
            "stage": "train",
            "epochs": 12,
            "batch_size": 63,
            "learning_rate": 0.1,
            "augment": {"shift_pixels": 1},
        },
        {"stage": "sparsity", "amount": 1.0},
        {"stage": "tune", "epochs": 4, "distill": 0.5},
    ],
)
"""An odd batch and dropout: what one process has and two must share out."""


def start(
    server: Server, folders: tuple[Path, Path], *arguments: str, other: tuple[str, ...] = ()
) -> list[Running]:
    """Start both ranks, each in its own folder; `other`: further arguments of the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        server.start(
            *arguments,
            *(other if rank else ()),
            cwd=folder,
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, folder in enumerate(folders)
    ]


def folders(tmp: Path, recipe: dict[str, Any] = RECIPE) -> tuple[Path, Path]:
    """A folder for each rank, with the recipe."""
    pair = (tmp / "first", tmp / "second")
    for folder in pair:
        folder.mkdir(parents=True)
        write_recipe(folder, recipe)
    return pair


def together(server: Server, pair: tuple[Path, Path], *arguments: str, **options: Any) -> list[Outcome]:
    """Run both ranks to their ends."""
    return [running.wait() for running in start(server, pair, *arguments, **options)]


def history(folder: Path, stage: str = "01-train") -> list[dict[str, float]]:
    return json.loads((folder / "runs/two" / stage / "metrics.json").read_text())["details"]["history"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, server: Server) -> tuple[Path, Path]:
    """The folders of two ranks that nothing interrupted."""
    pair = folders(tmp_path_factory.mktemp("whole"))
    outcomes = together(server, pair, "compress", "two.yaml")
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert (outcomes[1].stdout, outcomes[1].stderr) == ("", ""), "the first rank alone speaks"
    return pair


def test_two_ranks_are_as_accurate_as_one_and_one_of_them_writes(
    whole: tuple[Path, Path], server: Server, tmp_path: Path
) -> None:
    write_recipe(tmp_path, RECIPE)
    assert server.run("compress", "two.yaml", cwd=tmp_path).code == 0
    alone, both = history(tmp_path), history(whole[0])
    for key in ("validation_accuracy_fraction", "train_accuracy_fraction"):
        assert abs(alone[-1][key] - both[-1][key]) < 0.05, key
    assert alone[-1]["validation_accuracy_fraction"] > 0.9
    assert abs(alone[0]["train_loss"] - both[0]["train_loss"]) < 0.1, "it is the whole batch's"
    measured = json.loads((whole[0] / "runs/two/01-train/metrics.json").read_text())
    for key in ("validation_loss", "validation_accuracy_fraction"):
        assert both[-1][key] == pytest.approx(measured[key], rel=1e-4), (
            "of all images, with the first's statistics"
        )
    network = "runs/two/network.safetensors"
    assert sha256(whole[0] / network) != sha256(tmp_path / network), "no cache is shared: other sums"
    assert list(contents(whole[1])) == ["two.yaml"]


def test_without_what_depends_on_the_part_two_ranks_make_the_steps_of_one(
    server: Server, tmp_path: Path
) -> None:
    """No BatchNorm, no dropout: the gradient of an odd batch, shared out, is that of the whole one."""
    stages = [
        {
            "stage": "train",
            "epochs": 1,
            "batch_size": 63,
            "learning_rate": 0.05,
            "augment": {"shift_pixels": 1},
        },
        {"stage": "tune", "epochs": 1, "batch_size": 63, "learning_rate": 0.01, "distill": 0.5},
    ]
    plain = {**RECIPE, "stages": stages, "arguments": {"dropout": [0.0, 0.0]}}
    pair = folders(tmp_path, plain)
    assert {outcome.code for outcome in together(server, pair, "compress", "two.yaml")} == {0}
    assert server.run("compress", "two.yaml", "--runs", "alone", cwd=pair[1]).code == 0
    for stage in ("01-train", "02-tune"):
        both, alone = (
            load_file(runs / "two" / stage / "network.safetensors")
            for runs in (pair[0] / "runs", pair[1] / "alone")
        )
        assert both.keys() == alone.keys()
        for name, tensor in alone.items():
            # sums in another order give 2e-5; an unweighted part of the batch 8e-4, other draws 5e-3
            assert (both[name] - tensor).norm() < 1e-4 * tensor.norm(), (stage, name)


def test_a_rank_that_dies_is_told_and_the_next_start_ends_with_the_same_bytes(
    whole: tuple[Path, Path], server: Server, tmp_path: Path
) -> None:
    pair = folders(tmp_path)
    first, second = start(server, pair, "compress", "two.yaml")
    second.send_when(lambda: list(pair[0].glob("runs/.stages/*.partial/checkpoint.pt")))
    assert second.wait().code == -signal.SIGKILL
    outcome = first.wait()
    assert outcome.code == 4
    for words in ("another process of the training is gone", "rank 0 of 2", "the checkpoint is kept"):
        assert words in outcome.message
    assert list(pair[0].glob("runs/.stages/*.partial/checkpoint.pt"))
    outcomes = together(server, pair, "compress", "two.yaml")
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    for name in ("network.safetensors", "model.onnx", "model.tsr"):
        assert sha256(pair[0] / "runs/two" / name) == sha256(whole[0] / "runs/two" / name), name
    assert leftovers(pair[0]) == []


def test_the_other_rank_ends_with_words_when_the_first_dies(server: Server, tmp_path: Path) -> None:
    pair = folders(tmp_path)
    first, second = start(server, pair, "compress", "two.yaml")
    first.send_when(lambda: list(pair[0].glob("runs/.stages/*.partial/checkpoint.pt")))
    assert first.wait().code == -signal.SIGKILL
    outcome = second.wait()
    assert (outcome.code, "rank 1 of 2" in outcome.message) == (4, True)


CASES = {
    "another setting": (
        ("--set", "train.epochs=3"),
        2,
        ("disagree", "stages.train.epochs 3", "12, as at rank 0"),
    ),
    "other data": (("--set", "data.limit=500"), 2, ("disagree", "data")),
    "no data": (
        ("--set", "data.kind=mnist", "--data", "nowhere"),
        2,
        ("MNIST files are not there", "nowhere, rank 1"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_that_cannot_begin_together_say_why_once(case: str, server: Server, tmp_path: Path) -> None:
    other, code, says = CASES[case]
    first, second = together(server, folders(tmp_path), "compress", "two.yaml", other=other)
    assert (first.code, second.code) == (code, code)
    assert all(words in first.message for words in says), first.message
    assert second.message == ""


def test_what_all_ranks_find_is_told_once(server: Server, tmp_path: Path) -> None:
    """A training that diverges; a batch too small for two; a command that takes one process."""
    for arguments, code, words in (
        (("compress", "two.yaml", "--set", "train.learning_rate=1e9"), 1, "training diverged"),
        (("compress", "two.yaml", "--set", "train.batch_size=3"), 2, "at least 4, two images for each of 2"),
        (("deploy", "two.yaml"), 2, "`tersor deploy` runs in one process"),
    ):
        pair = folders(tmp_path / words.replace(" ", "-")[:9])
        first, second = together(server, pair, *arguments)
        assert (first.code, second.code) == (code, code), (first, second)
        assert words in first.message
        assert second.message == ""
