"""Training on a GPU, kept working where there is none.

On PyTorch's `meta` device tensors have shapes and no values: a step with a tensor left on the CPU is an
error there, as on a GPU. The operators of the same steps on the CPU are held against those that PyTorch
documents as without a deterministic form on CUDA (`torch.use_deterministic_algorithms`).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import blobs, make
from torch.utils._python_dispatch import TorchDispatchMode

from tersor.errors import TersorError, Unavailable
from tersor.models.network import Activation, Form, Network
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.recipe import Train, Tune
from tersor.pipeline.training.fit import _Run, fit

NOT_DETERMINISTIC = {
    "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "max_unpool2d",
    "max_unpool3d",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "_upsample_bilinear2d_aa_backward",
    "upsample_bicubic2d_backward",
    "_upsample_bicubic2d_aa_backward",
    "upsample_trilinear3d_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "nll_loss2d_forward",  # of images of labels; that of a vector of labels is deterministic
    "_ctc_loss_backward",
    "_embedding_bag_dense_backward",
    "put",
    "put_",
    "histc",
    "bincount",
    "median",
    "nanmedian",
    "kthvalue",  # raises on CUDA though the page does not list it
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "cumsum",
    "cumsum_",
    "scatter_reduce",
    "scatter_reduce_",
}
"""Names in ATen of what the page lists as raising; integers may be summed (cumsum), here nothing does."""


class Operators(TorchDispatchMode):
    """Counts the operators used; on the meta device it stands in for values that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.used: Counter[str] = Counter()
        self.read = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.used[name] += 1
        first = next((a for a in args if isinstance(a, torch.Tensor)), None)
        if first is not None and first.is_meta:
            if name == "_to_copy" and torch.device((kwargs or {}).get("device") or "meta").type == "cpu":
                self.read += 1
                return torch.ones(first.shape, dtype=first.dtype)
            if name in ("_local_scalar_dense", "item"):  # item: in inference mode
                self.read += 1
                return 1.0 if first.is_floating_point() else 1
            if name == "_unique2":  # eight distinct values
                few = torch.empty(8, dtype=first.dtype, device="meta")
                index = torch.empty(first.shape, dtype=torch.int64, device="meta")
                return few, index, torch.empty(0, dtype=torch.int64, device="meta")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Case:
    """A training: from which network, how, and an operator that shows that it did what its name says."""

    network: Callable[[], Network]
    changes: dict[str, Any]
    teacher: bool = False


def formed(change: Callable[[torch.Tensor], torch.Tensor], form: Callable[[torch.Tensor], Form]) -> Network:
    """A small network whose weights are changed and read as the form says."""
    network = make("mnist", classes=3)
    names = [k for k, v in network.tensors.items() if v.dim() >= 2]
    tensors = {k: change(v) if k in names else v for k, v in network.tensors.items()}
    return network.with_tensors(tensors, {k: form(tensors[k]) for k in names})


def pruned() -> Network:
    return formed(lambda w: w * (w > 0), lambda w: Form(pruned=True))


def shared(zeros: bool) -> Network:
    return formed(
        lambda w: ((w * 20).round().clamp(-3, 4) + (not zeros)) / 20, lambda w: Form("shared", zeros, 3)
    )


def gridded(bits: int, axis: int | None, zeros: bool = False) -> Network:
    def change(w: torch.Tensor) -> torch.Tensor:
        if bits == 1:
            return torch.where(w < 0, -0.5, 0.5)
        return (w * 8).round().clamp(-3, 3) / 2

    return formed(
        change, lambda w: Form("linear", zeros, bits, axis, (0.5,) * (1 if axis is None else w.shape[axis]))
    )


def with_inputs(network: Network) -> Network:
    layers = [k.removesuffix(".weight") for k, v in network.tensors.items() if v.dim() >= 2]
    return replace(network, activations={layer: Activation(4, 0.25, 3) for layer in layers})


def plain() -> Network:
    return make("mnist", classes=3)


