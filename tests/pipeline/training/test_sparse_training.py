"""Pruning while training: ramps reach their amounts and hold zeros, penalties do what their formulas say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nets import blobs, make

from tersor.errors import BadInput
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.recipe.recipe import Ramp, Sharing, Sparsity, Train, Tune
from tersor.pipeline.training.fit import fit
from tersor.pipeline.training.sparse_training import SparseTraining, amount_at
from tersor.pipeline.weights.sharing import share_weights
from tersor.pipeline.weights.sparsity import prune_weights


def settings_of(**changes: object) -> Train:
    base = {"stage": "train", "epochs": 6, "batch_size": 20, "learning_rate": 0.05}
    return Train(**{**base, **changes})  # type: ignore[arg-type]


def sparsities(history: list[dict[str, float]]) -> list[float]:
    return [round(row["sparsity_fraction"], 3) for row in history]


def zeros(net: Network) -> float:
    weights = [net.tensors[name] for name, form in net.forms.items() if form.pruned]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def test_a_cubic_ramp_prunes_fast_at_first_and_ends_at_its_amount() -> None:
    after, details = fit(make(classes=3), settings_of(ramp={"amount": 0.9, "epochs": 3}), blobs(), seed=0)
    wanted = [0.9 - 0.9 * (1 - t / 3) ** 3 for t in (1, 2, 3, 3, 3, 3)]
    assert sparsities(details["history"]) == pytest.approx(wanted, abs=1e-3)
    assert set(after.forms) == {"conv1.0.weight", "conv2.0.weight", "fc1.weight", "fc2.weight"}
    assert zeros(after) == pytest.approx(0.9, abs=1e-3)


def test_a_linear_ramp_over_two_thirds_is_the_default_length() -> None:
    ramp = {"amount": 0.8, "start": 0.4, "shape": "linear", "method": "level"}
    _, details = fit(make(classes=3), settings_of(ramp=ramp), blobs(), seed=0)
    assert sparsities(details["history"]) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.8, 0.8], abs=2e-3)


def test_amounts_epoch_by_epoch() -> None:
    _, details = fit(make(classes=3), settings_of(ramp={"amounts": [0.08, 0.16, 0.5]}), blobs(), seed=0)
    assert sparsities(details["history"]) == pytest.approx([0.08, 0.16, 0.5, 0.5, 0.5, 0.5], abs=1e-3)


def test_a_layer_has_its_own_final_amount() -> None:
    ramp = {"method": "level", "amount": 0.9, "epochs": 2, "per_layer": {"conv1.0": 0.25}}
    after, _ = fit(make(classes=3), settings_of(ramp=ramp), blobs(), seed=0)
    share = {name: float((after.tensors[name] == 0).float().mean()) for name in after.forms}
    assert share["conv1.0.weight"] == pytest.approx(0.25, abs=0.01)
    assert share["fc1.weight"] == pytest.approx(0.9, abs=0.01)


def test_several_updates_an_epoch_and_past_the_end() -> None:
    ramp = Ramp(amount=0.8, updates_per_epoch=4)
    assert [amount_at(ramp, u, 8) for u in (8, 9, 100)] == [0.8, 0.8, 0.8]
    seen: list[int] = []
    module, chosen = make(classes=3).module(), settings_of(ramp=ramp.model_copy(update={"epochs": 2}))
    sparse = SparseTraining(module, make(classes=3), chosen)
    for step in range(30):
        before = sparse.sparsity()
        sparse.before_step(step, 10)
        if sparse.sparsity() != before:
            seen.append(step)
    assert seen == [0, 2, 5, 7, 10, 12, 15, 17]


def test_zeros_that_were_there_stay_and_pruned_weights_do_not_come_back() -> None:
    start = prune_weights(make(classes=3), Sparsity(stage="sparsity", method="level", amount=0.5))[0]
    chosen = Tune(stage="tune", epochs=2, batch_size=20, ramp=Ramp(amount=0.6, epochs=1))
    after, _ = fit(start, chosen, blobs(), seed=0)
    for name in start.forms:
        assert bool((after.tensors[name][start.tensors[name] == 0] == 0).all())
    assert zeros(after) == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"ramp": {"amount": 0.9, "epochs": 5}},
        # zeros of the penalty may grow again, those of the ramp may not
        {"ramp": {"amount": 0.5, "epochs": 5}, "penalty": {"kind": "proximal", "weight": 0.05}},
    ],
    ids=["ramp", "ramp-and-penalty"],
)
@pytest.mark.parametrize("interrupted_at", [0.4, 0.6])
def test_a_resumed_ramp_ends_with_the_same_bits(
    tmp_path: Path, changes: dict[str, object], interrupted_at: float
) -> None:
    data, start, chosen = blobs(), make(classes=3, batch_norm=True), settings_of(**changes)
    whole, _ = fit(start, chosen, data, seed=3)

    class Stop(Exception):
        pass

    def interrupt(fraction: float, _: str) -> None:
        if fraction > interrupted_at:
            raise Stop

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        fit(start, chosen, data, seed=3, checkpoint=path, progress=interrupt)
    assert fit(start, chosen, data, seed=3, checkpoint=path)[0].digest() == whole.digest()


def test_pruning_while_training_keeps_the_accuracy() -> None:
    data = blobs()
    after, _ = fit(make(classes=3, batch_norm=True), settings_of(ramp={"amount": 0.9}), data, seed=0)
    found = evaluate(after.module(), Images.of(data.test, data.preprocessing))
    assert found.accuracy_fraction > 0.95


def test_a_ramp_does_not_touch_shared_weights() -> None:
    shared = share_weights(make(classes=3), Sharing(stage="sharing", bits=2, layers=["fc1"]))[0]
    with pytest.raises(BadInput, match=r"already shared or quantized.*'fc1'.*Put the ramp before"):
        fit(shared, Tune(stage="tune", epochs=1, ramp=Ramp()), blobs(), seed=0)
    after, _ = fit(shared, Tune(stage="tune", epochs=1, ramp=Ramp(exclude=["fc1"])), blobs(), seed=0)
    assert after.tensors["fc1.weight"].unique().numel() == 4


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        ({"amount": 1.5}, "0 <= amount <= 1"),
        ({"epochs": 9}, "longer than the training of 6 epochs"),
        ({"amounts": [0.5, 0.4]}, "must not fall"),
        ({"per_layer": {"fc1": 0.2}}, "per_layer needs method level or std"),
    ],
)
def test_senseless_ramps_are_refused(ramp: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(ramp=ramp)


def one_step(kind: str, **settings: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """fc1's weight, its gradient of ones after a penalty, and its value after a step that moves nothing."""
    net = make(classes=3)
    module = net.module()
    sparse = SparseTraining(module, net, settings_of(penalty={"kind": kind, **settings}))
    weight = module.fc1.weight
    before = weight.detach().clone()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    sparse.after_backward()
    sparse.after_step(0.5)
    assert weight.grad is not None
    return before, weight.grad, weight.detach()


