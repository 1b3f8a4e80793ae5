"""The quantization tables: the reports' figures beside ours, ways told apart, gaps shown as gaps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nets import make
from trials import stage, trial

from tersor.errors import BadInput
from tersor.export.forms.to_onnx import export_onnx
from tersor.pipeline.recipe.read import read_recipe
from tersor.pipeline.recipe.recipe import Linear
from tersor.pipeline.reports import bits as table_bits
from tersor.pipeline.reports.bits import REPORTS, draw, lowbit_bytes, make_table, markdown, row_of
from tersor.pipeline.study.file import grid, read_study
from tersor.pipeline.weights.linear import quantize_weights


def row(way: str, bits: int, **changes: Any) -> dict[str, Any]:
    found = {
        "way": way,
        "bits": bits,
        "top1_percent": 60.0 + bits,
        "top5_percent": 95.0,
        "loss": 1.0 / bits,
        "weights": 35088,
        "packed_bytes": 1000 * bits,
        "lowbit_bytes": 4400 * bits,
        "baseline": {"onnx_bytes": 145_000},
    }
    return found | changes


def test_reports_and_ours_stand_in_one_table() -> None:
    text = markdown(REPORTS["r4"], [row("one scale for each layer", b) for b in (2, 3, 4)])
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| R4")}
    assert lines["| R4, without fine-tuning"].endswith("| 8.99 | 76.62 | 89.72 | 91.12 | 91.45 |")
    assert lines["| R4, 20 epochs"].endswith("| 85.65 | 90.76 | 91.35 | - | - |")
    assert "| one scale for each layer | top-1 | 62.00 | 63.00 | 64.00 | - | - |" in text
    assert "|  | loss | 0.5 | 0.333 | 0.25 | - | - |" in text


def test_footprint_counts_as_r1_does_and_shows_the_files() -> None:
    rows = [row("one scale for each layer", b) for b in (2, 4)] + [
        row("one scale for each layer", 8, lowbit_bytes=None)
    ]
    text = markdown(REPORTS["r1"], rows)
    assert "| 32 | 140,352 | 145,000 (plain ONNX) |" in text
    for bits, alone in ((2, "8,772"), (4, "17,544"), (8, "35,088")):  # R1's own figures
        low = "-" if bits == 8 else f"{4400 * bits:,}"
        assert f"| {bits} | {alone} | {low} | {1000 * bits:,} | one scale for each layer |" in text


def test_a_trial_says_its_way(tmp_path: Path) -> None:
    net, _ = quantize_weights(make(), Linear(stage="linear", bits=3))
    export_onnx(net, tmp_path / "model.onnx")
    net.save(tmp_path / "network.safetensors")
    linear = Linear(stage="linear", bits=3, scale="mse").model_dump(mode="json")
    tune = {"stage": "tune", "epochs": 20, "learn_scales": True}
    prune = {"stage": "tune", "epochs": 9, "learn_scales": False, "ramp": {"amount": 0.8}}
    accuracies = {"test_accuracy_fraction": 0.5, "test_top5_accuracy_fraction": 0.9, "test_loss": 1.5}
    ran = trial(
        recipe={"stages": [{"stage": "train"}, linear]},
        metrics={**accuracies, "weights": 10, "packed_bytes": 20},
        onnx=str(tmp_path / "model.onnx"),
        stages=(stage(onnx_bytes=99),),
    )
    found = row_of(ran)
    assert found["way"] == "one scale for each channel, least error"
    assert (found["bits"], found["top1_percent"]) == (3, 50.0)
    assert found["baseline"] == {
        "validation_accuracy_fraction": 0.9,
        "validation_top5_accuracy_fraction": 0.99,
        "validation_loss": 0.3,
        "onnx_bytes": 99,
    }
    tuned = replace(ran, recipe={"stages": [{"stage": "train"}, prune, linear, tune]})
    assert row_of(tuned)["way"] == (
        "80 % pruned, one scale for each channel, least error, 20 epochs, learned scales"
    )
    before = replace(ran, recipe={"stages": [{"stage": "train"}, prune, linear]})  # not tuned after rounding
    assert row_of(before)["way"] == "80 % pruned, one scale for each channel, least error"


@pytest.mark.parametrize(("bits", "fits"), [(4, True), (8, True), (12, False)])
def test_footprint_is_of_a_file_that_is_really_there(bits: int, fits: bool, tmp_path: Path) -> None:
    net, _ = quantize_weights(make(), Linear(stage="linear", bits=bits))
    export_onnx(net, tmp_path / "model.onnx")
    net.save(tmp_path / "network.safetensors")
    found = lowbit_bytes(tmp_path / "model.onnx")
    whole = (tmp_path / "model.onnx").stat().st_size
    assert (found is not None and found < whole * (bits / 32 + 0.1)) == fits


def test_the_picture_is_the_same_for_the_same_rows(tmp_path: Path) -> None:
    rows = [row(way, b) for way in ("one", "other") for b in (1, 2, 4, 8)]
    for name in ("a.png", "b.png"):
        draw(rows, "LeNet", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size > 20_000


def test_an_unknown_report_is_told() -> None:
    with pytest.raises(BadInput, match="no such report. Got r9. Wanted r1, r4"):
        make_table("r9", None, Path("runs"), fast=True, quiet=True)


STUDIES = [study for report in REPORTS.values() for study in report.studies]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("study", STUDIES)
def test_every_point_of_the_studies_is_a_valid_recipe(study: str, fast: bool) -> None:
    points = grid(read_study(Path(study), fast=fast), None)
    assert len(points) >= 4
    for point in points:
        assert any(stage.stage == "linear" for stage in point.recipe.stages)


def test_recipes_of_resnet20_share_one_training() -> None:
    names = [*(f"w{bits}" for bits in range(2, 7)), "w4a4", "mixed", "int8", "quantized", "pruned-quantized"]
    trainings = {
        read_recipe(Path(f"recipes/cifar10/resnet20-{name}.yaml")).stages[0].model_dump_json()
        for name in names
    }
    assert len(trainings) == 1


def test_only_finished_trials_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_bits, "row_of", lambda trial: row("x", trial.settings["bits"]))
    found = [trial(settings={"bits": 2}), trial(settings={"bits": 3}, state="failed")]
    monkeypatch.setattr("tersor.pipeline.study.run.run_study", lambda *_, **__: (Path(), found))
    rows, text = make_table("r1", None, Path("runs"), fast=True, quiet=True)
    assert {r["bits"] for r in rows} == {2}
    assert "62.00" in text
