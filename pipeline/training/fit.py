"""One loop for training and fine-tuning. Images live in memory; crops and flips act on whole batches.

Deterministic: every epoch seeds its own generators from (seed, epoch), so a training that was interrupted
and resumed from its last checkpoint ends with the same bits as one that was not.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from tersor.errors import BadInput, Unavailable
from tersor.files import write_whole
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, autocast, evaluate
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.recipe import Training
from tersor.pipeline.training import ranks
from tersor.pipeline.training.augmentation import Draws, augment, check_smaller, shrink
from tersor.pipeline.training.constraints import bake, constrain
from tersor.pipeline.training.learned_steps import attach_grids, learned_forms, take_grids
from tersor.pipeline.training.optimization import compiled, forget_compiled, learning_rate, make_optimizer
from tersor.pipeline.training.sparse_training import SparseTraining
from tersor.progress import Tell

Forward = Callable[[Tensor], Tensor]
TEMPERATURE = 4.0
"""Softens the outputs that distillation compares."""


def fit(
    network: Network,
    settings: Training,
    data: Data,
    *,
    seed: int,
    device: str = "cpu",
    teacher: Network | None = None,
    checkpoint: Path | None = None,
    progress: Tell = lambda *_: None,
) -> tuple[Network, dict[str, Any]]:
    """Train a network under the constraints its weights express.

    Args:
        network: where to start.
        settings: how to train.
        data: trains on `data.train`, watches `data.validation`; the test split is not read.
        seed: of shuffling, augmentation and dropout.
        device: `cpu` or `cuda`.
        teacher: whose outputs a `tune` with `distill` compares with.
        checkpoint: file written after every epoch and resumed from when it exists.
        progress: told fraction done, epoch and accuracy.

    Returns:
        The trained network (of the last epoch; of the best one with early stop), and its history; where
        layers' inputs are on grids, its accuracies are with these.

    Raises:
        TersorError: the loss is no longer a number; told by the end of the epoch.
        Unavailable: the batch does not fit into the GPU's memory; the checkpoint stays.
    """
    team = ranks.current()
    begun = checkpoint.read_bytes() if checkpoint is not None and checkpoint.is_file() else None
    team.hand_out(network, settings, seed, teacher, begun)
    with team.threads(), team.told_when_lost("training"):
        run = _Run(network, settings, data, seed, device, teacher)
        _train(run, begun, checkpoint, progress)
        return run.result()


def follow(data: Data, device: str) -> int:
    """Train along with the first process of a team until that ends.

    Args:
        data: the same as there.
        device: `cpu` or `cuda`.

    Returns:
        The exit code of the first process.

    Raises:
        TersorError: a failure that this process alone has.
    """
    team = ranks.current()
    with team.told_when_lost("waiting for the first process"):
        while not isinstance(task := team.next_task(), int):
            network = ranks.network_of(task.network)
            teacher = None if task.teacher is None else ranks.network_of(task.teacher)
            with contextlib.suppress(ranks.Together, BadInput), team.threads():
                _train(_Run(network, task.settings, data, task.seed, device, teacher), task.checkpoint)
        return task


def _train(
    run: "_Run", begun: bytes | None, checkpoint: Path | None = None, progress: Tell = lambda *_: None
) -> None:
    run.resume(begun)
    while run.epoch < run.settings.epochs and not run.stopped():
        try:
            run.one_epoch(progress)
        except torch.OutOfMemoryError as error:
            raise run.too_large(error) from error
        if checkpoint is not None:
            run.save(checkpoint)


class _Run:
    """The state of one training; everything that a checkpoint must hold is in `_state`."""

    def __init__(
        self,
        network: Network,
        settings: Training,
        data: Data,
        seed: int,
        device: str,
        teacher: Network | None,
    ) -> None:
        self.network, self.settings, self.seed, self.device = network, settings, seed, device
        self.team = ranks.current()
        least = 2 * self.team.count
        smallest = min(settings.batch_size, len(data.train), 2 * len(data.validation))
        if self.team.count > 1 and smallest < least:
            raise BadInput(
                "a batch is too small for so many processes",
                got=f"batch_size {settings.batch_size}, {len(data.train)} images to train on and "
                f"{len(data.validation)} to validate with",
                wanted=f"at least {least}, two images for each of {self.team.count}",
                where="torchrun",
                todo="Raise batch_size, or start fewer processes",
            )
        memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.module = network.module().to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
        if (dropout := getattr(settings, "dropout", None)) is not None:
            for layer in self.module.modules():
                if isinstance(layer, _DropoutNd):
                    layer.p = dropout
        self.sparse = SparseTraining(self.module, network, settings)
        learn = getattr(settings, "learn_scales", False)
        self.constrained = constrain(self.module, network, but=self.sparse.names, learn_scales=learn)
        attach_grids(self.module, network, learn=learn)
        self.share = getattr(settings, "distill", 0.0) if teacher is not None else 0.0
        self.teacher = (
            teacher.module().to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
            if teacher is not None
            else None
        )
        self.train = Images.of(data.train, data.preprocessing, device)
        parallel = self.team.parallel(self.module, self.train.inputs[:2])
        self.forward: Forward = parallel
        self.teach: Forward | None = self.teacher
        if settings.compiled:
            forget_compiled()
            self.forward = compiled(parallel)
            self.teach = self.teacher and compiled(self.teacher)
        if settings.smaller is not None:
            check_smaller(self.module, self.train.inputs, settings.smaller.pixels)
        validation = Images.of(data.validation, data.preprocessing, device)
        part = self.team.share(len(validation))
        self.validation = Images(validation.inputs[part], validation.labels[part])
        self.optimizer = make_optimizer(self.module, settings)
        self.batches = math.ceil(len(self.train) / settings.batch_size)
        self.epoch, self.history = 0, list[dict[str, float]]()
        self.best_loss, self.best_epoch = math.inf, 0
        self.seconds, self.cpu_seconds = 0.0, 0.0  # by the clock, and of this process on all cores
        self.best: dict[str, Tensor] = {}

    def one_epoch(self, progress: Tell) -> None:
        """Train on every image once, then look at the validation split."""
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        # dropout draws from the global generator; every process of a team drops others
        torch.manual_seed(_mix(self.seed, self.epoch) + 1 + self.team.rank)
        self.module.train()
        order = torch.randperm(len(self.train), generator=generator).to(self.device)
        began, cpu_began = time.monotonic(), time.process_time()
        batches = order.split(self.settings.batch_size)
        if len(batches) > 1 and len(batches[-1]) < 2 * self.team.count:
            batches = batches[:-1]  # BatchNorm has no variance over a single image
        sizes = [len(batch) for batch in batches]
        draws = Draws.of(sizes, self.settings.augment, generator, self.device)
        losses, hits = list[Tensor](), list[Tensor]()
        for step, chosen in enumerate(batches):
            self._set_rate(self.epoch * self.batches + step)
            if self.sparse.prunes_at(self.epoch * self.batches + step, self.batches):
                self._read(losses)  # a ramp must not rank what is no longer a number
            self.sparse.before_step(self.epoch * self.batches + step, self.batches)
            own = self.team.share(len(chosen))
            chosen = chosen[own]
            part = draws.part(step * self.settings.batch_size + own.start, len(chosen))
            inputs = augment(self.train.inputs[chosen], self.settings.augment, part)
            if (small := self.settings.smaller) and self.epoch < round(small.share * self.settings.epochs):
                inputs = shrink(inputs, small.pixels)
            loss, right = self._step(inputs, self.train.labels[chosen], len(chosen) / sizes[step])
            losses.append(loss)
            hits.append(right)
            done = (self.epoch + (step + 1) / self.batches) / self.settings.epochs
            progress(done, self._words())
        total = sum((loss * size for loss, size in zip(self._read(losses), sizes)), 0.0)
        validation_loss, accuracy = self._validate()
        self.epoch += 1
        self.seconds += time.monotonic() - began
        self.cpu_seconds += time.process_time() - cpu_began
        self.history.append(
            {
                "epoch": self.epoch,
                "train_loss": total / sum(sizes),
                "train_accuracy_fraction": int(self.team.total(torch.stack(hits).sum())) / sum(sizes),
                "validation_loss": validation_loss,
                "validation_accuracy_fraction": accuracy,
                "seconds": round(self.seconds, 3),
                "cpu_seconds": round(self.cpu_seconds, 3),
                **self.sparse.sparsity(),
            }
        )
        self._remember_best(validation_loss)
        progress(self.epoch / self.settings.epochs, self._words())

    def _validate(self) -> tuple[float, float]:
        """Mean loss and accuracy on the validation split, of which every process of a team takes its part."""
        self.team.same_buffers(self.module)
        found = evaluate(self.module, self.validation, precision=self.settings.precision)
        if self.team.count == 1:
            return found.loss, found.accuracy_fraction
        sums = torch.tensor([found.loss, found.accuracy_fraction, 1.0], dtype=torch.float64)
        loss, right, images = self.team.total((sums * len(self.validation)).to(self.device)).tolist()
        return loss / images, right / images

    def _step(self, inputs: Tensor, labels: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """One update; the loss and how many were right stay on the device, so that a GPU need not wait.

        Args:
            inputs, labels: of this process's part of the batch.
            share: of the whole batch, which that part is.
        """
        if self.settings.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.settings.precision):
            logits = self.forward(inputs)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.settings.label_smoothing)
        if self.share:
            loss = (1 - self.share) * loss + self.share * self._distance(logits, inputs)
        self.optimizer.zero_grad(set_to_none=True)
        # the mean over processes of what each made of its part is then that over all images
        (loss * (share * self.team.count) if self.team.count > 1 else loss).backward()
        self.sparse.after_backward()
        self.optimizer.step()
        self.sparse.after_step(self.optimizer.param_groups[0]["lr"])
        part = loss.detach() * share if self.team.count > 1 else loss.detach()
        return part, (logits.detach().argmax(1) == labels).sum()

    def _distance(self, logits: Tensor, inputs: Tensor) -> Tensor:
        """Softened outputs against the teacher's (Hinton, Vinyals and Dean, arXiv:1503.02531)."""
        assert self.teach is not None
        with torch.no_grad(), autocast(self.device, self.settings.precision):
            teacher_logits = self.teach(inputs).float()
        ours = functional.log_softmax(logits.float() / TEMPERATURE, 1)
        theirs = functional.log_softmax(teacher_logits / TEMPERATURE, 1)
        return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * TEMPERATURE**2

    def _read(self, losses: list[Tensor]) -> list[float]:
        """The losses of an epoch's steps so far, read from the device at once; all are numbers."""
        values: list[float] = self.team.total(torch.stack(losses)).tolist() if losses else []
        for step, loss in enumerate(values):
            if math.isfinite(loss):
                continue
            raise ranks.Together(
                "training diverged: the loss is no longer a number",
                got=f"a loss of {loss}",
                where=f"epoch {self.epoch + 1}, batch {step + 1} of {self.batches}",
                todo=f"Lower learning_rate (now {self.settings.learning_rate:g}), or check the data for NaN",
            )
        return values

    def too_large(self, error: torch.OutOfMemoryError) -> Unavailable:
        """What to say when memory ran out: the halved batch that fits, tried; this run cannot go on."""
        fits = self._fitting_batch()
        return Unavailable(
            "the GPU's memory is too small for the training",
            got=f"batch_size {self.settings.batch_size}: {str(error).split('. ')[0]}",
            where=f"epoch {self.epoch + 1}",
            todo=f"Set batch_size={fits}, which fits"
            if fits
            else "Use a GPU with more memory, or wait for the processes that share it: no batch fits",
        )

    def _fitting_batch(self) -> int | None:
        """Half the batch, a quarter and so on, until a step goes through; None: not even 2 images."""
        size = self.settings.batch_size // 2
        while size >= 2:
            self.optimizer.zero_grad(set_to_none=True)
            if self.device == "cuda":
                torch.cuda.empty_cache()
            try:
                self._step(self.train.inputs[:size], self.train.labels[:size])
            except torch.OutOfMemoryError:
                size //= 2
            else:
                return size
        return None

    def _set_rate(self, step: int) -> None:
        rate = learning_rate(self.settings, step, self.settings.epochs * self.batches)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _words(self) -> str:
        words = f"epoch {min(self.epoch + 1, self.settings.epochs)}/{self.settings.epochs}"
        if self.history:
            words += f", validation {100 * self.history[-1]['validation_accuracy_fraction']:.2f} %"
        return words

    def stopped(self) -> bool:
        """Whether early stop has run out of patience, or the training accuracy asked for is reached.

        Not before a ramp has ended: the network would be less sparse than was asked for.
        """
        if self.epoch < self.sparse.length:
            return False
        enough, patience = self.settings.stop_at_train_accuracy, self.settings.early_stop_patience
        if enough is not None and self.history and self.history[-1]["train_accuracy_fraction"] >= enough:
            return True
        return patience is not None and self.epoch - max(self.best_epoch, self.sparse.length) >= patience

    def _remember_best(self, loss: float) -> None:
        """Keep the best weights; those of a ramp that goes on are not yet what was asked for."""
        if self.settings.early_stop_patience is None or self.epoch < self.sparse.length:
            return
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch
            self.best = {k: v.clone() for k, v in self.module.state_dict().items()}

    def result(self) -> tuple[Network, dict[str, Any]]:
        """The trained network with plain tensors, and the history."""
        if self.best:
            self.module.load_state_dict(self.best)
        forms, grids = learned_forms(self.module, self.network), take_grids(self.module)
        bake(self.module)
        details = {"epochs": self.epoch, "history": self.history, "constrained": self.constrained}
        plain = self.network.with_module(self.module.to(memory_format=torch.contiguous_format), forms)
        plain = replace(plain, activations=grids)
        return plain.with_tensors(plain.tensors, self.sparse.forms(plain)), details

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "numbers": [self.epoch, self.best_loss, self.best_epoch, self.seconds, self.cpu_seconds],
            "history": self.history,
            "masks": self.sparse.masks,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)  # into memory first: on a full disk torch raises no OSError
        write_whole(path, buffer.getbuffer())

    def resume(self, checkpoint: bytes | None) -> None:
        """Take up a checkpoint's content if there is one."""
        if checkpoint is None:
            return
        state = torch.load(io.BytesIO(checkpoint), map_location=self.device, weights_only=True)
        if len(state["numbers"]) != 5:
            return  # written before processor time was measured
        self.module.load_state_dict(state["module"])
        self.sparse.resumed(state.get("masks"))
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.best_loss, self.best_epoch, self.seconds, self.cpu_seconds = state["numbers"]
        self.history, self.best = state["history"], state["best"]


def _mix(seed: int, epoch: int) -> int:
    """A seed for each (seed, epoch): far apart, and the same everywhere."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint32)[0])
