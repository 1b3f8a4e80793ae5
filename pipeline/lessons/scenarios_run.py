"""Files as they would be served, and other runtimes beside them: `tersor benchmark --scenario` and `--peer`.

Takes .onnx and .tsr files, and runs or bundles, whose last file it is then; only these and the peers of
PyTorch import torch.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tersor.errors import BadInput, Unavailable
from tersor.export.timing import scenarios
from tersor.export.timing.clock import Watch
from tersor.export.timing.loadgen import LoadGen
from tersor.export.timing.peers import (
    Peer,
    PeerRow,
    kind_of,
    largest_difference,
    model_bytes,
    onnxruntime_peer,
    time_peers,
)

if TYPE_CHECKING:
    from tersor.models.network import Network

T = TypeVar("T")
TRIES = 2
"""How often a scenario is run where others use the machine meanwhile."""
SCENARIOS = ("single-stream", "offline", "server")
ENGINES = ("tersor", "loadgen")
OF_FILES, OF_NETWORKS = ("openvino",), ("torch", "torch-compile")
PEERS = (*OF_FILES, *OF_NETWORKS)


@dataclass(frozen=True)
class ScenarioRow:
    """One file in one runtime, in one scenario.

    peer: the runtime's name, `onnxruntime` or a peer's; proof: what shows that it ran there.
    busy: signs that others used the machine, where the row was kept in spite of them.
    """

    file: str
    peer: str
    provider: str
    threads: int
    result: scenarios.SingleStream | scenarios.Offline | scenarios.Server
    proof: Mapping[str, Any]
    busy: str | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON: its own fields and the result's, side by side."""
        own = {name: getattr(self, name) for name in ("file", "peer", "provider", "threads", "busy")}
        return {**own, **vars(self.result), "proof": dict(self.proof)}


@dataclass(frozen=True)
class _Model:
    """What is timed: an ONNX model, and the network that it holds where a run or a bundle was given."""

    name: str
    data: bytes
    network: "Network | None" = None


