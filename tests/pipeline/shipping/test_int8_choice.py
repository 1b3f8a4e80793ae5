"""Which calibration, which layers stay in float: chosen by accuracy of the files, told when nothing helps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import blobs, make

from tersor.errors import BadInput
from tersor.export.bundle.manifest import Int8
from tersor.export.forms.int8_grids import LayerGrid
from tersor.export.forms.to_onnx import export_onnx
from tersor.models.network import Activation, Network
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.recipe.recipe import Linear, Recipe, Train
from tersor.pipeline.shipping import int8_choice
from tersor.pipeline.shipping.int8_choice import (
    Judge,
    Tried,
    candidates_of,
    choose,
    choose_layout,
    floor_of,
    grids_of,
    make_int8,
    methods_for,
    settled,
)
from tersor.pipeline.training.fit import fit
from tersor.pipeline.weights.linear import quantize_weights

DATA = blobs(300)
IMAGES = DATA.preprocessing.apply(DATA.train.images[:100])
JUDGE = Judge(Images.of(DATA.validation, DATA.preprocessing))


@pytest.fixture(scope="module")
def trained() -> Network:
    settings = Train(stage="train", epochs=5, batch_size=20, learning_rate=0.05)
    return fit(make(classes=3), settings, DATA, seed=0)[0]


@pytest.fixture
def folded(trained: Network, tmp_path: Path) -> Path:
    export_onnx(trained, tmp_path / "folded.onnx", fold_batch_norm=True)
    return tmp_path / "folded.onnx"


def test_all_methods_are_tried_and_nothing_stays_in_float_without_need(
    trained: Network, folded: Path, tmp_path: Path
) -> None:
    own = JUDGE(folded)[0]
    candidates = candidates_of(trained, IMAGES)
    asked = {"floor": own - 0.02, "reduce_range": False, "candidates": candidates}
    info = make_int8(folded, tmp_path / "q.onnx", IMAGES, JUDGE, **asked)
    assert set(info["tried"]) == {"minmax", "percentile", "entropy"}
    assert info["tried"][info["method"]] == max(info["tried"].values())
    assert info["holds"]
    assert (info["kept_float"], info["helps"]) == ([], {})
    assert JUDGE(tmp_path / "q.onnx")[0] == info["validation_accuracy_fraction"]


def test_layers_asked_for_stay_in_float_whatever_comes_out(folded: Path, tmp_path: Path) -> None:
    grids = {"fc1": LayerGrid(None, 1000.0, 0)}
    asked = {"candidates": {"minmax": grids}, "reduce_range": False, "keep_float": ["conv1.0"]}
    own = JUDGE(folded)[0]
    easy = make_int8(folded, tmp_path / "q.onnx", IMAGES, JUDGE, floor=None, **asked)
    assert (easy["kept_float"], easy["helps"]) == (["conv1.0"], {})
    hard = make_int8(folded, tmp_path / "q.onnx", IMAGES, JUDGE, floor=own - 0.05, **asked)
    assert sorted(hard["kept_float"]) == ["conv1.0", "fc1"]
    assert "conv1.0" not in hard["helps"]


def test_the_layer_that_hurts_is_found_and_left_in_float(folded: Path, tmp_path: Path) -> None:
    # fc1's input grid is far too coarse: int8 is broken as long as that layer is quantized
    grids = {"fc1": LayerGrid(None, 1000.0, 0)}
    own = JUDGE(folded)[0]
    asked = {"candidates": {"minmax": grids}, "reduce_range": False}
    broken = make_int8(folded, tmp_path / "q.onnx", IMAGES, JUDGE, floor=None, **asked)
    assert broken["validation_accuracy_fraction"] < own - 0.1
    info = make_int8(folded, tmp_path / "q.onnx", IMAGES, JUDGE, floor=own - 0.05, **asked)
    assert info["kept_float"] == ["fc1"]
    assert set(info["helps"]) == {"conv1.0", "conv2.0", "fc1", "fc2"}
    assert info["helps"]["fc1"] == max(info["helps"].values())
    assert info["holds"]


def test_a_floor_out_of_reach_is_told(folded: Path, tmp_path: Path) -> None:
    info = make_int8(
        folded, tmp_path / "q.onnx", IMAGES, JUDGE, floor=1.01, candidates={"minmax": {}}, reduce_range=False
    )
    assert not info["holds"]
    assert len(info["kept_float"]) == 3  # all but one: with the last there would be no int8 left


def test_loss_decides_between_equal_accuracies(
    folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(int8_choice, "to_int8", lambda *_, **asked: {"quantized": []})
    judge: Any = lambda _: (0.9, next(losses))  # noqa: E731
    candidates: dict[str, dict[str, LayerGrid]] = {"minmax": {}, "percentile": {}, "entropy": {}}
    info = make_int8(folded, tmp_path / "q", IMAGES, judge, floor=0.5, candidates=candidates)
    assert info["method"] == "percentile"


def test_learned_grids_stay_whatever_the_method(trained: Network) -> None:
    network = replace(trained, activations={"fc1": Activation(8, 0.5, 3)})
    found = candidates_of(network, IMAGES)
    assert all(grids["fc1"] == LayerGrid(None, 0.5, 3) for grids in found.values())
    assert set(found["minmax"]) == {"fc1"}
    assert set(found["entropy"]) == {"conv1.0", "conv2.0", "fc1", "fc2"}


def test_judged_are_accuracy_and_loss_of_the_file(trained: Network, folded: Path) -> None:
    from torch.nn import functional

    logits, labels = trained.module()(JUDGE.images.inputs).detach(), JUDGE.images.labels
    accuracy, loss = JUDGE(folded)
    assert accuracy == float((logits.argmax(1) == labels).float().mean())
    assert loss == pytest.approx(float(functional.cross_entropy(logits, labels)), abs=1e-4)


def test_grids_are_the_networks_own(trained: Network) -> None:
    rounded, _ = quantize_weights(trained, Linear(stage="linear", bits=4, per_layer={"fc2": 12}))
    network = replace(rounded, activations={"fc1": Activation(4, 0.5, 3), "fc2": Activation(8, 0.25, 7)})
    grids = grids_of(network)
    assert set(grids) == {"conv1.0", "conv2.0", "fc1", "fc2"}
    whole = grids["fc1"].integers
    assert whole is not None
    assert np.abs(whole).max() == 7
    assert grids["fc1"].scale == pytest.approx(0.5 * 15 / 255)
    assert grids["fc1"].zero_point == round(3 * 255 / 15)
    assert grids["fc2"] == LayerGrid(None, 0.25, 7)  # twelve bits do not fit int8, its input's eight do


@pytest.mark.parametrize(
    ("baseline", "own", "drop", "floor"),
    [(0.9, 0.88, None, None), (0.9, 0.88, 0.05, 0.85), (0.9, 0.80, 0.05, 0.80)],
)
def test_the_floor_is_the_gates(baseline: float, own: float, drop: float | None, floor: float | None) -> None:
    assert floor_of(baseline, own, drop) == (None if floor is None else pytest.approx(floor))


def test_a_drop_that_is_no_fraction_is_told() -> None:
    with pytest.raises(BadInput, match="max_drop is out of range. Got 5. Wanted a fraction, 0 to 1"):
        floor_of(0.9, 0.9, 5)


def tried(operators: Any, accuracy: float, integers: int, *, within: bool = True) -> Tried:
    return Tried(operators, "minmax", accuracy, 0.1, within, integers)


def test_the_fastest_set_within_floor_and_parity_is_chosen() -> None:
    found = [tried("weighted", 0.92, 5), tried("most", 0.91, 7), tried("all", 0.90, 9)]
    times: dict[Any, float] = {"weighted": 1.0, "most": 0.9, "all": 0.8}
    assert choose(found, times, None).operators == "all"
    assert choose(found, times, 0.905).operators == "most"
    found[1] = tried("most", 0.91, 7, within=False)
    assert choose(found, times, 0.905).operators == "weighted"


def test_of_sets_equally_fast_the_more_accurate_then_the_plainest_is_chosen() -> None:
    times: dict[Any, float] = {"weighted": 1.02, "all": 1.0}
    assert choose([tried("weighted", 0.92, 5), tried("all", 0.91, 9)], times, 0.9).operators == "weighted"
    assert choose([tried("weighted", 0.91, 5), tried("all", 0.92, 9)], times, 0.9).operators == "all"
    assert choose([tried("weighted", 0.92, 5), tried("all", 0.92, 9)], times, 0.9).operators == "weighted"


def test_larger_sets_take_the_calibration_that_fitted_best_and_every_one_where_none_did() -> None:
    found = [replace(tried("weighted", a, 5), method=m) for m, a in (("minmax", 0.91), ("entropy", 0.93))]
    methods = ["minmax", "percentile", "entropy"]
    assert methods_for([], methods, 0.9) == methods
    assert methods_for(found, methods, 0.9) == ["entropy"]
    assert methods_for(found, methods, 0.95) == methods


def test_where_no_set_fits_the_most_accurate_within_parity_is_taken() -> None:
    found = [tried("weighted", 0.80, 5), tried("all", 0.85, 9, within=False)]
    assert choose(found, {}, 0.9).operators == "weighted"


def test_a_first_layer_is_laid_out_anew_only_when_clearly_faster() -> None:
    assert choose_layout({"plain": 1.0, "padded": 0.95}) == "plain"
    assert choose_layout({"plain": 1.0, "padded": 0.6}) == "padded"
    assert choose_layout({"plain": 1.0, "padded": 0.62, "blocks": 0.6}) == "padded"
    assert choose_layout({"plain": 1.0, "padded": 0.8, "blocks": 0.6}) == "blocks"


def test_sets_that_make_the_same_file_are_tried_once(trained: Network, folded: Path, tmp_path: Path) -> None:
    asked: Any = {"candidates": {"minmax": {}}, "floor": None, "reduce_range": False}
    sets: Any = ("weighted", "all")
    info = make_int8(folded, tmp_path / "q.onnx", IMAGES, JUDGE, operators=sets, **asked)
    assert (info["operators"], set(info["sets"])) == ("weighted", {"weighted"})


def test_the_settled_recipe_names_what_was_chosen() -> None:
    raw = {"name": "x", "model": "mnist", "stages": [{"stage": "train"}]}
    recipe = Recipe.model_validate(raw | {"deploy": {"int8_keep_float": ["stem"]}})
    told = {"floor": 0.9, "fp32_validation_accuracy_fraction": 0.9, "reduce_range": False, "holds": True}
    told |= {"calibration_images": 9, "quantized": (), "kept_float": ("stem", "fc"), "kept_integers": ()}
    told |= {"method": "entropy", "validation_accuracy_fraction": 0.9, "helps": {"fc": 0.9}, "tried": {}}
    deploy = settled(recipe, Int8(**told, operators="all", layout="padded")).deploy  # type: ignore[arg-type]
    assert (deploy.int8_operators, deploy.int8_layout, deploy.int8_calibration) == (
        "all",
        "padded",
        "entropy",
    )
    assert (deploy.int8_keep_float, deploy.int8_reduce_range) == (["stem", "fc"], False)
