"""What is measured after every stage: validation accuracy, parameters, MACs, and bytes that decode."""

import gzip
import lzma
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tersor.export.codec.pack import pack_bytes
from tersor.export.forms.to_onnx import export_onnx, replace_weights
from tersor.models.cost import cost
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images, evaluate
from tersor.pipeline.stages.metrics import Ledger
from tersor.pipeline.training.learned_steps import simulated


def measure(
    network: Network, validation: Images, onnx: Path, previous_onnx: Path | None, licence: str
) -> dict[str, Any]:
    """Export the network to `onnx` and measure it.

    Args:
        network: the result of a stage.
        validation: what accuracy is measured on; the test split stays unread until deploy.
        onnx: where the plain ONNX file is written.
        licence: of the weights, for the file's metadata.
        previous_onnx: the last stage's file; when no shape changed its graph is used again.

    Returns:
        Numbers with units in their keys. Accuracies are with the inputs of layers rounded where the network
        says so (stage `activations`); the ONNX file computes in float.
    """
    if previous_onnx is None or not replace_weights(previous_onnx, network, onnx):
        export_onnx(network, onnx, metadata={"licence": licence})
    evaluation = evaluate(simulated(network), validation)
    spent = cost(network)
    return {
        "validation_accuracy_fraction": evaluation.accuracy_fraction,
        "validation_top5_accuracy_fraction": evaluation.top5_accuracy_fraction,
        "validation_loss": evaluation.loss,
        "parameters": spent.parameters,
        "weights": spent.weights,
        "nonzero_weights": spent.nonzero_weights,
        "macs": spent.macs,
        "effective_macs": spent.effective_macs,
        **packed_size(onnx.read_bytes()),
        "entropy_bytes": entropy_bytes(network),
    }


def packed_size(data: bytes) -> dict[str, int]:
    """Bytes of an ONNX file, as it is and packed by us."""
    return {"onnx_bytes": len(data), "packed_bytes": len(pack_bytes(data))}


def size_ledger(data: bytes) -> Ledger:
    """Bytes of an ONNX file through gzip -9, zstd -19 and xz -6: half a minute of two cores for 45 MB."""
    import zstandard

    coders = {  # the longest first: the shorter ones then fill the other thread
        "xz_bytes": lambda: len(lzma.compress(data, preset=6)),
        "zstd_bytes": lambda: len(zstandard.ZstdCompressor(level=19).compress(data)),
        "gzip_bytes": lambda: len(gzip.compress(data, 9, mtime=0)),
    }
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        sizes = dict(zip(coders, pool.map(lambda coder: coder(), coders.values())))
    return Ledger(seconds=round(time.monotonic() - began, 3), **sizes)


def entropy_bytes(network: Network) -> int:
    """Order-0 entropy of every tensor's values plus its table of distinct values, never more than raw.

    What an ideal coder would need that treats each weight for itself; graph and container not counted.
    A coder that uses where the zeros lie can be smaller.
    """
    total = 0.0
    for tensor in network.tensors.values():
        values = tensor.numpy().reshape(-1)
        _, counts = np.unique(values, return_counts=True)
        share = counts / values.size
        bits = -float((counts * np.log2(share)).sum()) + counts.size * values.itemsize * 8
        total += min(bits / 8, values.nbytes)
    return int(np.ceil(total))
