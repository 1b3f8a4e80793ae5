"""What a recipe leaves to the network: batch sizes and calibration images by its multiply-adds."""

import pytest

from tersor.pipeline.deploy import fitted
from tersor.pipeline.recipe.recipe import Recipe


def recipe(**deploy: object) -> Recipe:
    raw = {"name": "x", "model": "mnist", "stages": [{"stage": "train"}], "deploy": deploy}
    return Recipe.model_validate(raw)


@pytest.mark.parametrize(
    ("macs", "batches", "images"),
    [
        (41_000_000, [1, 64], 256),  # ResNet-20
        (313_000_000, [1, 32], 256),  # VGG16 on 32 x 32
        (1_810_000_000, [1, 8], 70),  # ResNet-18 at 224 px
        (15_500_000_000, [1], 64),
        (0, [1, 64], 256),
    ],
)
def test_large_networks_are_timed_in_smaller_batches_and_calibrated_by_fewer_images(
    macs: int, batches: list[int], images: int
) -> None:
    chosen = fitted(recipe(), macs).deploy
    assert (chosen.batches, chosen.calibration_images) == (batches, images)


def test_what_the_recipe_tells_stays() -> None:
    told = recipe(batches=[3], calibration_images=7)
    assert fitted(told, 10**12) == told
