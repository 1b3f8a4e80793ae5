"""The digests a run looks for in the cache: of what decides a stage's result and of all that came before."""

import dataclasses

import pytest
from nets import blobs

from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.run import stage_digests
from tersor.pipeline.stages import identity
from tersor.pipeline.stages.table import STAGES


def digests(amount: float = 0.5, data_seed: int = 0) -> list[str]:
    """Of a training, the removal of weights and a rounding."""
    stages = [{"stage": "train"}, {"stage": "sparsity", "amount": amount}, {"stage": "linear"}]
    recipe = Recipe.model_validate({"name": "x", "model": "mnist", "stages": stages})
    return list(stage_digests(recipe, blobs(20, seed=data_seed)))


def changed(before: list[str]) -> list[bool]:
    """Which stages would be run anew."""
    return [one != other for one, other in zip(before, digests(), strict=True)]


def test_a_changed_setting_makes_its_stage_and_all_later_ones_new() -> None:
    assert digests() == digests()
    assert len(set(digests())) == 3
    assert changed(digests(amount=0.6)) == [False, True, True]


def test_other_data_make_all_stages_new() -> None:
    assert changed(digests(data_seed=1)) == [True, True, True]


def test_a_newer_version_of_a_stage_makes_it_and_all_later_ones_new(monkeypatch: pytest.MonkeyPatch) -> None:
    before, row = digests(), STAGES["sparsity"]
    monkeypatch.setitem(STAGES, "sparsity", dataclasses.replace(row, version=row.version + 1))
    assert changed(before) == [False, True, True]


def test_another_version_of_a_library_makes_all_stages_new(monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = digests(), identity._version
    monkeypatch.setattr(identity, "_version", lambda name: "0.0" if name == "onnxruntime" else real(name))
    assert changed(before) == [True, True, True]
