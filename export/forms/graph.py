"""Read, tidy and write ONNX files: nothing foreign in, nothing private or needless out."""

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from tersor.errors import BadInput, Unavailable
from tersor.files import write_whole

PRODUCER = "tersor"
SPEC_DEFAULTS = {
    "Conv": {"pads": 0, "strides": 1, "dilations": 1},
    "MaxPool": {"pads": 0, "strides": 1, "dilations": 1},
    "AveragePool": {"pads": 0, "strides": 1, "dilations": 1},
}
"""operator -> attribute -> the value that every element has when the attribute is left out.

The schemas state these defaults in prose only (https://onnx.ai/onnx/operators/), so that
`onnx.defs` cannot tell them.
"""


def read_model(source: Path | bytes) -> ModelProto:
    """Parse a self-contained ONNX model.

    Args:
        source: a file, or its bytes.

    Raises:
        BadInput: the file is missing, is no ONNX model, or keeps tensors in other files. The
            last is refused because an external-data entry can point anywhere on the disk.
    """
    where = source if isinstance(source, Path) else "model in memory"
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        model = onnx.load_model_from_string(data)
    except FileNotFoundError as error:
        raise BadInput("the ONNX file is missing", where=where, todo="Check the path") from error
    except OSError as error:
        raise BadInput("the ONNX file cannot be read", got=error.strerror, where=where) from error
    except Exception as error:  # protobuf's own error classes differ between its implementations
        raise _damaged(where, str(error)) from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise _damaged(where, "no nodes, no outputs or no opset")
    outside = external_tensors(model)
    if outside:
        raise BadInput(
            "the ONNX model keeps tensors in other files, which tersor does not follow",
            got=f"external data for {', '.join(outside[:3])}",
            wanted="one self-contained .onnx file",
            where=where,
            todo="Save it again with onnx.save_model(model, path, save_as_external_data=False)",
        )
    return model


def external_tensors(model: ModelProto) -> list[str]:
    """Names of the tensors, subgraphs and attributes included, whose data lie in other files."""
    names = [t.name for t in _tensors(model.graph) if _is_external(t)]
    return names + [
        t.name for f in model.functions for n in f.node for t in _node_tensors(n) if _is_external(t)
    ]


def write_model(model: ModelProto, path: Path) -> None:
    """Write `model` to `path`: the same model gives the same bytes, a failure leaves no half file.

    Raises:
        Unavailable: the folder or disk does not take the file.
    """
    write_bytes(model.SerializeToString(deterministic=True), path)


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file whole or not at all.

    Raises:
        Unavailable: the folder or disk does not take the file; an existing `path` is left as it was.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise Unavailable(
            "the file cannot be written",
            got=error.strerror or str(error),
            wanted=f"{len(data)} bytes in a writable folder",
            where=path,
            todo="Free disk space or choose another folder",
        ) from error


def set_metadata(model: ModelProto, entries: Mapping[str, str]) -> None:
    """Make `entries` the model's whole metadata, sorted by key."""
    del model.metadata_props[:]
    for key in sorted(entries):
        model.metadata_props.add(key=key, value=entries[key])


def metadata(model: ModelProto) -> dict[str, str]:
    """The model's metadata_props as a dict."""
    return {entry.key: entry.value for entry in model.metadata_props}


def sort_nodes(model: ModelProto) -> None:
    """Put every node after those whose results it reads, otherwise in the order they had; in place.

    For graphs without subgraphs; some converters append their nodes at the end.
    """
    waiting = list(model.graph.node)
    pending = {name for node in waiting for name in node.output}
    done: list[NodeProto] = []
    while waiting:
        ready = next(n for n in waiting if pending.isdisjoint(n.input))
        waiting.remove(ready)
        pending.difference_update(ready.output)
        done.append(NodeProto.FromString(ready.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(done)


def pool_globally(model: ModelProto) -> None:
    """Write means over height and width as GlobalAveragePool, which has an integer kernel; in place.

    What `AdaptiveAvgPool2d(1)` and `x.mean((2, 3))` export to (ReduceMean) is the same function.
    """
    from onnx import shape_inference

    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    known = shape_inference.infer_shapes(model).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in [*known.value_info, *known.input]}
    for index, node in reversed(list(enumerate(model.graph.node))):
        told = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        axes = constants.get(node.input[1], ()) if len(node.input) > 1 else told.get("axes", ())
        is_mean = node.op_type == "ReduceMean" and ranks.get(node.input[0]) == 4
        if not is_mean or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
            continue
        result, flat = node.output[0], told.get("keepdims", 1) == 0
        pooled = f"{result}_pooled" if flat else result
        new = [onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)]
        if flat:
            new.append(onnx.helper.make_node("Flatten", [pooled], [result], name=f"{node.name}_flat"))
        model.graph.node.remove(node)
        for offset, made in enumerate(new):
            model.graph.node.insert(index + offset, made)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)