def run_scenarios(
    models: Sequence[Path],
    scenario: str,
    *,
    p99_ms: float | None = None,
    engine: str = "tersor",
    peers: Sequence[str] = (),
    target: str = "cpu",
    batches: Sequence[int] | None = None,
    threads: Sequence[int] = (1,),
    seconds: float = 2.0,
    queries: int | None = None,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> list[ScenarioRow]:
    """Run a scenario on every file, thread count and runtime, one after the other.

    Args:
        models: .onnx or .tsr files, runs or bundles.
        scenario: single-stream, offline or server.
        p99_ms: the bound on p99, for the server and needed there.
        engine: tersor or loadgen.
        peers: runtimes beside ONNX Runtime: openvino, torch, torch-compile.
        target: where ONNX Runtime runs: cpu or cuda.
        batches: of offline; default: 1, 8, 32 and 64, those that the file takes.
        threads: of one run.
        seconds: timing budget of each file, runtime and batch size; a server's goes by its queries.
        queries: of each rate that the server tries.
        seed: of the arrivals.
        shapes: of inputs with free dimensions beside the batch.
        force: keep what was measured on a busy machine, marked.
        progress: told the fraction done.

    Returns:
        One row per thread count, file and runtime, in this order.

    Raises:
        BadInput: a file that does not load, settings that do not go together, or a bound that no file meets.
        Unavailable: LoadGen, a peer or the target is not there, or the machine was busy.
        ClaimBroken: a peer gives other outputs than ONNX Runtime.
    """
    _check(scenario, p99_ms, batches, queries)
    _check_peers(peers, target)
    _one_of("engine", engine, ENGINES)
    chosen = LoadGen() if engine == "loadgen" else scenarios.OURS
    opened = [_open(path, peers) for path in models]
    rows = list[ScenarioRow]()
    todo = [(count, model) for count in threads for model in opened]
    for done, (count, model) in enumerate(todo):

        def tell(part: float, done: int = done) -> None:
            """Tell the fraction of all that is done."""
            progress((done + part) / len(todo))

        with _threads(peers, count):
            sizes = batches if scenario == "offline" else (1,)
            by_batch = _by_batch(model, peers, target, sizes, count, shapes)
            _check_outputs(model, by_batch)
            for index, first in enumerate(next(iter(by_batch.values()))):
                calls = {batch: runtimes[index].run for batch, runtimes in by_batch.items()}
                run = partial(_run, scenario, calls, chosen, p99_ms, seconds, queries, seed, tell)
                waits = scenario == "server" or target != "cpu" or engine == "loadgen"  # which sleeps between
                result, busy = _when_quiet(run, count, on_processor=not waits, force=force)
                place = (model.name, first.name, first.provider, count)
                rows.append(ScenarioRow(*place, result, first.proof, busy))
    _check_met(rows)
    return rows


def run_peers(
    models: Sequence[Path],
    peers: Sequence[str],
    *,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 2.0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> list[PeerRow]:
    """Time peers in turn with ONNX Runtime on the same file, on the CPU.

    Args:
        models: .onnx or .tsr files, runs or bundles.
        peers: openvino, torch, torch-compile.
        batches: images at once.
        threads: of one run.
        seconds: timing budget of each runtime.
        shapes, force: as for `run_scenarios`.
        progress: told the fraction done.

    Returns:
        One row per batch, thread count, file and runtime, in this order; ONNX Runtime first.

    Raises:
        BadInput, Unavailable, ClaimBroken: as `run_scenarios`.
    """
    _check_peers(peers, "cpu")
    opened = [_open(path, peers) for path in models]
    todo = [(batch, count, model) for batch in batches for count in threads for model in opened]
    rows = list[PeerRow]()
    for done, (batch, count, model) in enumerate(todo):

        def tell(part: float, done: int = done) -> None:
            """Tell the fraction of all that is done."""
            progress((done + part) / len(todo))

        with _threads(peers, count):
            runtimes = _peers(model, peers, "cpu", batch, count, shapes)
            rows += time_peers(
                model.name,
                runtimes,
                kind_of(model.data),
                batch=batch,
                threads=count,
                seconds=seconds,
                force=force,
                progress=tell,
            )
    return rows


def _run(
    scenario: str,
    calls: Mapping[int, Callable[[], object]],
    engine: scenarios.Engine,
    p99_ms: float | None,
    seconds: float,
    queries: int | None,
    seed: int,
    tell: Callable[[float], None],
) -> scenarios.SingleStream | scenarios.Offline | scenarios.Server:
    if scenario == "offline":
        return scenarios.offline(calls, seconds=seconds, engine=engine, progress=tell)
    if scenario == "server":
        assert p99_ms is not None
        return scenarios.server(calls[1], p99_ms, queries=queries, seed=seed, engine=engine, progress=tell)
    return scenarios.single_stream(calls[1], seconds=seconds, engine=engine, progress=tell)


def _when_quiet(
    run: Callable[[], T], threads: int, *, on_processor: bool, force: bool
) -> tuple[T, str | None]:
    """What a run gives, again (`TRIES` in all) while others use the machine; and the signs where it is kept.

    Raises:
        Unavailable: others used it every time, and `force` was not given.
    """
    for _ in range(1 if force else TRIES):
        watch = Watch(threads)
        result = run()
        busy = watch.signs().busy(on_processor=on_processor)
        if busy is None or force:
            return result, busy
    raise Unavailable(
        "not measured: the machine was busy",
        got=busy,
        todo="Stop what else runs here and try again, or keep the raw figures with --force",
    )


def _check(scenario: str, p99_ms: float | None, batches: Sequence[int] | None, queries: int | None) -> None:
    _one_of("scenario", scenario, SCENARIOS)
    if scenario == "server" and p99_ms is None:
        raise BadInput("the server scenario needs a bound on p99", todo="Give one, such as --p99-ms 10")
    if scenario != "server" and (p99_ms is not None or queries is not None):
        raise BadInput("a bound on p99 and a number of queries belong to the server scenario", got=scenario)
    if scenario != "offline" and batches and set(batches) != {1}:
        raise BadInput(
            f"the {scenario} scenario runs one sample at a time",
            got=f"batch {', '.join(map(str, batches))}",
            todo="Leave the batch out, or take --scenario offline",
        )


def _check_peers(peers: Sequence[str], target: str) -> None:
    for peer in peers:
        _one_of("peer", peer, PEERS)
    if peers and target != "cpu":
        raise BadInput("peers run on the CPU only", got=f"target {target}", wanted="target cpu")


def _one_of(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise BadInput(f"there is no {what} called {name!r}", wanted=f"one of {', '.join(names)}")


def _check_outputs(model: _Model, by_batch: Mapping[int, Sequence[Peer]]) -> None:
    for first, *others in by_batch.values():
        if others:
            expected, kind = first.run(), kind_of(model.data)
            for peer in others:
                largest_difference(peer, expected, kind, model.name)


def _check_met(rows: Sequence[ScenarioRow]) -> None:
    servers = [row.result for row in rows if isinstance(row.result, scenarios.Server)]
    if servers and all(result.rate_per_s is None for result in servers):
        fastest = min(servers, key=lambda result: result.service_p99_ms)
        raise BadInput(
            "no rate meets the bound on p99",
            got=f"a query that waits for no other takes {fastest.service_p99_ms:.3g} ms (p99)",
            wanted=f"at most {fastest.bound_ms:g} ms, with some room to wait in",
            todo="Give a larger --p99-ms, or a faster file",
        )


def _open(path: Path, peers: Sequence[str]) -> _Model:
    """A file, or a run's or bundle's last one with its network where a peer needs that."""
    asked = [peer for peer in peers if peer in OF_NETWORKS]
    if path.is_dir():
        from tersor.pipeline.shipping.opened import open_finished

        finished = open_finished(path)
        return _Model(str(path), model_bytes(finished.onnx()), finished.network() if asked else None)
    if asked:
        raise BadInput(
            f"peer {asked[0]} needs the network, which an ONNX file does not hold",
            got=path,
            wanted="the folder of a run or of a bundle",
        )
    return _Model(str(path), model_bytes(path))


def _by_batch(
    model: _Model,
    names: Sequence[str],
    target: str,
    batches: Sequence[int] | None,
    threads: int,
    shapes: Mapping[str, Sequence[int]] | None,
) -> dict[int, list[Peer]]:
    """The runtimes for each batch size; where none is asked for, for those that the file takes."""
    opened, refusals = dict[int, list[Peer]](), list[BadInput]()
    for batch in batches or scenarios.OFFLINE_BATCHES:
        try:
            opened[batch] = _peers(model, names, target, batch, threads, shapes)
        except BadInput as error:
            if batches:
                raise
            refusals.append(error)
    if not opened:
        raise refusals[0]
    return opened


def _peers(
    model: _Model,
    names: Sequence[str],
    target: str,
    batch: int,
    threads: int,
    shapes: Mapping[str, Sequence[int]] | None,
) -> list[Peer]:
    """ONNX Runtime and the peers asked for, on one batch."""
    first, inputs = onnxruntime_peer(model.data, target, batch=batch, threads=threads, shapes=shapes)
    return [first, *(_peer(name, model, inputs, threads) for name in names)]


def _peer(name: str, model: _Model, inputs: Mapping[str, np.ndarray], threads: int) -> Peer:
    if model.network is not None and name in OF_NETWORKS:
        from tersor.pipeline.lessons import torch_peers

        return torch_peers.PEERS[name](model.network, inputs)
    from tersor.export.timing.openvino_peer import openvino_peer

    return openvino_peer(model.data, inputs, threads, model.name)


@contextlib.contextmanager
def _threads(peers: Sequence[str], threads: int) -> Iterator[None]:
    """PyTorch's threads, where it is among the peers."""
    if not set(peers) & set(OF_NETWORKS):
        yield
        return
    from tersor.pipeline.lessons.torch_peers import torch_threads

    with torch_threads(threads):
        yield
