"""The files of a bundle: int8 only where it holds, low-bit files of grids per channel."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import blobs, make

from tersor.errors import BadInput, ClaimBroken
from tersor.export.codec.pack import pack
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.providers import TARGETS, open_session
from tersor.models.network import Network
from tersor.pipeline.recipe.recipe import Linear, Recipe, Train
from tersor.pipeline.shipping import files as shipping
from tersor.pipeline.shipping.gates import parity_gate
from tersor.pipeline.shipping.manifest import _entry
from tersor.pipeline.stages.metrics import RunMetrics
from tersor.pipeline.stages.run_folder import Run
from tersor.pipeline.training.fit import fit
from tersor.pipeline.weights.linear import quantize_weights

DATA = blobs(200)


@pytest.fixture(scope="module")
def trained() -> Network:
    settings = Train(stage="train", epochs=4, batch_size=20, learning_rate=0.05)
    return fit(make(classes=3), settings, DATA, seed=0)[0]


@pytest.fixture
def run(trained: Network, tmp_path: Path) -> Run:
    """A run's folder as compress leaves it: trained, then rounded to four bits a channel."""
    final, _ = quantize_weights(trained, Linear(stage="linear", bits=4))
    (tmp_path / "01-train").mkdir()
    RunMetrics(("01-train",), "", "", "", 0, 0, {}).write(tmp_path / "metrics.json")
    trained.save(tmp_path / "01-train" / "network.safetensors")
    export_onnx(trained, tmp_path / "01-train" / "model.onnx")
    export_onnx(final, tmp_path / "model.onnx")
    final.save(tmp_path / "network.safetensors")
    pack(tmp_path / "model.onnx", tmp_path / "model.tsr")
    return Run(tmp_path)


def recipe(**deploy: Any) -> Recipe:
    raw = {"name": "x", "model": "mnist", "stages": [{"stage": "train"}]}
    raw["deploy"] = {"batches": [1], "calibration_images": 256, **deploy}
    return Recipe.model_validate(raw)


