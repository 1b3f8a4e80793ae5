"""The predictions page and its CSV say what the two networks say; the page is one file that loads nothing."""

import base64
import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tersor.errors import BadInput
from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.data.load import Data, Split
from tersor.pipeline.lessons import predictions
from tersor.pipeline.shipping.opened import ShippedRun

CLASSES = ("T-shirt", "shirt", '<b onclick="x">&')


def data(channels: int = 1, divisor: float = 255.0, count: int = 60) -> Data:
    rng = np.random.default_rng(0)
    images = rng.integers(0, int(divisor) + 1, (count, channels, 4, 4), dtype=np.uint8)
    split = Split(images, np.arange(count, dtype=np.int64) % 3)
    return Data("made up", CLASSES, Preprocessing(divisor, (0.5,), (0.25,)), split, split, split)


def linear(path: Path, seed: int, channels: int = 1, scale: float = 1.0, classes: int = 3) -> np.ndarray:
    """A network of one matrix; returns the matrix, float32 (channels * 16, classes)."""
    weight = np.random.default_rng(seed).normal(0, scale, (channels * 16, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["output"]),
    ]
    shapes = {"input": ["batch", channels, 4, 4], "output": ["batch", classes]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(
        nodes, "linear", values[:1], values[1:], [numpy_helper.from_array(weight, "weight")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return weight


def made(tmp_path: Path, channels: int = 1, scale: float = 1.0) -> tuple[Path, list[np.ndarray]]:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    names = ("baseline.onnx", "model.onnx")
    return bundle, [linear(bundle / name, seed, channels, scale) for seed, name in enumerate(names)]


def expected(images: Data, weights: list[np.ndarray]) -> list[np.ndarray]:
    """Log-probabilities in float64 without any of the code under test."""
    inputs = images.preprocessing.apply(images.test.images).reshape(len(images.test), -1).astype(np.float64)
    logits = [inputs @ w.astype(np.float64) for w in weights]
    return [z - np.logaddexp.reduce(z, axis=1, keepdims=True) for z in logits]


class Opened(ShippedRun):
    """Two files as a bundle that tells nothing else."""

    def __init__(self, folder: Path, images: Data) -> None:
        super().__init__(folder)
        self.__dict__.update(images=images)

    @property
    def name(self) -> str:
        return "bundle"

    def onnx(self, stage: str | int | None = None) -> Path:
        return self.folder / ("model.onnx" if stage is None else "baseline.onnx")

    def data(self, path: Path | None = None) -> Data:
        return self.__dict__["images"]


def write(tmp_path: Path, images: Data, bundle: Path) -> tuple[str, list[dict[str, str]]]:
    out = tmp_path / "out"
    page = predictions.write_predictions(Opened(bundle, images), None, out)
    assert page == out / "predictions.html"
    assert sorted(p.name for p in out.iterdir()) == ["predictions.csv", "predictions.html"]
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return page.read_text(encoding="utf-8"), list(csv.DictReader(file))


def test_the_csv_holds_every_image_with_the_right_numbers(tmp_path: Path) -> None:
    images = data()
    bundle, weights = made(tmp_path)
    _, rows = write(tmp_path, images, bundle)
    logs = expected(images, weights)
    assert [int(row["index"]) for row in rows] == list(range(60))
    for i, row in enumerate(rows):
        true = images.test.labels[i]
        assert row["true_class"] == CLASSES[true]
        assert row["baseline_class"] == CLASSES[logs[0][i].argmax()]
        assert row["model_class"] == CLASSES[logs[1][i].argmax()]
        chances = [float(row[f"{side}_true_probability"]) for side in ("baseline", "model")]
        assert chances == pytest.approx([np.exp(log[i, true]) for log in logs], abs=2e-6)
        assert float(row["damage_nats"]) == pytest.approx(logs[0][i, true] - logs[1][i, true], abs=1e-4)


def test_the_page_counts_what_changed(tmp_path: Path) -> None:
    images = data()
    bundle, weights = made(tmp_path)
    page, _ = write(tmp_path, images, bundle)
    before, after = (log.argmax(1) for log in expected(images, weights))
    labels = images.test.labels
    for number, words in (
        (int((before != after).sum()), "answers changed"),
        (int(((before == labels) & (after != labels)).sum()), "right before, wrong after"),
        (int(((before != labels) & (after == labels)).sum()), "wrong before, right after"),
    ):
        assert f"<b>{number}</b><span>{words}</span>" in page
    assert f"<b>{100 * (after == labels).mean():.2f} %</b>" in page


def test_the_damaged_are_those_whose_loss_rose_most(tmp_path: Path) -> None:
    images = data()
    bundle, weights = made(tmp_path)
    page, _ = write(tmp_path, images, bundle)
    logs, own = expected(images, weights), np.arange(60)
    damage = (logs[0] - logs[1])[own, images.test.labels]
    shown = [int(i) for i in re.findall(r'alt="test image (\d+),', page)]
    wanted = np.argsort(-damage)[: predictions.DAMAGED]
    assert shown == [i for i in wanted if damage[i] > 0]


def test_a_network_that_did_not_change_damages_nothing(tmp_path: Path) -> None:
    bundle, _ = made(tmp_path)
    (bundle / "model.onnx").write_bytes((bundle / "baseline.onnx").read_bytes())
    page, rows = write(tmp_path, data(), bundle)
    assert "<img" not in page
    assert {row["damage_nats"] for row in rows} == {"0.000000"}
    assert "<b>0</b><span>answers changed</span>" in page


def test_damage_is_finite_where_a_probability_is_zero(tmp_path: Path) -> None:
    bundle, _ = made(tmp_path, scale=500.0)
    _, rows = write(tmp_path, data(), bundle)
    assert any(row["model_true_probability"] == "0.000000" for row in rows)
    assert all(np.isfinite(float(row["damage_nats"])) for row in rows)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_pixels_enlarged(channels: int) -> None:
    image = np.random.default_rng(1).integers(0, 17, (channels, 8, 6), dtype=np.uint8)
    uri = predictions.picture(image, 16.0)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
    factor = predictions.PICTURE // 8
    assert shown.shape[:2] == (8 * factor, 6 * factor)
    small = shown[::factor, ::factor].reshape(8, 6, -1)
    assert np.array_equal(small, np.round(image * (255 / 16)).transpose(1, 2, 0))


def test_the_page_is_escaped_self_contained_and_the_same_each_time(tmp_path: Path) -> None:
    bundle, _ = made(tmp_path, channels=3)
    page, _ = write(tmp_path, data(3), bundle)
    assert "<b onclick" not in page
    assert "&lt;b onclick=" in page
    assert "<script" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"https?:|url\(|@import|href=", page)
    assert write(tmp_path, data(3), bundle)[0] == page


def test_the_most_confused_pairs_are_shares_of_their_class() -> None:
    before = np.array([[9, 1, 0], [0, 10, 0], [0, 0, 0]])
    after = np.array([[7, 3, 0], [1, 9, 0], [0, 0, 0]])
    pairs = predictions.most_confused(before, after, ("T-shirt", "shirt", "none"))
    assert [tuple(p.values()) for p in pairs] == [
        ("T-shirt", "shirt", 0.1, 0.3),
        ("shirt", "T-shirt", 0.0, 0.1),
    ]


def test_what_is_missing_or_does_not_fit_is_said(tmp_path: Path) -> None:
    bundle, _ = made(tmp_path)
    for change, words in (
        (lambda: linear(bundle / "model.onnx", 1, classes=4), "do not fit the data"),
        (lambda: linear(bundle / "model.onnx", 1, channels=3), "do not fit the model"),
    ):
        change_it: Any = change
        change_it()
        with pytest.raises(BadInput, match=words):
            predictions.write_predictions(Opened(bundle, data()), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
