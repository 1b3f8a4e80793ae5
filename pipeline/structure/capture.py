"""A network's forward pass as a `Program`: exported, in-place operators replaced, constants folded.

Export runs Python once, so conditions on shapes, subclasses and functional layers are no matter;
parameters keep their names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tersor.errors import BadInput
from tersor.export.forms.to_onnx import quiet_exporter
from tersor.models.program import (
    OPERATORS,
    PYTHON,
    Program,
    Step,
    Tensor,
    Value,
    called,
    leaves,
    mapped,
    target_of,
)

BATCH = 2
"""Images in the example: one would be taken for a dimension that never varies."""
ASSERTIONS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)
_VIEWS = (
    "view reshape flatten unflatten permute transpose t slice select narrow unsqueeze squeeze expand "
    "expand_as "
    "view_as reshape_as detach alias split split_with_sizes chunk unbind getitem movedim swapaxes "
    "contiguous to"
)
VIEWS = frozenset(_VIEWS.split())
"""Operators whose result may share memory with what they read."""
_LIGHT = (
    "view reshape permute transpose unsqueeze squeeze expand expand_as index index_select mul add sub div "
    "neg contiguous "
    "to flatten slice select exp sigmoid softplus tanh clone detach alias repeat type_as cat getitem view_as "
    "reshape_as relu clamp abs"
)
LIGHT = frozenset(_LIGHT.split())
"""What parameters may pass on their way to an input; what mixes their channels is computed once and kept."""


PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*$")
"""What torch calls a tensor that a parametrization computes another from, and that other's name."""


@dataclass(frozen=True)
class Captured:
    """A forward pass.

    program: what is computed.
    tensors: all that it reads, by name: parameters, buffers, constants.
    shapes: of every value and tensor; a list of shapes where an operator returns several. The batch is BATCH.
    places: step -> the module that calls it, "" for the network's own forward.
    aliases: further names of a tensor -> its name in `tensors`.
    any_batch: whether the program takes any number of images, not BATCH alone.
    computed: names in `tensors` of what was computed of parameters, whose values are not those of the state
    dict.
    """

    program: Program
    tensors: Mapping[str, torch.Tensor]
    shapes: Mapping[str, Any]
    places: Mapping[str, str]
    aliases: Mapping[str, str]
    any_batch: bool
    computed: frozenset[str] = frozenset()

    @property
    def unknown(self) -> list[str]:
        """Operators that a stored program may not call, each once."""
        return sorted({s.operator for s in self.program.steps} - OPERATORS - set(PYTHON))


def capture(module: nn.Module, example: torch.Tensor) -> Captured:
    """Export a network.

    Args:
        module: in eval mode; not changed.
        example: an input (2, C, H, W), float32.

    Raises:
        BadInput: the forward pass cannot be exported; the cause is told.
    """
    exported, any_batch = _exported(module, example)
    return _Converter(exported, any_batch).result()


