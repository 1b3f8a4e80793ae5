"""Networks whose Python gets in the way of pruning: pruned, tuned, shipped and re-checked all the same."""

import json
from pathlib import Path

import pytest
from story.bad_networks import CONDITION, HEAD, NUMBER_IN_RESHAPE, SMALL
from story.cases import QUICK, train
from story.harness import Server, tiny_recipe, write_recipe


@pytest.mark.parametrize(
    ("forward", "by"),
    [(CONDITION, "tersor"), (NUMBER_IN_RESHAPE, "tersor, as a graph")],
    ids=["`if` on a shape", "a number in a reshape"],
)
def test_it_goes_the_whole_way(forward: str, by: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEAD + SMALL.format(forward=forward))
    stages = [*train(), {"stage": "structure", "sparsity": 0.5}, {"stage": "tune", "epochs": 1}]
    recipe = tiny_recipe(model="mine.py:net", arguments={}, stages=stages, deploy=QUICK)
    name = write_recipe(tmp_path, recipe).name
    for command in (("compress", name), ("deploy", name), ("verify", "dist/tiny")):
        done = server.run(*command, cwd=tmp_path)
        assert done.code == 0, (command, done.stderr)
    told = json.loads((tmp_path / "runs/tiny/02-structure/metrics.json").read_text())
    assert told["details"]["rebuilt_by"].startswith(by)
    assert told["details"]["achieved_sparsity_fraction"] == pytest.approx(0.5, abs=0.05)
    manifest = json.loads((tmp_path / "dist/tiny/manifest.json").read_text())
    assert manifest["cost"]["model"]["parameters"] < 0.6 * manifest["cost"]["baseline"]["parameters"]