def tidy(model: ModelProto, keep: Collection[str] = ()) -> None:
    """Strip what only the machine that made the file knows, and shorten what is left; in place.

    Goes: doc strings and node metadata (exporters put source lines and absolute paths there),
    value_info, producer version, attributes at their defaults. Nodes become n0, n1, ..., values
    v0, v1, ..., initializers c0, c1, ...; graph inputs, outputs and the initializers named in
    `keep` keep their names. A graph with subgraphs keeps its value names.
    """
    _strip(model)
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        _drop_defaults(node, model, constants)
    if not any(a.HasField("g") or a.graphs for n in graph.node for a in n.attribute):
        _shorten_names(graph, keep)
    for index, node in enumerate(graph.node):
        node.name = f"n{index}"
    for tensor in graph.initializer:
        _to_raw(tensor)


def _damaged(where: object, detail: str) -> BadInput:
    return BadInput(
        "the file is no ONNX model, or it is damaged", got=detail, wanted="an ONNX model", where=where
    )


def _tensors(graph: onnx.GraphProto) -> list[TensorProto]:
    tensors = list(graph.initializer) + [t for s in graph.sparse_initializer for t in (s.values, s.indices)]
    return tensors + [t for node in graph.node for t in _node_tensors(node)]


def _node_tensors(node: NodeProto) -> list[TensorProto]:
    tensors: list[TensorProto] = []
    for attribute in node.attribute:
        tensors += [attribute.t] if attribute.HasField("t") else []
        tensors += list(attribute.tensors)
        sparse_one = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in [*sparse_one, *attribute.sparse_tensors]:
            tensors += [sparse.values, sparse.indices]
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            tensors += _tensors(graph)
    return tensors


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data) > 0


def _strip(model: ModelProto) -> None:
    model.producer_name = PRODUCER
    model.graph.name = PRODUCER
    for part, fields in (
        (model, ("producer_version", "doc_string", "domain", "model_version")),
        (model.graph, ("doc_string", "value_info", "metadata_props", "quantization_annotation")),
    ):
        for field in fields:
            part.ClearField(field)
    values = list(model.graph.input) + list(model.graph.output) + _tensors(model.graph)
    for item in [*values, *_nodes(model.graph)]:
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


def _nodes(graph: onnx.GraphProto) -> list[NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                inner.ClearField("doc_string")
                inner.ClearField("value_info")
                nodes += _nodes(inner)
    return nodes


def _drop_defaults(node: NodeProto, model: ModelProto, constants: Mapping[str, TensorProto]) -> None:
    version = next((o.version for o in model.opset_import if o.domain == node.domain), 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return  # an operator that onnx does not know keeps all it says
    for attribute in list(node.attribute):
        value = onnx.helper.get_attribute_value(attribute)
        known = schema.attributes.get(attribute.name)
        plain = SPEC_DEFAULTS.get(node.op_type, {}).get(attribute.name)
        # allowzero only speaks about zeros in the shape
        idle = attribute.name == "allowzero" and _has_no_zero(constants.get(node.input[1]))
        if (
            idle
            or (plain is not None and all(v == plain for v in value))
            or (known is not None and _is_default(known, value))
        ):
            node.attribute.remove(attribute)


def _is_default(known: onnx.defs.OpSchema.Attribute, value: object) -> bool:
    stated = known.default_value.name and not known.required
    return bool(stated) and value == onnx.helper.get_attribute_value(known.default_value)


def _has_no_zero(shape: TensorProto | None) -> bool:
    return shape is not None and bool(numpy_helper.to_array(shape).all())


def _shorten_names(graph: onnx.GraphProto, keep: Collection[str]) -> None:
    fixed = {v.name for v in [*graph.input, *graph.output]}
    fixed |= {t.name for t in graph.initializer if t.name in keep}
    names = {name: name for name in fixed | {""}}
    for prefix, old in (
        ("c", [t.name for t in graph.initializer]),
        ("v", [o for n in graph.node for o in n.output]),
    ):
        free = (f"{prefix}{i}" for i in range(len(old) + len(fixed)) if f"{prefix}{i}" not in fixed)
        for name in old:
            names[name] = names[name] if name in names else next(free)
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]


def _to_raw(tensor: TensorProto) -> None:
    """Store the values as raw bytes, the shortest form and the one that replacing weights writes."""
    if tensor.data_type == TensorProto.STRING or tensor.HasField("raw_data"):
        return
    raw = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
    tensor.CopyFrom(raw)