@quiet_exporter()
def _exported(module: nn.Module, example: torch.Tensor) -> tuple[Any, bool]:
    args = (example,)
    try:
        dynamic = ({0: torch.export.Dim("batch")},)
        return torch.export.export(module, args, dynamic_shapes=dynamic, strict=False), True
    except Exception:
        pass  # a batch that is written in, or that Python loops over, is exported as it is
    try:
        return torch.export.export(module, args, strict=False), False
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        scripted = [n for n, m in module.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        if scripted:
            raise BadInput(
                "channels cannot be pruned: a part of the network is TorchScript",
                got=f"{scripted[0]!r}, compiled by torch.jit",
                wanted="modules of Python, whose operators can be seen",
                where=f"{type(module).__name__}.forward",
                todo="Build the part without torch.jit.script, or leave out the structure stage",
            ) from error
        raise BadInput(
            "channels cannot be pruned: the network's forward pass cannot be exported",
            got=f"{type(error).__name__}: {first[:300]}",
            wanted="a forward pass whose operators do not depend on the values of the image",
            where=f"{type(module).__name__}.forward",
            todo="Move conditions on values into the data or into operators, or leave out the structure "
            "stage",
        ) from error


class _Converter:
    """Turns an exported program into ours, node by node."""

    def __init__(self, exported: Any, any_batch: bool) -> None:
        self.exported, self.any_batch = exported, any_batch
        self.now: dict[str, Any] = {}  # fx node -> what stands for it: a Value, a Tensor, a number
        self.steps: list[Step] = []
        self.shapes: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, str] = {}
        self.buffers: set[str] = set()
        self.frozen: set[str] = set()
        self.inputs: list[str] = []

    def result(self) -> Captured:
        """Everything converted."""
        graph = self.exported.graph
        if _unsafe_in_place(graph):
            self.exported = self.exported.run_decompositions({})
            graph = self.exported.graph
        self._inputs()
        for node in graph.nodes:
            if node.op == "call_function":
                self._call(node)
        outputs = [self._value(a) for a in next(n for n in graph.nodes if n.op == "output").args[0]]
        mutated = len(outputs) - len(self.exported.graph_signature.user_outputs)
        output = pytree.tree_unflatten(outputs[mutated:], self.exported.call_spec.out_spec)
        program = _without_dead(
            Program(tuple(self.inputs), tuple(self.steps), output, frozenset(self.buffers))
        )
        program, self.tensors, self.shapes, computed = _baked(program, self.tensors, self.shapes)
        program = replace(program, frozen=frozenset(self.frozen.intersection(program.tensors())))
        return Captured(
            program,
            {name: self.tensors[name] for name in program.tensors()},
            self.shapes,
            self.places,
            self.aliases,
            self.any_batch,
            computed,
        )

    def _inputs(self) -> None:
        by_storage: dict[Any, str] = {}
        state, constants = self.exported.state_dict, self.exported.constants
        for spec in self.exported.graph_signature.input_specs:
            kind, name = spec.kind.name, spec.arg.name
            if kind == "USER_INPUT":
                self.inputs.append(name)
                self.now[name] = Value(name)
                continue
            if kind not in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
                raise BadInput(
                    "channels cannot be pruned: the network holds what is no tensor", got=str(spec.target)
                )
            tensor = state[spec.target] if spec.target in state else constants[spec.target]
            key = (
                tensor.untyped_storage().data_ptr(),
                tensor.storage_offset(),
                tuple(tensor.shape),
                tensor.stride(),
            )
            target = by_storage.setdefault(key, spec.target) if tensor.numel() else spec.target
            if target != spec.target:
                self.aliases[spec.target] = target
            self.now[name] = Tensor(target)
            self.tensors[target] = tensor.detach()
            self.shapes[target] = tuple(tensor.shape)
            if kind != "PARAMETER":
                self.buffers.add(target)
            elif not tensor.requires_grad:
                self.frozen.add(target)
        for node in self.exported.graph.nodes:
            if node.op == "placeholder" and node.name in self.inputs:
                self.shapes[node.name] = _shape(node.meta["val"])

    def _call(self, node: fx.Node) -> None:
        name, changes_first = _operator_of(node)
        if name.partition(".")[0] in ASSERTIONS:
            return
        arguments = self._arguments(node)
        name, arguments = _plainer(name, arguments, node)
        self.steps.append(Step(node.name, name, arguments))
        self.places[node.name] = _place(node)
        self.shapes[node.name] = _shape(node.meta.get("val"))
        self.now[node.name] = Value(node.name)
        if changes_first and isinstance(node.args[0], fx.Node):
            self.now[node.args[0].name] = Value(node.name)

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        if isinstance(node.target, torch._ops.OpOverload):
            name, changes_first = _operator_of(node)
            # dropout_ and dropout call their argument differently
            schema = (target_of(name) if changes_first else node.target)._schema.arguments
            given = {schema[i].name: a for i, a in enumerate(node.args)} | dict(node.kwargs)
        else:
            given = {str(i): a for i, a in enumerate(node.args)}
        return {k: self._value(v) for k, v in given.items() if k not in ("device", "layout", "pin_memory")}

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.now[argument.name]
        if isinstance(argument, list | tuple):
            return [self._value(a) for a in argument]
        if isinstance(argument, torch.memory_format | torch.layout | torch.device):
            return None
        return argument


