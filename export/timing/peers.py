"""Other runtimes on one file: proven to run where they say, with the same outputs, before they are timed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from tersor.errors import BadInput, ClaimBroken
from tersor.export.codec.pack import unpack_bytes
from tersor.export.forms.graph import read_model
from tersor.export.timing.benchmark import time_calls
from tersor.export.timing.feeds import feed
from tersor.export.timing.latency import LatencyRow
from tersor.export.timing.parity import bound
from tersor.export.timing.providers import TARGETS, open_session

ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm"})
"""Operators that round activations: a file with one of them is int8."""


@dataclass(frozen=True)
class Peer:
    """A runtime, opened on one file for one batch of inputs.

    name: `onnxruntime`, or what `--peer` calls it.
    provider: what a row says it ran on.
    run: one run of the batch; its outputs.
    proof: what shows that it ran there: devices, threads, types of layers.
    """

    name: str
    provider: str
    run: Callable[[], Sequence[np.ndarray]]
    proof: Mapping[str, Any]


@dataclass(frozen=True)
class PeerRow:
    """A peer timed beside ONNX Runtime on the same file.

    latency: as for files; its speed-up is ONNX Runtime's p50 over the peer's.
    max_abs_diff: largest difference of its outputs from ONNX Runtime's; bound: what was allowed.
    proof: see `Peer`.
    """

    peer: str
    latency: LatencyRow
    max_abs_diff: float
    bound: float
    proof: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """For JSON: the latency's fields and its own, side by side."""
        own = {"peer": self.peer, "max_abs_diff": self.max_abs_diff, "bound": self.bound}
        return {**self.latency.to_json(), **own, "proof": dict(self.proof)}


def model_bytes(path: Path) -> bytes:
    """The ONNX model in an .onnx or .tsr file.

    Raises:
        BadInput: no such file. FormatError: a damaged .tsr file.
    """
    if not path.is_file():
        raise BadInput("a model file is missing", where=path, todo="Check the path")
    data = path.read_bytes()
    return unpack_bytes(data) if path.suffix == ".tsr" else data


def onnxruntime_peer(
    model: bytes,
    target: str,
    *,
    batch: int,
    threads: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Peer, dict[str, np.ndarray]]:
    """ONNX Runtime on a model, and the inputs that all its peers are fed.

    Raises:
        BadInput: a model that does not load or cannot be fed. Unavailable: the target is not there.
    """
    session = open_session(model, target, threads=threads)
    inputs = feed(session, batch, shapes)

    def run() -> Sequence[np.ndarray]:
        """One run."""
        return session.run(None, inputs)

    proof = {"provider": TARGETS[target], "threads": threads}
    return Peer("onnxruntime", TARGETS[target], run, proof), inputs


def kind_of(model: bytes) -> str:
    """Which parity bound holds for a model: `int8`, `fp16` or `fp32`, by what its nodes and weights are."""
    graph = read_model(model).graph
    if any(node.op_type in ROUNDING for node in graph.node):
        return "int8"
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.initializer)
    return "fp16" if half else "fp32"


def largest_difference(
    peer: Peer, expected: Sequence[np.ndarray], kind: str, where: object = None
) -> tuple[float, float]:
    """The largest difference of any output from the expected ones, and its bound.

    Args:
        peer: what is to be proven.
        expected: ONNX Runtime's outputs for the same inputs.
        kind: of the file, see `kind_of`.
        where: the file, for the error.

    Raises:
        ClaimBroken: other outputs, or a difference beyond the bound of `parity.bound`; NaN is beyond it.
    """
    outputs = peer.run()
    if [np.shape(output) for output in outputs] != [output.shape for output in expected]:
        raise _other(peer, [np.shape(o) for o in outputs], [o.shape for o in expected], where)
    worst = (0.0, bound(kind, expected[0]))
    for output, wanted in zip(outputs, expected, strict=True):
        difference = float(np.max(np.abs(np.asarray(output, np.float64) - wanted), initial=0.0))
        allowed = bound(kind, wanted)
        if not difference <= allowed:
            raise _other(peer, f"a difference of {difference:.3g}", f"at most {allowed:.3g}", where)
        worst = max(worst, (difference, allowed), key=lambda pair: pair[0] / pair[1])
    return worst


def time_peers(
    name: str,
    peers: Sequence[Peer],
    kind: str,
    *,
    batch: int,
    threads: int,
    seconds: float,
    force: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> list[PeerRow]:
    """Time peers on one file beside each other; the first, ONNX Runtime, is what others are compared with.

    Raises:
        ClaimBroken: a peer's outputs are not ONNX Runtime's; nothing is timed then.
        Unavailable: the machine was busy, and `force` was not given.
    """
    expected = peers[0].run()
    differences = [largest_difference(peer, expected, kind, name) for peer in peers]
    timed = time_calls(
        {peer.name: peer.run for peer in peers},
        baseline=peers[0].name,
        provider=peers[0].provider,
        batch=batch,
        threads=threads,
        seconds_per_call=seconds,
        force=force,
        progress=progress,
    )
    return [
        PeerRow(peer.name, replace(row, file=name, provider=peer.provider), *difference, peer.proof)
        for peer, row, difference in zip(peers, timed.needed(), differences, strict=True)
    ]


def _other(peer: Peer, got: object, wanted: object, where: object) -> ClaimBroken:
    return ClaimBroken(
        f"{peer.name} gives other outputs than ONNX Runtime, so that it is not timed",
        got=got,
        wanted=wanted,
        where=where,
    )
