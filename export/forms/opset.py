"""Move a model to another opset without changing what it computes."""

from pathlib import Path

import onnx
from onnx import ModelProto

from tersor.errors import BadInput

ONLY_MORE_TYPES = frozenset(
    {
        "AveragePool", "Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "Equal",
        "Flatten", "Identity", "If", "IsInf", "IsNaN", "Loop", "Pad", "QuantizeLinear", "ReduceMax",
        "ReduceMin", "Reshape", "Scan", "Shape", "Size", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators that later opsets only taught more element types or optional attributes.

onnx.version_converter has no way down for several of them, Reshape among them.
"""


def to_opset(model: ModelProto, opset: int, ir_version: int, where: Path) -> None:
    """Convert `model` to an opset in place; its IR version becomes at most `ir_version`.

    Raises:
        BadInput: operators of other domains, or a node that the opset cannot express.
    """
    standard = next((o for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if standard is None or foreign:
        raise BadInput(
            "the low-bit form is made from standard operators only",
            got=f"operators of domain {', '.join(foreign) or '(none)'}",
            where=where,
        )
    if standard.version > opset:
        _relabel(model, standard.version, opset, where)
        standard.version = opset
    elif standard.version < opset:
        _convert_up(model, opset, where)
    model.ir_version = min(model.ir_version, ir_version)


def _relabel(model: ModelProto, version: int, opset: int, where: Path) -> None:
    """Check that every node means the same at the lower opset, as nodes of common networks do."""
    for node in model.graph.node:
        new = onnx.defs.get_schema(node.op_type, version, "")
        try:
            old = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError:
            old = None
        same = old is not None and old.since_version == new.since_version
        widened = old is not None and node.op_type in ONLY_MORE_TYPES
        known = old is not None and all(a.name in old.attributes for a in node.attribute)
        known = known and old is not None and len(node.input) <= old.max_input
        if not (same or widened) or not known:
            raise BadInput(
                f"operator {node.op_type} is newer than opset {opset}, which the low-bit form is made for",
                got=f"node {node.name!r} at opset {version}",
                where=where,
                todo="Ship the packed .tsr file instead, or export without this operator",
            )


def _convert_up(model: ModelProto, opset: int, where: Path) -> None:
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(model, opset)
    except Exception as error:
        raise BadInput(
            f"the model cannot be converted to opset {opset}", got=str(error), where=where
        ) from error
    model.CopyFrom(converted)
