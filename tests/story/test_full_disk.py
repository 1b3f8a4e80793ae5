"""A disk that fills up at any file: exit code 4, one paragraph, earlier results intact, nothing left over."""

from pathlib import Path

import pytest
from story.cases import Case, compress, deploy, run_case, train
from story.harness import Server
from story.test_bad_input import complaints

NEW = [*train(), {"stage": "sparsity"}]
"""Stages of which nothing is cached."""

MOMENTS = [
    *(("finished stages", n) for n in range(1, 6)),  # every file that is written when all stages are cached
    *(("new stages", n) for n in (2, 3, 4, 6)),  # of the first stage: lock, checkpoint, model, numbers
    *(("deploy", n) for n in (1, 2, 4, 5, 10, 13, 24)),  # from the first copy to the last checksum
]


@pytest.mark.parametrize(("what", "opened"), MOMENTS)
def test_full_disk_is_told_and_harms_nothing(
    what: str, opened: int, story, server: Server, tmp_path: Path
) -> None:
    prepare = {"finished stages": compress(), "new stages": compress(seed=5, stages=NEW), "deploy": deploy()}
    case = Case(
        what,
        4,
        ("No space left on device", "Where: "),
        prepare[what],
        options={"no_space_at": opened},
        may_add=("runs/.stages/*",),
    )
    result = run_case(case, story.folder, tmp_path / "work", server)
    assert complaints(case, result) == [], result.outcome.stderr


def test_run_goes_on_when_there_is_space_again(story, server: Server, tmp_path: Path) -> None:
    case = Case("", 4, (), compress(seed=5, stages=train(epochs=3)), options={"no_space_at": 4})
    folder = tmp_path / "work"
    assert run_case(case, story.folder, folder, server).outcome.code == 4
    kept = list((folder / "runs/.stages").glob("*.partial/*"))
    assert [p.name for p in kept] == ["checkpoint.pt"], "the first epoch's checkpoint is kept"
    again = server.run("compress", "tiny.yaml", cwd=folder)
    assert again.code == 0, again.stderr
    assert not list((folder / "runs/.stages").glob("*.partial"))
