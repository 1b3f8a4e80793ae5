"""The table of stages: sensitivity: auto chooses per layer on validation; own weights are checked."""

from pathlib import Path

import pytest
import torch
from nets import blobs, make

from tersor.errors import BadInput
from tersor.models.network import Network
from tersor.pipeline.recipe.recipe import Load, Recipe, Sharing, Sparsity, Train
from tersor.pipeline.stages.identity import stage_identity, stage_seed
from tersor.pipeline.stages.table import STAGES, Context
from tersor.pipeline.training.fit import fit

RAW = {"name": "x", "model": "mnist", "stages": [{"stage": "train"}, {"stage": "tune"}]}
RECIPE = Recipe.model_validate(RAW)
CONTEXT = Context(RECIPE, blobs(), 0, Path("none"), Path("none"), lambda *_: None)


@pytest.fixture(scope="module")
def trained() -> Network:
    settings = Train(stage="train", epochs=4, batch_size=20, learning_rate=0.05)
    return fit(make(classes=3), settings, CONTEXT.data, seed=0)[0]


def test_auto_sparsity_gives_every_layer_an_amount_of_its_own_and_uses_it(trained: Network) -> None:
    settings = Sparsity(stage="sparsity", sensitivity="auto", max_drop=0.02, exclude=["fc2"])
    network, details = STAGES["sparsity"].run(trained, settings, CONTEXT)
    assert set(details["amounts"]) == {"conv1.0", "conv2.0", "fc1"}
    for layer, amount in details["amounts"].items():
        weight = network.tensors[f"{layer}.weight"]
        assert int((weight == 0).sum()) == round(amount * weight.numel())
    assert details["amounts"]["fc1"] >= 0.5
    assert len(details["sensitivity"]) == 3 * 12


def test_auto_sharing_gives_bits_within_the_limit(trained: Network) -> None:
    settings = Sharing(stage="sharing", bits=3, sensitivity="auto", per_layer={"fc2": 3})
    network, details = STAGES["sharing"].run(trained, settings, CONTEXT)
    assert details["amounts"]["fc2"] == 3
    for layer, bits in details["amounts"].items():
        assert network.tensors[f"{layer}.weight"].unique().numel() <= 2**bits


def test_weights_of_ones_own_come_in_and_wrong_ones_are_told(tmp_path: Path) -> None:
    other, settings = make(classes=3, widths=(32, 64)), Load(stage="load", weights=tmp_path / "w.pt")
    torch.save(other.module().state_dict(), tmp_path / "w.pt")
    loaded, _ = STAGES["load"].run(make(classes=3), settings, CONTEXT)
    assert all(torch.equal(v, other.tensors[k]) for k, v in loaded.tensors.items())
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(BadInput, match="weights do not fit the network.*w.pt"):
        STAGES["load"].run(make(classes=3), settings, CONTEXT)


def test_every_stage_has_its_own_seed_and_identity() -> None:
    assert len({stage_seed(RECIPE, index) for index in range(3)}) == 3
    before = stage_identity(RECIPE, 1, 1, "data", "before", {})
    assert before != stage_identity(RECIPE, 1, 1, "data", "other", {})
    assert before != stage_identity(RECIPE, 1, 1, "other", "before", {})
    assert before != stage_identity(RECIPE.model_copy(update={"seed": 1}), 1, 1, "data", "before", {})
    named = RECIPE.stages[1].model_copy(update={"name": "other-name"})
    renamed = RECIPE.model_copy(update={"stages": [RECIPE.stages[0], named]})
    assert before == stage_identity(renamed, 1, 1, "data", "before", {})