def test_l1_adds_the_sign() -> None:
    before, grad, after = one_step("l1", weight=0.25)
    assert torch.equal(grad, 1 + 0.25 * before.sign())
    assert torch.equal(after, before)


def test_trimmed_l1_leaves_the_largest_free() -> None:
    before, grad, _ = one_step("trimmed_l1", weight=0.25, keep=0.1)
    free = grad == 1
    assert int(free.sum()) == round(0.1 * before.numel())
    assert before[free].abs().min() >= before[~free].abs().max()


def test_the_proximal_step_is_a_soft_threshold_by_rate_times_weight() -> None:
    before, grad, after = one_step("proximal", weight=0.02)
    assert torch.equal(grad, torch.ones_like(grad))
    assert torch.allclose(after, before.sign() * (before.abs() - 0.01).clamp(min=0), atol=1e-8)
    assert 0 < int((after == 0).sum()) < after.numel()


def test_hard_thresholding_keeps_the_largest() -> None:
    before, _, after = one_step("hard_threshold", keep=0.2)
    kept = after != 0
    assert int(kept.sum()) == round(0.2 * before.numel())
    assert torch.equal(after[kept], before[kept])
    assert before[kept].abs().min() >= before[~kept].abs().max()


@pytest.mark.parametrize("kind", ["proximal", "hard_threshold"])
def test_zeros_of_a_penalty_are_pruned_weights_afterwards(kind: str) -> None:
    chosen = settings_of(penalty={"kind": kind, "weight": 0.1, "keep": 0.3}, epochs=2)
    after, _ = fit(make(classes=3), chosen, blobs(), seed=0)
    assert len(after.forms) == 4
    assert zeros(after) > 0.3
    tuned, _ = fit(after, Tune(stage="tune", epochs=1), blobs(), seed=0)
    assert zeros(tuned) >= zeros(after)


