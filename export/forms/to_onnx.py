"""Network -> one self-contained .onnx file: dynamic batch, metadata, no paths and no times inside."""

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, numpy_helper

from tersor.errors import BadInput
from tersor.export.forms import graph as graphs
from tersor.version import __version__

if TYPE_CHECKING:
    import onnx_ir
    import torch

    from tersor.models.network import Network

OPSET = 20
"""Opsets 18 to 26 export and load in ONNX Runtime 1.31; 27 and 28 export but do not load."""

INPUT, OUTPUT = "input", "logits"
FOLDED_KEY = "batch_norm"
"""Metadata key of folded files: their tensors are products, which replace_weights must not touch."""


def export_onnx(
    network: "Network",
    path: Path,
    *,
    fold_batch_norm: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `network` as ONNX: input `input` float32 (batch, C, H, W), output `logits` (batch, classes).

    Args:
        network: the network; it is exported in eval mode.
        path: the file to write; replaced as a whole or not at all.
        fold_batch_norm: multiply BatchNorm into the layer before it. Left alone, weights keep their
            few shared values, which is what the packer and the low-bit form live on; ONNX Runtime
            folds when it loads the file, so latency is the same.
        metadata: further entries for the file's metadata_props, such as `licence`.

    The same network gives the same bytes in any folder. Tensors keep their state-dict names.

    Raises:
        BadInput: the network cannot be exported; the message names the layer and the remedy.
        Unavailable: the file cannot be written.
    """
    module = network.module()
    exported = _exported(module, network)
    _optimize(exported, frozenset() if fold_batch_norm else frozenset(network.tensors))
    import onnx_ir as ir

    model = ir.serde.serialize_model(exported)
    graphs.tidy(model, keep=set(network.tensors))
    folded = {FOLDED_KEY: "folded"} if fold_batch_norm else {}
    graphs.set_metadata(model, describe(network) | folded | dict(metadata or {}))
    _check_interface(model, network)
    graphs.write_model(model, path)


def replace_weights(path_in: Path, network: "Network", path_out: Path) -> bool:
    """Put the tensors of `network` into a graph that `export_onnx` made, without exporting again.

    Args:
        path_in: an unfolded file of the same definition and arguments, with any weights.
        network: where the values and the metadata come from.
        path_out: the file to write; may be `path_in`.

    Returns:
        True: `path_out` is byte for byte what `export_onnx(network, path_out)` would have written
        (with the further metadata of `path_in`). False, and nothing written: another definition,
        other shapes, or a tensor that the graph does not hold (a folded graph, tied weights).

    Raises:
        BadInput: `path_in` is missing or damaged.
        Unavailable: the file cannot be written.
    """
    model = graphs.read_model(path_in)
    old, new = graphs.metadata(model), describe(network)
    same = all(old.get(key) == new[key] for key in ("definition", "classes", "preprocessing"))
    if not same or FOLDED_KEY in old:
        return False
    by_name = {t.name: t for t in model.graph.initializer}
    for name, tensor in network.tensors.items():
        if not tensor.is_floating_point():
            continue  # BatchNorm's num_batches_tracked is a counter for training only
        array = np.ascontiguousarray(tensor.numpy())
        initializer = by_name.get(name)
        if initializer is None or tuple(initializer.dims) != array.shape:
            return False
        initializer.CopyFrom(numpy_helper.from_array(array, name))
    graphs.set_metadata(model, old | {k: v for k, v in new.items() if k != "licence"})
    graphs.write_model(model, path_out)
    return True


def describe(network: "Network") -> dict[str, str]:
    """The metadata of an exported file: what the network is, without paths and times."""
    return {
        "classes": json.dumps(list(network.classes), ensure_ascii=False, separators=(",", ":")),
        "preprocessing": json.dumps(asdict(network.preprocessing), separators=(",", ":"), sort_keys=True),
        "definition": _definition(network),
        "licence": "not stated",
        "network_sha256": network.digest(),
        "tersor_version": __version__,
    }


def _definition(network: "Network") -> str:
    """`name(argument=value, ...)`; of a user's `path/to/net.py:factory` only the factory's name."""
    name = network.definition.rpartition(":")[2]
    source = f"@{network.source_sha256[:12]}" if network.source_sha256 else ""
    arguments = json.loads(json.dumps(dict(network.arguments)))  # a saved network has lists for tuples
    keywords = ", ".join(f"{k}={_without_path(v)!r}" for k, v in sorted(arguments.items()))
    return f"{name}{source}({keywords})"


def _without_path(value: Any) -> Any:
    return re.split(r"[/\\]", value)[-1] if isinstance(value, str) else value


def _exported(module: "torch.nn.Module", network: "Network") -> "onnx_ir.Model":
    import torch

    # two inputs: a batch of one would let the tracer take the batch size for the constant 1
    example = torch.zeros(2, *network.input_shape)
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as error:  # torch raises many classes here, some of them private
        from tersor.export.forms.export_errors import explain

        with quiet_exporter():
            explanation = explain(module, example, error, network.definition)
        raise explanation from error
    assert program is not None
    return program.model


def _optimize(model: "onnx_ir.Model", parameters: frozenset[str]) -> None:
    """Run onnxscript's optimizer without letting it see the values of `parameters`.

    Its default rules fold BatchNorm, drop biases that happen to be zero and merge equal tensors.
    Each is right for one set of weights and wrong for the next, and replace_weights needs a graph
    that fits them all: so the parameters pass through the optimizer as graph inputs.
    """
    import onnxscript.optimizer

    graph = model.graph
    hidden = {}
    for name in [name for name in graph.initializers if name in parameters]:
        value = graph.initializers.pop(name)
        hidden[value] = value.const_value
        value.const_value = None
        graph.inputs.append(value)
    with quiet_exporter():
        onnxscript.optimizer.optimize(model)
    for value, tensor in hidden.items():
        graph.inputs.remove(value)
        if value.uses():
            value.const_value = tensor
            graph.register_initializer(value)


def _check_interface(model: ModelProto, network: "Network") -> None:
    inputs, outputs = model.graph.input, model.graph.output
    shapes = [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in [*inputs, *outputs]]
    batch = shapes[0][0] if shapes and shapes[0] else None
    expected = [[batch, *network.input_shape], [batch, len(network.classes)]]
    if isinstance(batch, str) and shapes == expected:
        return
    raise BadInput(
        "the network's outputs are not one row of logits per image",
        got=f"inputs and outputs of shapes {', '.join(map(str, shapes))}",
        wanted=f"(batch, {len(network.classes)}) from (batch, {', '.join(map(str, network.input_shape))})",
        where=network.definition,
        todo="Return one tensor (N, classes) from forward; take the batch size from x.shape[0], "
        "and flatten with torch.flatten(x, 1)",
    )


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence PyTorch's exporter: its prints, warnings and log records; errors still come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        out, err = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with warnings.catch_warnings(), out, err:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
