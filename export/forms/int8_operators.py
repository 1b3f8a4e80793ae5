"""Which operators an int8 file computes in integers: three sets, and what became of them in a file."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

from onnx import GraphProto, NodeProto

OperatorSet = Literal["weighted", "most", "all"]
"""weighted: layers with weights, and what passes their grid on; all: whatever ONNX Runtime can;
most: the same, but the first and the last layer in float."""
SETS: tuple[OperatorSet, ...] = ("weighted", "most", "all")

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SAME_RANGE = ("Flatten", "Reshape", "MaxPool", "Squeeze", "Unsqueeze", "Transpose")
"""Operators whose output the quantizer gives the grid of their input."""
PASSED_ON = (*SAME_RANGE, "AveragePool", "Clip", "Gather", "GatherElements", "Pad", "Relu", "Slice", "Split")
"""Operators that give values of their input, or go into the grid before them."""


def types_of(operators: OperatorSet) -> list[str]:
    """The operators that the quantizer is given, in one order everywhere."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    if operators == "weighted":
        return sorted({*WEIGHTED, *PASSED_ON})
    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def left_out(graph: GraphProto, operators: OperatorSet) -> list[str]:
    """Names of the nodes that the set leaves in float.

    Behind the last layer nothing is rounded: logits of 256 steps would clip the clearest cases.
    """
    if operators == "weighted":
        return []
    tail, head = _ends(graph)
    return [node.name for node in (tail if operators == "all" else [*tail, *head, *_stem(graph)])]


def calls_of(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """layer (`conv1`, as in `conv1.weight`) -> every node that computes with its weight."""
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type in WEIGHTED and node.input[1] in constants:
            found.setdefault(layer_of(node), []).append(node)
    return found


def layer_of(node: NodeProto) -> str:
    """The layer that a node with a weight belongs to."""
    return node.input[1].removesuffix(".weight")


def placed(graph: GraphProto) -> tuple[dict[str, int], dict[str, int]]:
    """Operators of a QDQ file: how many nodes of each compute in integers, and how many in float.

    In integers is what reads dequantized values only, and whose result is quantized or, of a layer with
    weights, left as it is.
    """
    integer, floating = Counter[str](), Counter[str]()
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        before = [made_by[name].op_type for name in node.input if name in made_by]
        after = [n.op_type for n in graph.node if node.output[0] in n.input]
        from_integers = bool(before) and set(before) == {"DequantizeLinear"}
        to_integers = bool(after) and set(after) == {"QuantizeLinear"}
        weighted = node.op_type in WEIGHTED and node.input[1] not in constants
        counts = integer if from_integers and (to_integers or weighted) else floating
        counts[node.op_type] += 1
    return dict(sorted(integer.items())), dict(sorted(floating.items()))


def smooth_activations(graph: GraphProto) -> dict[str, int]:
    """Activations that ONNX Runtime computes in float between integer layers: name -> how many."""
    made_by = {name: node for node in graph.node for name in node.output}
    found = Counter(node.op_type for node in graph.node if node.op_type in ("HardSwish", "Gelu", "Mish"))
    for node in graph.node:
        if node.op_type == "Mul":
            for gate, value in (node.input, list(node.input)[::-1]):
                above = made_by.get(gate)
                if above is not None and above.input[0] == value:
                    name = {"Sigmoid": "SiLU", "HardSigmoid": "HardSwish"}.get(above.op_type)
                    found.update([name] if name else [])
        if node.op_type == "Erf":
            found.update(["Gelu"])
    return dict(sorted(found.items()))


def _ends(graph: GraphProto) -> tuple[list[NodeProto], list[NodeProto]]:
    """The nodes behind the last layer with weights, as far as they are a chain, and that layer."""
    made_by = {name: node for node in graph.node for name in node.output}
    tail, head = list[NodeProto](), list[NodeProto]()
    for value in graph.output:
        node = made_by.get(value.name)
        while node is not None and node.op_type not in WEIGHTED and len(made := _made(node, made_by)) == 1:
            tail.append(node)
            node = made[0]
        if node is not None and node.op_type in WEIGHTED:
            head.append(node)
    return tail, head


def _made(node: NodeProto, made_by: Mapping[str, NodeProto]) -> list[NodeProto]:
    return [made_by[name] for name in node.input if name in made_by]


def _stem(graph: GraphProto) -> Iterator[NodeProto]:
    """The layers with weights that see the image first."""
    made_by = {name: node for node in graph.node for name in node.output}
    waiting = [value.name for value in graph.input]
    while waiting:
        tensor = waiting.pop()
        for node in graph.node:
            if tensor in node.input and node.op_type in WEIGHTED:
                yield node
            elif tensor in node.input and len(_made(node, made_by)) <= 1:
                waiting.extend(node.output)
