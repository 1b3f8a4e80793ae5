"""Training: it learns, it resumes to the same bits, it says when it diverges."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import blobs, make

from tersor.errors import BadInput, TersorError, Unavailable
from tersor.models.network import Form, Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate, reestimate_batch_norm
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.recipe import Augment, Train, Tune
from tersor.pipeline.training import fit as training
from tersor.pipeline.training.augmentation import Draws, augment
from tersor.pipeline.training.fit import fit
from tersor.pipeline.training.optimization import compiled, learning_rate


def settings_of(**changes: object) -> Train:
    base = {"stage": "train", "epochs": 4, "batch_size": 20, "learning_rate": 0.05}
    return Train(**{**base, **changes})  # type: ignore[arg-type]


def test_training_learns() -> None:
    data = blobs()
    before = make(classes=3, batch_norm=True)
    after, details = fit(before, settings_of(), data, seed=0)
    images = Images.of(data.test, data.preprocessing)
    assert evaluate(after.module(), images).accuracy_fraction > 0.95
    assert len(details["history"]) == 4
    assert details["history"][-1]["train_loss"] < details["history"][0]["train_loss"]


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adam", "learning_rate": 0.01}, {"early_stop_patience": 3}]
)
def test_interrupted_training_ends_with_the_same_bits(tmp_path: Path, changes: dict[str, object]) -> None:
    data, start, chosen = blobs(), make(classes=3, batch_norm=True), settings_of(**changes)
    whole, _ = fit(start, chosen, data, seed=3)
    checkpoint = tmp_path / "checkpoint.pt"

    class Stop(Exception):
        pass

    def interrupt(fraction: float, _: str) -> None:
        if fraction > 0.6:
            raise Stop

    with pytest.raises(Stop):
        fit(start, chosen, data, seed=3, checkpoint=checkpoint, progress=interrupt)
    assert torch.load(checkpoint, weights_only=True)["numbers"][0] == 2
    resumed, details = fit(start, chosen, data, seed=3, checkpoint=checkpoint)
    assert resumed.digest() == whole.digest()
    assert details["epochs"] == 4


def pooled() -> Network:
    """A network of any image size: convolution, BatchNorm, mean over pixels, linear."""
    return make("resnet20", classes=3, width=4)


def test_compiled_functions_compute_the_same() -> None:
    module, inputs = torch.nn.Linear(3, 2), torch.randn(4, 3)
    assert torch.allclose(compiled(module)(inputs), module(inputs), atol=1e-6)


def test_a_compiled_training_does_not_depend_on_how_many_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(module: torch.nn.Module) -> Any:
        """Compiled as far as limits go, but not built: quick."""
        return torch.compile(module, dynamic=False, backend="eager")

    monkeypatch.setattr(training, "compiled", traced)
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for width in (2, 3, 4, 5):
            net = make("resnet20", classes=3, width=width)
            fit(net, settings_of(epochs=1, compiled=True), blobs(40), seed=0)


def test_compiled_trainings_step_through_the_compiled_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(module: torch.nn.Module) -> training.Forward:
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            calls.append(module)
            return module(inputs)

        return forward

    monkeypatch.setattr(training, "compiled", counted)
    start, data = pooled(), blobs(40)
    plain, _ = fit(start, settings_of(epochs=2), data, seed=0)
    assert not calls
    fast, _ = fit(start, settings_of(epochs=2, compiled=True), data, seed=0)
    assert len(calls) == 4
    assert fast.digest() == plain.digest()
    tuned = Tune(stage="tune", epochs=1, batch_size=20, distill=0.5, compiled=True)
    fit(start, tuned, data, seed=0, teacher=plain)
    assert len(calls) == 8  # two steps of the network and of its teacher


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler.*no-such-compiler.*Install g\+\+"):
        fit(pooled(), settings_of(compiled=True), blobs(40), seed=0)


def test_first_epochs_see_smaller_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    step = training._Run._step

    def watched(
        self: training._Run, inputs: torch.Tensor, labels: torch.Tensor, *share: float
    ) -> tuple[float, int]:
        seen.append(tuple(inputs.shape[2:]))
        return step(self, inputs, labels, *share)

    monkeypatch.setattr(training._Run, "_step", watched)
    chosen = settings_of(epochs=3, batch_size=100, smaller={"pixels": 6, "share": 0.6})
    fit(pooled(), chosen, blobs(), seed=0)
    assert seen == [(6, 6)] * 4 + [(8, 8)] * 2


@pytest.mark.parametrize(
    ("network", "pixels", "words"),
    [
        ("resnet20", 9, "larger than the images.*9.*at most 8"),
        ("lenet", 6, "takes no smaller images.*6 x 6.*8 x 8.*Leave `smaller` out"),
    ],
)
def test_images_that_are_too_small_are_told_before_training(network: str, pixels: int, words: str) -> None:
    start = pooled() if network == "resnet20" else make(classes=3)
    with pytest.raises(BadInput, match=words):
        fit(start, settings_of(smaller={"pixels": pixels}), blobs(40), seed=0)


def test_settings_at_their_defaults_leave_no_trace_in_what_is_hashed() -> None:
    """Results trained before these settings existed keep their names in the cache."""
    assert not {"compiled", "smaller"} & set(settings_of().model_dump(mode="json"))
    changed = settings_of(compiled=True, smaller={"pixels": 6, "share": 0.5}).model_dump(mode="json")
    assert changed["compiled"]
    assert changed["smaller"] == {"pixels": 6, "share": 0.5}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_some_epochs_are_on_smaller_images_and_some_are_not(share: float) -> None:
    with pytest.raises(ValueError, match=r"smaller.share\n.*(greater|less) than"):
        settings_of(smaller={"pixels": 6, "share": share})


def first_loss(start: Network, chosen: Train | Tune, data: Data, teacher: Network | None = None) -> float:
    """The loss of the first step, before anything has changed: all images are in one batch."""
    whole = chosen.model_copy(update={"epochs": 1, "batch_size": len(data.train)})
    return float(fit(start, whole, data, seed=0, teacher=teacher)[1]["history"][0]["train_loss"])


def undropped() -> Network:
    """A network that computes in training what it computes later."""
    return make(classes=3, dropout=(0.0, 0.0))


def log_probabilities(network: Network, data: Data, temperature: float = 1.0) -> np.ndarray:
    """Of each class for each training image, float64 (N, classes)."""
    with torch.no_grad():
        logits = network.module()(Images.of(data.train, data.preprocessing).inputs).double().numpy()
    logits = logits / temperature
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_spreads_its_share_of_the_label_over_all_classes(smoothing: float) -> None:
    data, start = blobs(40), undropped()
    logs = log_probabilities(start, data)
    labels = (1 - smoothing) * np.eye(3)[data.train.labels] + smoothing / 3
    chosen = settings_of(label_smoothing=smoothing)
    assert first_loss(start, chosen, data) == pytest.approx(-(labels * logs).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_distillation_adds_the_softened_divergence_times_the_temperature_squared(share: float) -> None:
    """T squared keeps its gradients as large as the labels', whatever T is (Hinton et al., section 2)."""
    data, start = blobs(40), undropped()
    sure = {name: 5 * tensor for name, tensor in start.tensors.items() if name.startswith("fc2")}
    teacher = start.with_tensors({**start.tensors, **sure})
    hard = -log_probabilities(start, data)[np.arange(40), data.train.labels].mean()
    ours, theirs = (log_probabilities(net, data, training.TEMPERATURE) for net in (start, teacher))
    soft = (np.exp(theirs) * (theirs - ours)).sum(1).mean() * training.TEMPERATURE**2
    assert soft > 0.1  # the two do differ
    chosen = Tune(stage="tune", distill=share)
    expected = (1 - share) * hard + share * soft
    assert first_loss(start, chosen, data, teacher) == pytest.approx(expected, rel=1e-5)


