"""The table of networks, and the profile command, on small cases."""

import json
from pathlib import Path

import pytest
import torch
from nets import make
from typer.testing import CliRunner

from tersor.errors import BadInput
from tersor.pipeline.cli.main import app
from tersor.pipeline.recipe.structure import Structure
from tersor.pipeline.reports import networks as report
from tersor.pipeline.structure.proof import randomised

HALF = Structure(stage="structure", pruner="l1norm", sparsity=0.5, linear=True, allow_less=True)


@pytest.mark.parametrize(("name", "candidates"), [("mnist", 3), ("timm:fasternet_t0", 44)])
def test_a_row_is_asked_achieved_proven_and_exported(name: str, candidates: int) -> None:
    row = report.measure(report.random_network(name, 64), HALF)
    assert row["achieved_sparsity_fraction"] == pytest.approx(0.5, abs=0.01)
    assert report.as_asked(row)
    assert row["candidates"] == candidates
    assert row["macs"][1] < 0.3 * row["macs"][0]
    assert row["masked_max_rel_diff"] <= 1e-12
    assert row["onnx_max_rel_diff"] <= 1e-5
    assert row["moved_rel"] > 0.01


def test_a_network_that_fails_is_a_row_that_says_why() -> None:
    rows = report.make(["timm:nothing"], HALF, 64, lambda _: None)
    assert rows[0]["kind"] == "refused"
    page = report.markdown(rows, HALF, {"timm:nothing": "runs"})
    assert "no classification network called 'nothing'" in page
    assert "0 as asked" in page
    assert "1 refused in words" in page
    assert "| runs |" in page


def test_a_layer_that_kept_its_channels_is_not_as_asked() -> None:
    row = {"not_pruned": {"a": "operator 'roll' is not known"}}
    assert not report.as_asked(row)
    assert not report.as_asked({"error": "no", "kind": "refused"})


def test_random_norms_are_far_from_fresh_and_nothing_holds_one_value() -> None:
    net = report.random_network("resnet20 B", 64)
    variances = net.tensors["layer1.0.bn1.running_var"]
    assert variances.std() > 0.1
    assert net.tensors["layer1.0.bn1.running_mean"].abs().mean() > 0.1
    plain = make(batch_norm=False)
    zeroed = plain.with_tensors({k: torch.zeros_like(v) for k, v in plain.tensors.items()})
    assert all(bool(t.std() > 0) for t in randomised(zeroed).tensors.values())


def test_profile_writes_picture_and_measurements(tmp_path: Path) -> None:
    arguments = ["profile", "mnist", "--shape", "1,8,8", "--step", "16", "--runs", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert Path(told["picture"]).read_bytes()[:4] == b"\x89PNG"
    widths = [row["widths"] for row in told["layers"]]
    assert widths[0] == [16, 32, 48, 64]
    assert all(len(row["widths"]) == len(row["latency_ms"]) for row in told["layers"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nothing-here"], "there is nothing to profile"), (["mnist", "--shape", "1,8"], "the shape is none")],
)
def test_profile_of_nothing_is_told(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["profile", *arguments, "--runs", str(tmp_path)])
    assert message in str(result.exception)


def test_a_network_that_is_not_in_the_table_is_told_with_a_suggestion() -> None:
    with pytest.raises(BadInput, match=r"no network called 'resnet20'.*Did you mean 'resnet20 [AB]'"):
        report.make(["resnet20"], HALF, 64, lambda _: None)


def test_results_to_stand_beside_have_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        report.read_beside(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(BadInput, match="cannot be read"):
        report.read_beside(tmp_path / "list.json")