CASES = {
    "dense": Case(plain, {}),
    "BatchNorm": Case(lambda: make("resnet20", classes=3, width=4), {"optimizer": "adam"}),
    "shifts and mirrors": Case(plain, {"augment": {"shift_pixels": 1, "flip": True}}),
    "smaller images": Case(
        lambda: make("resnet20", classes=3, width=4), {"smaller": {"pixels": 6, "share": 0.5}}
    ),
    "channels last": Case(plain, {"channels_last": True}),
    "early stop": Case(plain, {"early_stop_patience": 1}),
    "distilled": Case(plain, {"distill": 0.5}, teacher=True),
    "zeros": Case(pruned, {}),
    "shared": Case(lambda: shared(False), {}),
    "shared, pruned": Case(lambda: shared(True), {}),
    **{
        f"{bits} bits, {'learned' if learn else 'fixed'}{', pruned' if zeros else ''}, axis {axis}": Case(
            lambda bits=bits, axis=axis, zeros=zeros: gridded(bits, axis, zeros), {"learn_scales": learn}
        )
        for bits, axis, zeros in ((1, 0, False), (3, 0, False), (3, None, True))
        for learn in (False, True)
    },
    "inputs on grids": Case(lambda: with_inputs(plain()), {}),
    "inputs on learned grids": Case(lambda: with_inputs(plain()), {"learn_scales": True}),
    **{
        f"ramp, {method}": Case(plain, {"ramp": {"method": method, "amount": 0.5, "updates_per_epoch": 2}})
        for method in ("global", "level", "std")
    },
    **{
        kind: Case(plain, {"penalty": {"kind": kind, "weight": 0.01}})
        for kind in ("l1", "proximal", "trimmed_l1", "hard_threshold")
    },
}


def small() -> Data:
    """Three batches of the sizes 20, 20 and 8."""
    return blobs(48)


def an_epoch(case: Case, device: str, data: Data | None = None) -> tuple[_Run, Operators]:
    """One epoch of a case and the operators of all its steps, the constraints' making included."""
    tunes = {"distill", "learn_scales"} & set(case.changes)
    kind: Any = Tune if tunes else Train
    given = {"stage": "tune" if tunes else "train", "epochs": 2, "batch_size": 20, "learning_rate": 0.01}
    network = case.network()
    settings = kind(**{**given, **case.changes})
    with Operators() as mode:
        run = _Run(network, settings, data or small(), 0, device, network if case.teacher else None)
        run.one_epoch(lambda *_: None)
    return run, mode


@pytest.mark.parametrize("name", CASES)
def test_every_step_runs_where_all_tensors_must_lie_on_one_device(name: str) -> None:
    run, operators = an_epoch(CASES[name], "meta")
    assert operators.used["convolution_backward"]
    tensors = [*run.module.parameters(), *run.module.buffers()]
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("name", [*CASES, "bf16"])  # autocast knows no meta device
def test_every_step_has_a_deterministic_form_on_a_gpu(name: str) -> None:
    _, operators = an_epoch({**CASES, "bf16": Case(plain, {"precision": "bf16"})}[name], "cpu")
    assert operators.used["convolution_backward"]
    assert not NOT_DETERMINISTIC & set(operators.used)


@pytest.mark.parametrize(
    "name", ["dense", "shared", "3 bits, learned, axis 0", "hard_threshold", "distilled"]
)
def test_more_batches_read_no_more_values(name: str) -> None:
    few, many = (an_epoch(CASES[name], "meta", blobs(count))[1] for count in (40, 120))
    assert many.used["convolution_backward"] == 3 * few.used["convolution_backward"]
    assert many.read == few.read > 0


def test_a_loss_that_is_no_number_is_told_with_its_batch_by_the_end_of_the_epoch() -> None:
    run_settings = Train(stage="train", epochs=2, batch_size=20, learning_rate=0.01)
    run = _Run(plain(), run_settings, small(), 0, "cpu", None)
    run.train.inputs[:] = float("nan")
    with pytest.raises(TersorError, match="epoch 1, batch 1 of 3"):
        run.one_epoch(lambda *_: None)
    assert run.epoch == 0


@pytest.mark.parametrize(("room", "said"), [(6, "batch_size=5"), (1, "no batch fits")])
def test_out_of_memory_says_the_batch_that_fits_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, said: str
) -> None:
    step, epochs = _Run._step, 1

    def too_small(run: _Run, inputs: torch.Tensor, labels: torch.Tensor, *share: float) -> Any:
        if run.epoch == epochs and len(inputs) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has none")
        return step(run, inputs, labels, *share)

    monkeypatch.setattr(_Run, "_step", too_small)
    settings = Train(stage="train", epochs=2, batch_size=20, learning_rate=0.01)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Unavailable, match=said) as caught:
        fit(plain(), settings, small(), seed=0, checkpoint=checkpoint)
    assert caught.value.exit_code == 4
    assert torch.load(checkpoint, weights_only=True)["numbers"][0] == epochs
