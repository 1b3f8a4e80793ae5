"""The files of a sweep hold its points, the page loads nothing, R1's figures stand beside ours."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import make

from tersor.errors import BadInput
from tersor.models.layers import weight_layers
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.lessons.sensitivity_page import write_sensitivity
from tersor.pipeline.reports.r1 import R1_TOP5, markdown, r1_table
from tersor.pipeline.weights.sensitivity import ALL_LAYERS, R1_LEVELS, Point, global_sensitivity, sensitivity


def point(layer: str, level: float, accuracy: float, method: Any = "sparsity") -> Point:
    return Point(method, layer, level, accuracy, 1.0, 0.5, 10, 100)


def test_files_hold_the_points_and_the_page_loads_nothing(tmp_path: Path) -> None:
    net = make()
    images = Images(torch.rand(12, *net.input_shape), torch.arange(12) % 10)
    points = sensitivity(net, images, method="sparsity", levels=[0.1, 0.9])
    points += global_sensitivity(net, images, method="sparsity", levels=[0.1, 0.9])
    write_sensitivity(tmp_path, points, 0.25, "<net>")
    page = (tmp_path / "sensitivity.html").read_text()
    content = json.loads((tmp_path / "sensitivity.json").read_text())
    assert [Point(**row) for row in content["points"]] == points
    rows = list(csv.DictReader((tmp_path / "sensitivity.csv").open()))
    assert [float(row["loss"]) for row in rows] == [p.loss for p in points]
    assert "<script" not in page
    assert "http" not in page
    assert "<h1>&lt;net&gt;</h1>" in page
    for layer in (*weight_layers(net), ALL_LAYERS):
        assert f"<title>{layer}, 90 %: " in page
    write_sensitivity(tmp_path, points, 0.25, "<net>")
    assert (tmp_path / "sensitivity.html").read_text() == page
    with pytest.raises(BadInput, match="no points"):
        write_sensitivity(tmp_path, [], 0.25)


def test_a_page_of_one_level_and_equal_accuracies_is_drawn(tmp_path: Path) -> None:
    write_sensitivity(tmp_path, [point("a", 4, 0.9, "bits"), point("b", 4, 0.9, "bits")], 0.9)
    page = (tmp_path / "sensitivity.html").read_text()
    assert "nan" not in page
    assert "Multiply-adds left" not in page


def test_r1_table_stands_beside_ours() -> None:
    assert all(len(figures) == len(R1_LEVELS) for figures in R1_TOP5.values())
    points = [point("fc1", 0.1 * i, 0.3) for i in range(1, 11)]
    rows = r1_table(points)
    assert len(rows) == 66
    row = next(r for r in rows if r["layer"] == "fc1" and r["level"] == 0.3)
    assert (row["r1_top5_percent"], row["top1_percent"], row["effective_macs"]) == (24.38, 30.0, 100)
    assert next(r for r in rows if r["layer"] == "conv1")["top5_percent"] is None
    text = markdown(rows, data="CIFAR-10", classes=10)
    assert "| fc1 | R1: top-5 | 24.40 | 24.43 |" in text
    both = markdown(
        [*rows, *r1_table([point("fc1", 0.3, 0.1)], "trained badly")], data="CIFAR-100", classes=100
    )
    assert "|  | trained well: top-1 | - | 30.00 |" in both
    assert "|  | trained badly: top-1 | - | - | - | 10.00 |" in both
    assert "Not R1's data: top-5 by chance is 50.00 % here" in text
    assert "Not R1's data" not in markdown(rows, data="CIFAR-100", classes=100)
    with pytest.raises(BadInput, match="not of R1's network. Got layer1"):
        r1_table([point("layer1", 0.1, 0.5)])
