"""Several processes that train one network: PyTorch's DistributedDataParallel, started by torchrun.

The first process (rank 0) runs the recipe and alone writes and speaks. Before each training it hands the
others what they need, and all make the same steps, each on its share of every batch; gradients, losses and
accuracies are those of the whole batch. BatchNorm's statistics in training are each process's own, and the
first one's are kept, as PyTorch does it.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tersor.errors import BadInput, TersorError, Unavailable
from tersor.machine import torchrun_processes
from tersor.models import network as networks
from tersor.models.network import Network
from tersor.pipeline.recipe.training import Training

PATIENCE = timedelta(minutes=10)
"""For a step of the others; one that died is noticed at once, as its connection ends."""
REST = timedelta(days=30)
"""How long the others wait for the next training: the first one may prune, share and measure meanwhile."""

LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "peer")
"""Words of torch's errors when another process is gone; they have no class of their own."""


class Together(TersorError):
    """A failure that every process finds at the same place; only the first one tells it."""


class Lost(Unavailable):
    """Another process is gone. Torch's own clean-up would wait for it without end."""

    at_once = True


@dataclass(frozen=True)
class Task:
    """A training, as the first process hands it to the others."""

    network: bytes
    settings: Training
    seed: int
    teacher: bytes | None
    checkpoint: bytes | None


