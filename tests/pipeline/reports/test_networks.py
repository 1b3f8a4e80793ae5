"""The table of networks, and the profile command, on small cases."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tersor.errors import BadInput
from tersor.pipeline.cli.main import app
from tersor.pipeline.reports import networks as table_structure


def test_a_row_is_asked_achieved_proven_exported_and_timed() -> None:
    row = table_structure.measure(table_structure.random_network("mnist", 64), "l1norm", 0.5)
    assert row["achieved"] == pytest.approx(0.5)
    assert row["masked_max_abs_diff"] <= 1e-5
    assert row["onnx_max_abs_diff"] <= 1e-4 * row["largest_logit"]
    assert row["macs_ratio"] > 2.5
    assert row["time_ratio"] > 0


def test_a_network_that_fails_is_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_structure, "RATIOS", (0.0,))
    monkeypatch.setattr(table_structure, "PRUNERS", ("l1norm",))

    def fail(*_: object) -> dict:
        """As a network that cannot be traced."""
        raise table_structure.TersorError("cannot be traced", got="an if")

    monkeypatch.setattr(table_structure, "measure", fail)
    rows = table_structure.make(["mnist"], 64, lambda _: None)
    assert "fails: cannot be traced" in table_structure.markdown(rows, 64)


def test_random_norms_are_far_from_fresh() -> None:
    net = table_structure.random_network("resnet20 B", 64)
    variances = net.tensors["layer1.0.bn1.running_var"]
    assert variances.std() > 0.1
    assert net.tensors["layer1.0.bn1.running_mean"].abs().mean() > 0.1


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
        table_structure.make(["resnet20"], 64, lambda _: None)