def test_seed_decides_the_result() -> None:
    data, start = blobs(60), make(classes=3)
    results = [fit(start, settings_of(epochs=1), data, seed=s)[0].digest() for s in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


def test_pruned_weights_survive_training() -> None:
    net = make(classes=3)
    weight = net.tensors["fc1.weight"] * (torch.arange(128)[:, None] % 3 == 0)
    sparse = net.with_tensors({**net.tensors, "fc1.weight": weight}, {"fc1.weight": Form(pruned=True)})
    after, details = fit(sparse, settings_of(epochs=1), blobs(60), seed=0)
    assert torch.equal(after.tensors["fc1.weight"] == 0, weight == 0)
    assert details["constrained"] == ["fc1.weight"]
    assert after.forms == sparse.forms


def test_divergence_stops_with_the_place_and_a_remedy() -> None:
    with pytest.raises(TersorError, match=r"diverged.*epoch 1, batch \d+ of 10.*Lower learning_rate"):
        fit(make(classes=3), settings_of(learning_rate=1e12), blobs(), seed=0)


def test_early_stop_keeps_the_best_epoch() -> None:
    data = blobs(60)
    chosen = settings_of(epochs=30, early_stop_patience=2, learning_rate=0.3, schedule="constant")
    after, details = fit(make(classes=3), chosen, data, seed=0)
    losses = [h["validation_loss"] for h in details["history"]]
    assert len(losses) == losses.index(min(losses)) + 1 + 2 < 30
    loss = evaluate(after.module(), Images.of(data.validation, data.preprocessing)).loss
    assert math.isclose(loss, min(losses), rel_tol=1e-4)


def test_bf16_and_channels_last_train_too() -> None:
    data = blobs()
    after, _ = fit(make(classes=3), settings_of(precision="bf16", channels_last=True), data, seed=0)
    assert evaluate(after.module(), Images.of(data.test, data.preprocessing)).accuracy_fraction > 0.9
    assert all(v.dtype == torch.float32 for k, v in after.tensors.items())


@given(st.integers(0, 3), st.booleans(), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_augmented_images_are_shifts_and_mirrors_of_themselves(pad: int, flip: bool, seed: int) -> None:
    images = torch.zeros(5, 2, 9, 9)
    images[:, :, 4, 3:6] = torch.tensor([1.0, 2.0, 3.0])
    how = Augment(shift_pixels=pad, flip=flip)
    draws = Draws.of([len(images)], how, torch.Generator().manual_seed(seed), "cpu")
    out = augment(images, how, draws)
    for image in out:
        rows, columns = torch.nonzero(image[0], as_tuple=True)
        assert rows.unique().numel() == 1
        assert abs(int(rows[0]) - 4) <= pad
        assert abs(int(columns[1]) - 4) <= pad
        values = image[0][rows, columns].tolist()
        assert values == [1, 2, 3] or (flip and values == [3, 2, 1])
        assert torch.equal(image[0], image[1])


def test_schedules_have_their_shapes() -> None:
    rates = {
        k: [learning_rate(settings_of(schedule=k, learning_rate=1.0), s, 100) for s in range(100)]
        for k in ("constant", "cosine", "one_cycle")
    }
    assert set(rates["constant"]) == {1.0}
    assert rates["cosine"] == sorted(rates["cosine"], reverse=True)
    assert max(rates["one_cycle"]) == pytest.approx(1.0, abs=0.01)
    assert rates["one_cycle"].index(max(rates["one_cycle"])) == 30
    assert rates["one_cycle"][-1] < 0.01


def test_new_batch_norm_statistics_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    module = make(batch_norm=True).module()
    images = torch.randn(300, 1, 8, 8)
    reestimate_batch_norm(module, images, batch_size=300)
    with torch.no_grad():
        before = module.conv1[0](images)
    assert torch.allclose(module.conv1[1].running_mean, before.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(module.conv1[1].running_var, before.var((0, 2, 3)), rtol=1e-3)
    assert not module.conv1[1].training
    assert module.conv1[1].momentum == 0.1


def test_evaluation_counts_right_answers() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
    module[1].weight.data = torch.eye(2)
    inputs = torch.tensor([[2.0, 1], [1, 2], [2, 1], [1, 2]]).reshape(4, 1, 1, 2)
    images = Images(inputs, torch.from_numpy(np.array([0, 1, 1, 1])))
    assert evaluate(module, images).accuracy_fraction == 0.75


def test_top5_counts_labels_among_the_five_largest_logits() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, 7, bias=False))
    module[1].weight.data = torch.eye(7)
    ranks = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]]).repeat(7, 1).reshape(7, 1, 1, 7)
    found = evaluate(module, Images(ranks, torch.arange(7)))
    assert found.accuracy_fraction == pytest.approx(1 / 7)
    assert found.top5_accuracy_fraction == pytest.approx(5 / 7)


def test_training_stops_at_the_training_accuracy_asked_for() -> None:
    chosen = settings_of(epochs=30, stop_at_train_accuracy=0.9)
    _, details = fit(make(classes=3), chosen, blobs(), seed=0)
    reached = [h["train_accuracy_fraction"] for h in details["history"]]
    assert reached[-1] >= 0.9
    assert all(accuracy < 0.9 for accuracy in reached[:-1])
    assert len(reached) < 30


def test_a_last_batch_of_one_image_is_left_out_of_the_mean() -> None:
    data = blobs(41)
    chosen = settings_of(epochs=20, batch_size=20, learning_rate=0.05)
    _, details = fit(make(classes=3, batch_norm=True), chosen, data, seed=0)
    assert details["history"][-1]["train_accuracy_fraction"] == 1.0