def _operator_of(node: fx.Node) -> tuple[str, bool]:
    """A node's operator, and whether it changes its first argument; the operator is then one that does
    not."""
    if isinstance(node.target, torch._ops.OpOverload):
        space, _, name = node.target.name().partition("::")
        name = name if "." in name else f"{name}.default"
        called = name if space == "aten" else f"{space}::{name}"
        base, _, overload = called.partition(".")
        if node.target._schema.is_mutable and base.endswith("_") and not base.endswith("__"):
            return f"{base[:-1]}.{overload}", True
        return called, False
    return getattr(node.target, "__name__", "unknown"), False


def _plainer(name: str, arguments: dict[str, Any], node: fx.Node) -> tuple[str, dict[str, Any]]:
    """Some operators said by another, of which there is a rule: chunks by their sizes, new tensors by
    theirs."""
    if name in ("chunk.default", "split.Tensor", "split.sizes", "tensor_split.sections"):
        dim = arguments.get("dim", 0)
        sizes = [part[dim] for part in _shape(node.meta["val"])]
        return "split_with_sizes.default", {"self": arguments["self"], "split_sizes": sizes, "dim": dim}
    if name in ("view.default", "_unsafe_view.default"):  # a view asks for strides that narrower tensors lack
        return "reshape.default", {"self": arguments["self"], "shape": arguments["size"]}
    if name == "view_as.default":
        return "reshape_as.default", arguments
    if name in ("to.device", "to.dtype_layout"):  # where it is computed is not the network's to say
        dtype = arguments.get("dtype")
        if dtype is None:
            return "clone.default", {"self": arguments["self"]}
        return "to.dtype", {"self": arguments["self"], "dtype": dtype}
    base = name.partition(".")[0]
    if base in ("new_zeros", "new_ones", "new_full") and not any(
        isinstance(s, Value) for s in arguments["size"]
    ):
        kept = {k: v for k, v in arguments.items() if k in ("size", "fill_value")}
        return f"{base.removeprefix('new_')}.default", kept | {"dtype": node.meta["val"].dtype}
    return name, arguments


def _place(node: fx.Node) -> str:
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return stack[-1] if stack and not stack[-1].startswith("_empty") else ""


def _shape(value: Any) -> Any:
    """Shape of a fake tensor with hints for symbolic sizes; a list of them for several, () for numbers."""
    if isinstance(value, torch.Tensor):
        return tuple(_hint(s) for s in value.shape)
    if isinstance(value, list | tuple):
        return [_shape(v) for v in value]
    return ()


def _hint(size: Any) -> int:
    if isinstance(size, torch.SymInt):
        return int(size.node.hint)
    return int(size)


def _base_name(node: fx.Node) -> str:
    return _operator_of(node)[0].partition(".")[0]


def _unsafe_in_place(graph: fx.Graph) -> bool:
    """Whether something is changed in place while another view of it is read later."""
    root: dict[fx.Node, fx.Node] = {}
    order = {node: at for at, node in enumerate(graph.nodes)}
    family: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        shares = source is not None and node.op == "call_function" and _base_name(node) in VIEWS
        root[node] = root[source] if shares and source is not None else node
        family.setdefault(root[node], []).append(node)
        if node.op == "call_function" and _operator_of(node)[1] and source is not None:
            if source.op == "placeholder":
                return True
            others = [f for f in family[root[source]] if f is not source]
            if any(order[user] > order[node] for other in others for user in other.users):
                return True
            root[node] = root[source]
    return False


def _without_dead(program: Program) -> Program:
    """Without steps whose results nobody reads."""
    used = {leaf.name for leaf in leaves(program.output) if isinstance(leaf, Value)}
    kept = []
    for step in reversed(program.steps):
        if step.name in used:
            kept.append(step)
            used |= {leaf.name for leaf in leaves(step.arguments) if isinstance(leaf, Value)}
    return Program(program.inputs, tuple(reversed(kept)), program.output, program.buffers)


