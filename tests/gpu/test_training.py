"""Training on a GPU; the same bodies run on the CPU with small numbers, where no time is judged."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import make
from torch.nn import functional

from tersor.models.preprocessing import Preprocessing
from tersor.pipeline.data.load import Data, Split
from tersor.pipeline.recipe.recipe import Augment, Recipe, Train
from tersor.pipeline.run import compress
from tersor.pipeline.stages.store import Store
from tersor.pipeline.training.augmentation import Draws, augment
from tersor.pipeline.training.fit import _Run

DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
]


def recipe(device: str) -> Recipe:
    """Every stage and every kind of constraint on digits."""
    epochs = 2 if device == "cpu" else 20
    tune: dict[str, Any] = {"stage": "tune", "epochs": 1, "batch_size": 64}
    stages = [
        {"stage": "train", "epochs": epochs, "batch_size": 64, "augment": {"shift_pixels": 1}},
        {"stage": "structure", "sparsity": 0.25},
        {**tune, "name": "ramp", "epochs": 2, "ramp": {"amount": 0.5}, "distill": 0.5},
        {"stage": "sparsity", "amount": 0.5},
        {**tune, "name": "tune-sparsity"},
        {"stage": "sharing", "bits": 4},
        {**tune, "name": "tune-sharing"},
        {"stage": "linear", "bits": 4},
        {**tune, "name": "tune-linear", "learn_scales": True},
        {"stage": "vectors", "bits": 10},
    ]
    given = {"name": "digits", "model": "mnist", "data": {"kind": "digits"}, "threads": 1}
    return Recipe.model_validate({**given, "device": device, "stages": stages})


@pytest.mark.parametrize("device", DEVICES[1:])  # on the CPU it takes 20 s, and the stages have their tests
def test_a_recipe_of_every_constraint_runs_through(tmp_path: Path, device: str) -> None:
    run = compress(recipe(device), Store(tmp_path), quiet=True)
    assert len(run.stages) == 10
    if device == "cuda":
        assert min(s.metrics.validation_accuracy_fraction for s in run.stages) > 0.9


def random_images(count: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8).numpy()
    split = Split(images, torch.randint(0, 10, (count,), generator=generator).numpy())
    return Data(
        "random", tuple("0123456789"), Preprocessing(255.0, (0.5,) * 3, (0.25,) * 3), split, split, split
    )


def plain_epoch(run: _Run, batch: int, how: Augment) -> None:
    """A loop as one writes it in PyTorch, with the same augmentation and no reading."""
    module, optimizer = run.module.train(), run.optimizer
    generator = torch.Generator().manual_seed(0)
    for inputs, labels in zip(run.train.inputs.split(batch), run.train.labels.split(batch)):
        draws = Draws.of([len(inputs)], how, generator, run.device)
        loss = functional.cross_entropy(module(augment(inputs, how, draws)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def seconds(device: str, work: Any) -> float:
    """The fastest of five."""
    taken = []
    for _ in range(5 if device == "cuda" else 1):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_resnet20_takes_at_most_1_2_times_a_plain_loop(device: str) -> None:
    batch, images = (256, 256 * 40) if device == "cuda" else (4, 8)
    how = Augment(shift_pixels=4, flip=True)
    settings = Train(stage="train", epochs=9, batch_size=batch, augment=how)
    run = _Run(make("resnet20", (3, 32, 32)), settings, random_images(images), 0, device, None)
    run.validation = run.validation.first(2)
    ours = seconds(device, lambda: run.one_epoch(lambda *_: None))
    plain = seconds(device, lambda: plain_epoch(run, batch, how))
    assert device == "cpu" or ours <= 1.2 * plain