def test_int8_keeps_the_networks_grids_and_tells_how_it_came_about(run: Run, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    files, skipped, int8 = shipping.make_files(
        recipe(int8_max_drop=0.5, int8_reduce_range=False), run, work, DATA, lambda *_: None
    )
    assert (files["model.int8.onnx"], skipped) == ("int8", [])
    assert int8 is not None
    assert sorted(int8.kept_integers) == ["conv1.0", "conv2.0", "fc1", "fc2"]
    assert int8.holds
    assert set(int8.tried) == {"minmax", "percentile", "entropy"}
    assert files["model.lowbit.onnx"] == "lowbit"  # four bits a channel fit, though not in one codebook
    assert (work / "model.lowbit.onnx").stat().st_size < 0.3 * (work / "model.onnx").stat().st_size
    assert not (work / "folded.onnx.tmp").exists()


def test_an_unknown_layer_to_keep_in_float_is_told_with_those_there_are(run: Run, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(BadInput, match="no such layer to keep in float") as error:
        shipping.make_files(recipe(int8_keep_float=["stem"]), run, work, DATA, lambda *_: None)
    assert "stem" in str(error.value)
    assert "conv1.0" in str(error.value)


def test_int8_that_does_not_hold_is_not_shipped_and_the_reason_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(shipping, "floor_of", lambda *_: 1.25)
    files, skipped, int8 = shipping.make_files(
        recipe(int8_calibration="minmax", lowbit=False), run, work, DATA, lambda *_: None
    )
    assert "model.int8.onnx" not in files
    assert not (work / "model.int8.onnx").exists()
    assert int8 is not None
    lost = 100 * (1.25 - int8.validation_accuracy_fraction)
    assert skipped == [
        (
            "model.int8.onnx",
            f"even with 3 layers in float it is {lost:.2f} points of validation accuracy short",
        )
    ]
    assert np.isfinite(lost)


@pytest.mark.parametrize("targets", [["cpu", "cuda"], ["tensorrt"]])
def test_a_gpu_gets_a_half_file_of_floats_and_one_of_halves_each_within_its_bound(
    targets: list[str], run: Run, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    settings = recipe(targets=targets, int8=False, lowbit=False)
    files, _, _ = shipping.make_files(settings, run, work, DATA, lambda *_: None)
    halves = {name: kind for name, kind in files.items() if kind == "fp16"}
    assert list(halves) == ["model.fp16.onnx", "model.fp16io.onnx"]
    types = [open_session(work / name, "cpu").get_inputs()[0].type for name in halves]
    assert types == ["tensor(float)", "tensor(float16)"]
    shipped = shipping.measure_files(settings, halves, run, work, DATA, lambda *_: None)
    assert all(0 < s.max_abs_diff <= s.most_diff for s in shipped)
    entries = [_entry(s, []) for s in shipped]
    assert [e.input_dtype for e in entries] == [None, "float16"]
    assert "float16" in str(entries[1].notes)


def test_half_files_are_timed_on_gpus_only_and_int8_on_the_cpu_only() -> None:
    timed = {kind: [t for t in TARGETS if shipping.timed_on(kind, t)] for kind in ("fp32", "fp16", "int8")}
    assert timed == {"fp32": ["cpu", "cuda", "tensorrt"], "fp16": ["cuda", "tensorrt"], "int8": ["cpu"]}


def measured(run: Run, tmp_path: Path, name: str) -> list[shipping.Shipped]:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    files = {"model.onnx": "fp32"}
    (work / "model.onnx").write_bytes((run.folder / name).read_bytes())
    return shipping.measure_files(recipe(), files, run, work, DATA, lambda *_: None)


def test_a_file_of_another_network_breaks_the_parity_gate(run: Run, tmp_path: Path) -> None:
    (good,) = measured(run, tmp_path, "model.onnx")
    assert good.max_abs_diff <= good.most_diff
    (bad,) = measured(run, tmp_path, "01-train/model.onnx")  # not rounded to four bits
    gate = parity_gate([(s.path.name, s.max_abs_diff, s.most_diff) for s in (good, bad)])
    assert not gate.ok


def test_logits_that_are_no_numbers_are_not_shipped(run: Run, trained: Network, tmp_path: Path) -> None:
    broken = trained.with_tensors({**trained.tensors, "fc2.bias": trained.tensors["fc2.bias"] * np.nan})
    export_onnx(broken, run.folder / "broken.onnx")
    with pytest.raises(ClaimBroken, match=r"values that are no numbers.*model\.onnx"):
        measured(run, tmp_path, "broken.onnx")


@pytest.mark.parametrize(("packed", "same"), [("model.onnx", True), ("01-train/model.onnx", False)])
def test_a_packed_file_is_measured_by_what_it_unpacks_to(
    run: Run, tmp_path: Path, packed: str, same: bool
) -> None:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    (work / "model.onnx").write_bytes((run.folder / "model.onnx").read_bytes())
    pack(run.folder / packed, work / "model.tsr")
    files = {"model.onnx": "fp32", "model.tsr": "packed"}
    plain, small = shipping.measure_files(recipe(), files, run, work, DATA, lambda *_: None)
    assert (small.path.name, small.kind) == ("model.tsr", "packed")
    assert (plain.max_abs_diff == small.max_abs_diff) is same


def test_an_operator_that_the_low_bit_form_cannot_say_costs_that_form_alone(run: Run, tmp_path: Path) -> None:
    model = onnx.load(run.onnx())
    model.opset_import[0].version = 20
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Gelu"
    (run.folder / "model.onnx").write_bytes(model.SerializeToString())
    work = tmp_path / "work"
    work.mkdir()
    files, skipped, _ = shipping.make_files(recipe(int8=False), run, work, DATA, lambda *_: None)
    assert sorted(files) == ["baseline.onnx", "model.onnx", "model.tsr"]
    assert "operator Gelu is newer than opset" in dict(skipped)["model.lowbit.onnx"]