@dataclass(frozen=True)
class Team:
    """The processes of a training; a team of one does nothing beyond what a training does anyway."""

    rank: int = 0
    count: int = 1
    local: int = 1
    """Processes on this machine."""
    rest: Any = None
    """The group of processes for what may take long."""

    def share(self, size: int) -> slice:
        """This process's part of a batch of `size` images; parts differ by one image at most."""
        each, more = divmod(size, self.count)
        begin = self.rank * each + min(self.rank, more)
        return slice(begin, begin + each + (self.rank < more))

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.count > 1:
            numbers = numbers.clone()
            distributed.all_reduce(numbers)
        return numbers

    def parallel(self, module: nn.Module, images: Tensor) -> nn.Module:
        """The module with gradients that are means over all processes.

        Args:
            module: to be trained.
            images: (N, C, H, W), a few; they show which parameters it uses.
        """
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if self.count == 1 or not trained:
            return module
        gradients = torch.autograd.grad(module.eval()(images).sum(), trained, allow_unused=True)
        # looking for unused ones at every step costs time, and torch says so when there are none
        unused = any(gradient is None for gradient in gradients)
        # running statistics matter when validating: `same_buffers` shares them then, not at every step
        return nn.parallel.DistributedDataParallel(
            module, find_unused_parameters=unused, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def same_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's running statistics."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def hand_out(
        self,
        network: Network,
        settings: Training,
        seed: int,
        teacher: Network | None,
        checkpoint: bytes | None,
    ) -> None:
        """Tell the others what is trained next."""
        if self.count > 1 and self.rank == 0:
            taught = None if teacher is None else _to_bytes(teacher)
            self._tell(Task(_to_bytes(network), settings, seed, taught, checkpoint))

    def next_task(self) -> Task | int:
        """What is trained next, or the exit code when the first process has ended."""
        box: list[Any] = [None]
        distributed.broadcast_object_list(box, 0, group=self.rest, device=torch.device("cpu"))
        told: Task | int = box[0]
        return told

    def end(self, code: int) -> None:
        """Tell the others that the first process has ended."""
        if self.count > 1 and self.rank == 0:
            with contextlib.suppress(RuntimeError):  # they may be gone
                self._tell(code)

    def _tell(self, what: Task | int) -> None:
        distributed.broadcast_object_list([what], 0, group=self.rest, device=torch.device("cpu"))

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """While it trains, a process takes its part of the threads: more than there are cores crawl."""
        before = torch.get_num_threads()
        if self.count > 1:
            torch.set_num_threads(max(1, before // self.local))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @contextlib.contextmanager
    def told_when_lost(self, where: str) -> Iterator[None]:
        """Tell in words that another process is gone.

        Raises:
            Lost: it is; what torch then says is one of many errors without a class.
        """
        try:
            yield
        except (RuntimeError, ValueError) as error:
            text = str(error)
            if self.count == 1 or not any(word in text.lower() for word in LOST):
                raise
            raise Lost(
                "another process of the training is gone or does not answer",
                got=text.splitlines()[0].split("] ")[-1],
                where=f"{where}, rank {self.rank} of {self.count}",
                todo="See what it said; the checkpoint is kept: run the same command again to go on",
            ) from error


ALONE = Team()
_team = ALONE


def current() -> Team:
    """The team that this process trains in."""
    return _team


def check_alone(what: str) -> None:
    """Whether something that takes one process was started as one.

    Raises:
        BadInput: torchrun started several.
    """
    if (asked := torchrun_processes()) is not None and _team is ALONE:
        if os.environ["RANK"] != "0":
            sys.exit(BadInput.exit_code)  # one of them tells it
        raise BadInput(
            f"{what} runs in one process",
            got=f"torchrun with {asked[0]} processes",
            todo="Run it without torchrun; `torchrun ... --no-python tersor compress` trains in several",
        )


@contextlib.contextmanager
def joined(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started; at the end, the first one tells the others to end too.

    Raises:
        Unavailable: they do not find each other, or there is no GPU for this one.
    """
    global _team
    count, local = torchrun_processes() or (1, 1)
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        if place >= torch.cuda.device_count():
            raise Unavailable(
                "there is no GPU for every process",
                got=f"{torch.cuda.device_count()} on this machine",
                wanted=f"{local}, one a process",
                where=f"rank {os.environ['RANK']} of {count}",
                todo="Start as many processes as there are GPUs (--nproc_per_node)",
            )
        torch.cuda.set_device(place)
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
        rest = distributed.new_group(backend="gloo", timeout=REST)
    except (RuntimeError, ValueError) as error:
        raise Unavailable(
            "the processes of the training do not find each other",
            got=str(error).splitlines()[0],
            where=f"rank {os.environ['RANK']} of {count}",
            todo="Check --nnodes, --rdzv-endpoint and the firewall between the machines",
        ) from error
    team, code, lost = Team(distributed.get_rank(), count, local, rest), 1, False
    _team = team
    try:
        yield team
        code = 0
    except TersorError as error:
        code, lost = error.exit_code, isinstance(error, Lost)
        raise
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        _team = ALONE
        if not lost:
            team.end(code)
            with contextlib.suppress(RuntimeError):
                distributed.destroy_process_group()


def agree(team: Team, facts: dict[str, Any] | TersorError) -> None:
    """Check that every process is about to do the same.

    Args:
        team: the processes.
        facts: what must be equal, by name; or why this process cannot begin.

    Raises:
        TersorError: this process's own, in each.
        BadInput: another one cannot begin, or differs. SystemExit: the same, in all but the first.
    """
    everyone: list[Any] = [None] * team.count
    distributed.all_gather_object(everyone, facts, group=team.rest)
    errors = (_difference(rank, found, everyone[0]) for rank, found in enumerate(everyone))
    if (error := next((e for e in errors if e is not None), None)) is None:
        return
    if team.rank:
        sys.exit(error.exit_code)
    raise error


def _difference(rank: int, facts: Any, first: Any) -> TersorError | None:
    """Why the process of this rank cannot begin, or is about to do something else than the first one."""
    if isinstance(facts, TersorError):
        where = f"{facts.where}, rank {rank}" if rank else facts.where
        return type(facts)(facts.what, got=facts.got, wanted=facts.wanted, where=where, todo=facts.todo)
    if isinstance(first, TersorError) or facts == first:
        return None
    names = [name for name in {**first, **facts} if first.get(name) != facts.get(name)]
    return BadInput(
        "the processes of the training disagree",
        got="; ".join(f"{name} {facts.get(name)}" for name in names[:3]),
        wanted="; ".join(f"{name} {first.get(name)}" for name in names[:3]) + ", as at rank 0",
        where=f"rank {rank}",
        todo="Start every process with the same recipe, settings, data and versions",
    )


def network_of(content: bytes) -> Network:
    """The network that another process handed over."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        path.write_bytes(content)
        return networks.load(path)


def _to_bytes(network: Network) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        network.save(path)
        return path.read_bytes()
