"""Say in one paragraph why a network cannot be exported: which layer, which operation, what to do."""

import re
from typing import TYPE_CHECKING, Any

from tersor.errors import BadInput

if TYPE_CHECKING:
    import torch

REMEDIES = (
    (
        r"data-dependent|GuardOnDataDependent|Could not guard|unbacked",
        "Export needs a forward without `if` or loops on tensor values: use torch.where, or decide "
        "by an argument of the factory",
    ),
    (
        r"ConstraintViolation|Constraints violated|specialized|constant|[Ii]nferred",
        "Export needs a free batch size: take it from x.shape[0] and flatten with torch.flatten(x, 1), "
        "no number written in for it",
    ),
    (
        r"shape .* is invalid|mat1 and mat2|size of tensor|must match|reduction dim|should be equal"
        r"|Expected .* input",
        "The layers do not fit together for this input shape: check `input_shape` and the layer named",
    ),
    (
        r"No ONNX function|DispatchError|No decomposition",
        "ONNX has no such operation: write it with common torch.nn layers",
    ),
)
"""(pattern in torch's message, remedy); the first match counts."""


def explain(module: "torch.nn.Module", example: "torch.Tensor", error: Exception, where: str) -> BadInput:
    """The error to raise for a failed export.

    Args:
        module: the network, in eval mode.
        example: the input it was traced with.
        error: what torch raised.
        where: the network's definition.
    """
    text = _whole_text(error)
    layer, message = _failing_layer(module, example)
    text = f"{message}\n{text}" if message else text
    operation = re.search(r"OpOverload\(op='([\w.]+)'|(aten\.\w+)", text)
    name = (operation.group(1) or operation.group(2)) if operation else None
    if layer is None and name is not None:
        layer = _layer_of_operation(module, example, name)
    place = f"layer {layer!r}" if layer else "the network's own forward"
    reason = _first_line(message or str(_root(error)))
    todo = next((r for pattern, r in REMEDIES if re.search(pattern, text)), None)
    return BadInput(
        f"the network cannot be exported to ONNX: {place}" + (f", operation {name}" if name else ""),
        got=reason,
        where=where,
        todo=todo or "Write this part with common torch.nn layers, or leave it out of the network",
    )


def _failing_layer(module: "torch.nn.Module", example: "torch.Tensor") -> tuple[str | None, str]:
    """Trace once more and note which layer was running when it failed: (layer or None, message)."""
    import torch

    running: list[str] = []

    def enter(name: str) -> Any:
        """Remember the layer being entered."""
        return lambda *_: running.append(name)

    def leave(*_: Any) -> None:
        """Forget the layer that was left."""
        running.pop()

    hooks = []
    for name, child in module.named_modules():
        hooks += [child.register_forward_pre_hook(enter(name)), child.register_forward_hook(leave)]
    try:
        torch.export.export(
            module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        )
    except Exception as error:
        return (running[-1] or None) if running else None, str(error)
    finally:
        for hook in hooks:
            hook.remove()
    return None, ""


def _layer_of_operation(module: "torch.nn.Module", example: "torch.Tensor", operation: str) -> str | None:
    """The layer in which the traced program first uses `operation` (such as `aten.cummax.default`)."""
    import torch

    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    short = operation.split(".")[1]  # torch decomposes aten.special_x into prims.x before it fails
    for node in program.graph.nodes:
        if node.op == "call_function" and short in str(node.target):
            stack = list(node.meta.get("nn_module_stack", {}).values())
            return stack[-1][0] if stack else None
    return None


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _whole_text(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def _first_line(text: str) -> str:
    """The first line that says something, colours and addresses taken out."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return lines[0][:200].rstrip(".") if lines else "no reason given"