def test_whole_distillation_reads_the_teacher_and_no_labels() -> None:
    data, start = blobs(), make(classes=3)
    teacher, _ = fit(start, settings_of(), data, seed=0)
    mixed_up = replace(data, train=replace(data.train, labels=data.train.labels[::-1].copy()))
    chosen = Tune(stage="tune", epochs=2, batch_size=20, distill=1.0)
    results = [fit(start, chosen, d, seed=1, teacher=teacher)[0].digest() for d in (data, mixed_up)]
    assert results[0] == results[1] != start.digest()
    labelled = [fit(start, chosen, d, seed=1)[0].digest() for d in (data, mixed_up)]
    assert labelled[0] != labelled[1]


def test_a_network_that_equals_its_teacher_has_nothing_to_learn() -> None:
    start = make(classes=3, dropout=(0.0, 0.0))
    chosen = Tune(stage="tune", epochs=1, batch_size=20, distill=1.0, optimizer="sgd", momentum=0.0)
    after, details = fit(start, chosen, blobs(), seed=1, teacher=start)
    assert details["history"][0]["train_loss"] == pytest.approx(0, abs=1e-6)
    for name, tensor in after.tensors.items():
        assert torch.allclose(tensor, start.tensors[name], atol=1e-7)


def test_a_tune_may_have_its_own_dropout() -> None:
    chosen = {"stage": "tune", "epochs": 1, "batch_size": 20}
    free, plain = make(classes=3, dropout=(0.0, 0.0)), make(classes=3)
    results = [
        fit(net, Tune(**chosen, dropout=0.0), blobs(), seed=1)[0].tensors  # type: ignore[arg-type]
        for net in (free, plain)
    ]
    with_dropout = fit(plain, Tune(**chosen), blobs(), seed=1)[0].tensors  # type: ignore[arg-type]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert not torch.equal(results[0]["fc1.weight"], with_dropout["fc1.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        {"ramp": {"amount": 0.9}},
        {"penalty": {"kind": "proximal", "weight": 0.1}},
        {"penalty": {"kind": "hard_threshold", "keep": 0.3}},
    ],
)
def test_there_is_one_kind_of_zero(changes: dict[str, object]) -> None:
    # -0.0 has other bits than 0.0: a packed file would pay for telling them apart.
    after, _ = fit(make(classes=3), settings_of(epochs=2, **changes), blobs(), seed=0)
    tuned, _ = fit(after, Tune(stage="tune", epochs=1, batch_size=20, weight_decay=0.01), blobs(), seed=0)
    for net in (after, tuned):
        for name in net.forms:
            weight = net.tensors[name]
            assert not bool((weight.eq(0) & weight.signbit()).any()), name


@pytest.mark.parametrize(
    ("ramp", "length"),
    [({"amount": 0.95, "epochs": 8}, 8), ({"amounts": [0.1 * i for i in range(9)] + [0.95]}, 10)],
)
def test_early_stop_waits_for_the_end_of_the_ramp(ramp: dict[str, object], length: int) -> None:
    """The loss is least before much is pruned; that network is not what was asked for."""
    chosen = settings_of(epochs=12, ramp=ramp, early_stop_patience=1, stop_at_train_accuracy=0.3)
    after, details = fit(make(classes=3), chosen, blobs(), seed=0)
    assert zeros(after) == pytest.approx(0.95, abs=2e-3)
    assert length <= details["epochs"] < 12