def _baked(
    program: Program, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Any]
) -> tuple[Program, dict[str, torch.Tensor], dict[str, Any], frozenset[str]]:
    """Constants computed once; so are weights made of parameters by what mixes their channels
    (standardization)."""
    tensors, shapes = dict(tensors), dict(shapes)
    origins: dict[str, set[str]] = {}  # value that comes from no input -> parameters it comes from
    heavy: set[str] = set()
    values: dict[str, Any] = {}
    buffers, steps = set(program.buffers), []
    for step in program.steps:
        read = [leaf for leaf in leaves(step.arguments) if isinstance(leaf, Value | Tensor)]
        if any(isinstance(r, Value) and r.name not in origins for r in read) or not _is_function(
            step.operator
        ):
            steps.append(step)
            continue
        origin = set[str]()
        for r in read:
            origin |= origins[r.name] if isinstance(r, Value) else {r.name} - program.buffers
        origins[step.name] = origin
        if step.operator.partition(".")[0] not in LIGHT or any(r.name in heavy for r in read):
            heavy.add(step.name)
        known = {Value(k): v for k, v in values.items()} | {Tensor(k): v for k, v in tensors.items()}
        with torch.no_grad():
            values[step.name] = called(step, lambda leaf, known=known: known.get(leaf, leaf))  # type: ignore[misc]
        if origin and step.name not in heavy:
            steps.append(step)
    folded = {name for name, origin in origins.items() if not origin or name in heavy}
    renamed: dict[str, Tensor] = {}
    made_of: dict[str, set[str]] = {}

    def swap(leaf: Any) -> Any:
        """A folded value is read as a tensor."""
        if not isinstance(leaf, Value) or leaf.name not in folded:
            return leaf
        if leaf.name not in renamed:
            value, origin = values[leaf.name], origins[leaf.name]
            if not isinstance(value, torch.Tensor):
                return value
            name = f"constants.{leaf.name}"
            made_of[name] = {o for o in origin if tensors[o].shape == value.shape}
            tensors[name], shapes[name] = value.clone(), tuple(value.shape)
            if not origin:
                buffers.add(name)
            renamed[leaf.name] = Tensor(name)
        return renamed[leaf.name]

    kept = tuple(
        Step(s.name, s.operator, mapped(dict(s.arguments), swap)) for s in steps if s.name not in folded
    )
    output = mapped(program.output, swap)
    program = _without_dead(Program(program.inputs, kept, output, frozenset(buffers)))
    return _under_their_names(program, tensors, shapes, made_of)


def _under_their_names(
    program: Program,
    tensors: dict[str, torch.Tensor],
    shapes: dict[str, Any],
    made_of: Mapping[str, set[str]],
) -> tuple[Program, dict[str, torch.Tensor], dict[str, Any], frozenset[str]]:
    """A weight that was computed takes the name of the one parameter of its shape, if nothing else reads
    that."""
    read = set(program.tensors())
    names = {new: next(iter(old)) for new, old in made_of.items() if len(old) == 1 and not old & read}
    names = {new: PARAMETRIZED.sub(r"\1", old) for new, old in names.items()}
    if len(set(names.values())) < len(names):
        return program, tensors, shapes, frozenset(made_of)
    for new, old in names.items():
        tensors[old], shapes[old] = tensors.pop(new), shapes.pop(new)

    def rename(leaf: Any) -> Any:
        """The tensor under its own name."""
        return Tensor(names.get(leaf.name, leaf.name)) if isinstance(leaf, Tensor) else leaf

    steps = tuple(Step(s.name, s.operator, mapped(dict(s.arguments), rename)) for s in program.steps)
    computed = frozenset(names.get(name, name) for name in made_of)
    return Program(program.inputs, steps, program.output, program.buffers), tensors, shapes, computed


def _is_function(operator_name: str) -> bool:
    """Whether an operator gives the same for the same arguments and changes none of them."""
    if operator_name in PYTHON:
        return True
    if "::" in operator_name or "." not in operator_name:
        return False
    target = target_of(operator_name)
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
