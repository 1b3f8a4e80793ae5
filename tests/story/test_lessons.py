"""The lessons' commands look at a finished run, write what they say, and refuse what they cannot do."""

import json
from pathlib import Path

import pytest
from story.harness import Server, leftovers, stage_times


def test_influence_writes_its_picture_and_tells_a_table(server: Server, copy: Path) -> None:
    done = server.run("look", "influence", "runs/tiny", "--images", 100, cwd=copy)
    assert done.code == 0, done.stderr
    assert "fc1" in done.stdout
    assert "left out: fc2, its width is fixed by the network's outputs" in done.stdout
    assert (copy / "runs/tiny/influence/influence.png").read_bytes().startswith(b"\x89PNG")
    assert leftovers(copy / "runs/tiny/influence") == []


def test_influence_tells_json_of_a_later_stage(server: Server, copy: Path) -> None:
    done = server.run(
        "look",
        "influence",
        "runs/tiny",
        "--stage",
        "tune-structure",
        "--layers",
        "conv*",
        "--json",
        "--quiet",
        cwd=copy,
    )
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert {c["layer"] for c in told["channels"]} == {"conv1.0", "conv2.0"}
    assert len([c for c in told["channels"] if c["layer"] == "conv1.0"]) == 16  # half of 32
    assert done.stderr == ""


def test_shrink_goes_on_where_it_stopped(server: Server, copy: Path) -> None:
    command = (
        "lesson",
        "shrink",
        "runs/tiny",
        "--layers",
        "fc1",
        "--widths",
        "fc1=100,60",
        "--epochs",
        1,
        "--max-drop",
        1,
    )
    first = server.run(*command, "--json", cwd=copy)
    assert first.code == 0, first.stderr
    told, times = json.loads(first.stdout), stage_times(copy / "runs")
    assert [s["width"] for s in told["steps"]] == [100, 60]
    assert (copy / "runs/tiny/shrink/shrink.png").read_bytes().startswith(b"\x89PNG")
    again = server.run(*command, "--json", cwd=copy)
    assert json.loads(again.stdout) == told
    assert stage_times(copy / "runs") == times
    assert leftovers(copy / "runs") == []


def test_collapse_and_cost_tell_tables(server: Server, copy: Path) -> None:
    done = server.run("lesson", "collapse", "runs/tiny", "--images", 50, cwd=copy)
    assert done.code == 0, done.stderr
    assert done.stdout.count("| NO |") == 6
    assert (copy / "runs/tiny/collapse/collapse.png").read_bytes().startswith(b"\x89PNG")
    costs = server.run("look", "cost", "runs/tiny", "--batch", 8, "--bits", 4, cwd=copy)
    assert costs.code == 0, costs.stderr
    assert "32 → 4 bits" in costs.stdout
    told = json.loads(server.run("look", "cost", "runs/tiny", "--json", cwd=copy).stdout)
    assert told["after"]["macs"] < told["before"]["macs"]


def test_gemm_lesson_takes_a_runs_network(server: Server, copy: Path) -> None:
    done = server.run("lesson", "gemm", "runs/tiny", "--batch", 2, "--seconds", 0.01, "--json", cwd=copy)
    assert done.code == 0, done.stderr
    assert [lesson["part"] for lesson in json.loads(done.stdout)] == ["network", "conv1.0", "conv2.0"]


@pytest.mark.parametrize(
    "command", ["look influence", "lesson shrink", "lesson collapse", "look cost", "lesson gemm"]
)
def test_a_run_that_is_not_there_is_told(server: Server, tmp_path: Path, command: str) -> None:
    done = server.run(*command.split(), "runs/none", cwd=tmp_path)
    assert done.code == 2
    assert "the run's metrics is missing" in done.message
    assert "tersor compress" in done.message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("look", "influence", "runs/tiny", "--stage", "nosuch"), "no such stage"),
        (("look", "influence", "runs/tiny", "--layers", "fc7"), "no layer matches 'fc7'"),
        (("lesson", "shrink", "runs/tiny", "--widths", "fc1=500"), "cannot be visited"),
        (("lesson", "shrink", "runs/tiny", "--layers", "fc2"), "cannot be removed alone"),
        (("lesson", "collapse", "runs/tiny", "--layer", "conv1.0"), "no such linear layer"),
        (("look", "cost", "runs/tiny", "--bits", 40), "batch or bits are out of range"),
    ],
)
def test_what_cannot_be_done_is_told(
    server: Server, copy: Path, arguments: tuple[object, ...], said: str
) -> None:
    done = server.run(*arguments, cwd=copy)
    assert done.code == 2, done.stderr
    assert said in done.message


def test_another_data_set_is_refused(server: Server, copy: Path) -> None:
    path = copy / "runs/tiny/metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({**metrics, "data_sha256": "0" * 64}))
    done = server.run("look", "influence", "runs/tiny", cwd=copy)
    assert done.code == 2
    assert "not the data of the run" in done.message
