"""A network as a list of operators: what runs where a definition's Python has sizes written in.

A module whose forward pass says `split(16)` or `view(n, 12, 64)` cannot follow tensors that became
narrower. Its exported graph can: every number is an argument of an operator, and can be replaced. A
`Program` is that graph as plain data (JSON in a network's header, no pickle), and `build` makes a module
of it: the layers that torch knows stand under their own names, so that what trains, shares or quantizes
`layer1.conv.weight` finds it there.

What is lost against the definition: forward passes that differ between training and evaluation in more than
BatchNorm and dropout.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from tersor.errors import BadInput

PYTHON = {
    "getitem": operator.getitem,
    "mul": operator.mul,
    "add": operator.add,
    "sub": operator.sub,
    "floordiv": operator.floordiv,
    "truediv": operator.truediv,
    "neg": operator.neg,
    "mod": operator.mod,
}
"""Functions of Python on sizes and lists, by name."""
_ELEMENTWISE = """
    relu.default relu6.default leaky_relu.default elu.default selu.default celu.default gelu.default
    silu.default mish.default sigmoid.default tanh.default hardtanh.default hardswish.default
    hardsigmoid.default softplus.default log_sigmoid.default threshold.default hardshrink.default
    softshrink.default dropout.default feature_dropout.default alpha_dropout.default clone.default
    contiguous.default detach.default alias.default to.dtype to.dtype_layout to.device _to_copy.default
    lift_fresh_copy.default abs.default neg.default exp.default log.default sqrt.default rsqrt.default
    square.default reciprocal.default sign.default sin.default cos.default erf.default floor.default
    ceil.default round.default log1p.default expm1.default clamp.default clamp_min.default
    clamp_max.default clamp.Tensor pow.Tensor_Scalar pow.Tensor_Tensor add.Tensor add.Scalar sub.Tensor
    sub.Scalar rsub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar div.Tensor_mode
    floor_divide.default remainder.Scalar maximum.default minimum.default where.self where.ScalarOther
    masked_fill.Scalar masked_fill.Tensor addcmul.default addcdiv.default lerp.Tensor lerp.Scalar
    atan2.default eq.Scalar ne.Scalar gt.Scalar lt.Scalar ge.Scalar le.Scalar eq.Tensor ne.Tensor
    gt.Tensor lt.Tensor ge.Tensor le.Tensor logical_and.default logical_or.default logical_not.default
    bitwise_not.default zeros_like.default ones_like.default full_like.default
"""
_OTHERS = """
    conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
    conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input linear.default matmul.default
    mm.default bmm.default addmm.default baddbmm.default scaled_dot_product_attention.default
    einsum.default batch_norm.default _native_batch_norm_legit_no_training.default layer_norm.default
    group_norm.default instance_norm.default rms_norm.default softmax.int _softmax.default
    log_softmax.int linalg_vector_norm.default norm.ScalarOpt_dim mean.dim mean.default sum.dim_IntList
    amax.default amin.default var.correction var_mean.correction std.correction max.dim min.dim
    max_pool1d.default max_pool2d.default max_pool3d.default avg_pool1d.default avg_pool2d.default
    avg_pool3d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default
    adaptive_avg_pool3d.default adaptive_max_pool1d.default adaptive_max_pool2d.default
    max_pool2d_with_indices.default _adaptive_avg_pool2d.default upsample_nearest1d.vec
    upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec upsample_linear1d.vec
    upsample_nearest2d.default upsample_bilinear2d.default grid_sampler.default prelu.default
    glu.default type_as.default float.default view.default reshape.default _unsafe_view.default
    reshape_as.default view_as.default flatten.using_ints unflatten.int squeeze.default squeeze.dim
    squeeze.dims unsqueeze.default expand.default expand_as.default broadcast_to.default repeat.default
    repeat_interleave.self_int permute.default transpose.int t.default movedim.int movedim.intlist
    swapaxes.default mT.default numpy_T.default pixel_shuffle.default pixel_unshuffle.default
    channel_shuffle.default unfold.default im2col.default col2im.default cat.default stack.default
    split.Tensor split.sizes split_with_sizes.default chunk.default unbind.int tensor_split.sections
    slice.Tensor select.int narrow.default index.Tensor index_select.default roll.default flip.default
    pad.default constant_pad_nd.default slice_scatter.default select_scatter.default gather.default
    sort.default topk.default cumsum.default argmax.default tril.default triu.default sym_size.int
    new_zeros.default new_ones.default new_full.default zeros.default ones.default full.default
    arange.default arange.start arange.start_step linspace.default empty.memory_format new_empty.default
"""
ELEMENTWISE = tuple(_ELEMENTWISE.split())
"""Operators of ATen that treat each position alike."""
OPERATORS = frozenset((*ELEMENTWISE, *_OTHERS.split()))
"""The operators of ATen that a program may call, a closed list: each is a function of its arguments alone."""


@dataclass(frozen=True)
class Value:
    """The result of a step, or an input, by name."""

    name: str


@dataclass(frozen=True)
class Tensor:
    """A parameter, buffer or constant, by its name in the state dict."""

    name: str


@dataclass(frozen=True)
class Step:
    """One call: name of its result, operator (of OPERATORS or PYTHON), arguments by their names in its
    schema.

    Arguments are numbers, strings, None, `Value`, `Tensor`, a dtype, and lists of these.
    """

    name: str
    operator: str
    arguments: Mapping[str, Any]

    def bound(self) -> dict[str, Any]:
        """The arguments with the schema's defaults for those that are not given."""
        if self.operator in PYTHON:
            return dict(self.arguments)
        schema = target_of(self.operator)._schema
        return {a.name: self.arguments.get(a.name, a.default_value) for a in schema.arguments}


@dataclass(frozen=True)
class Program:
    """Operators in the order of their calls.

    inputs: names of the inputs; steps; output: Values, in tuples, lists and dicts as forward returns them.
    buffers: names of the tensors that do not train.
    frozen: names of parameters that the user froze (requires_grad is False).
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    output: Any
    buffers: frozenset[str] = field(default_factory=frozenset)
    frozen: frozenset[str] = field(default_factory=frozenset)

    def tensors(self) -> list[str]:
        """Names of the tensors that it reads, in the order of their first use."""
        names = (
            leaf.name for step in self.steps for leaf in leaves(step.arguments) if isinstance(leaf, Tensor)
        )
        return list(dict.fromkeys(names))

    def changed(self, changes: Mapping[str, Mapping[str, Any]]) -> "Program":
        """The same with other arguments; step -> argument -> value."""
        steps = (
            replace(s, arguments={**s.arguments, **changes[s.name]}) if s.name in changes else s
            for s in self.steps
        )
        return replace(self, steps=tuple(steps))

    def to_json(self) -> dict[str, Any]:
        """As values that JSON knows."""
        steps = [[s.name, s.operator, {k: _encoded(v) for k, v in s.arguments.items()}] for s in self.steps]
        return {
            "inputs": list(self.inputs),
            "steps": steps,
            "output": _encoded(self.output),
            "buffers": sorted(self.buffers),
            **({"frozen": sorted(self.frozen)} if self.frozen else {}),
        }

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "Program":
        """The program of `to_json`.

        Raises:
            ValueError: it calls an operator that is not in the list.
        """
        steps = tuple(
            Step(name, called, {k: _decoded(v) for k, v in given.items()})
            for name, called, given in raw["steps"]
        )
        for step in steps:
            if step.operator not in OPERATORS and step.operator not in PYTHON:
                raise ValueError(f"operator {step.operator!r} is not one that a network may call")
        named = (frozenset(raw.get(key, ())) for key in ("buffers", "frozen"))
        return Program(tuple(raw["inputs"]), steps, _decoded(raw["output"]), *named)


def target_of(operator_name: str) -> Any:
    """The function behind a step's operator: of Python, or `torch.ops.aten`."""
    if operator_name in PYTHON:
        return PYTHON[operator_name]
    name, _, overload = operator_name.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def leaves(value: Any) -> Iterator[Any]:
    """What is in nested lists, tuples and dicts, in order."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Nested lists, tuples and dicts with each leaf replaced by the function's value."""
    if isinstance(value, Mapping):
        return {k: mapped(v, function) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(part, function) for part in value)
    return function(value)


def _encoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {"dict": [[k, _encoded(v)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(v) for v in value]}
    if isinstance(value, list):
        return [_encoded(v) for v in value]
    if isinstance(value, Value | Tensor):
        return {type(value).__name__.lower(): value.name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, float):
        return {"float": repr(value)}  # inf and nan are no JSON
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(v) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {k: _decoded(v) for k, v in content}
    if kind == "tuple":
        return tuple(_decoded(v) for v in content)
    if kind == "dtype":
        found = getattr(torch, content)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"{content!r} is no dtype")
        return found
    return {"value": Value, "tensor": Tensor, "float": float}[kind](content)


def build(program: Program, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module that runs the program, in eval mode, with these tensors loaded.

    Convolutions, linear layers, norms and dropout that the program calls with tensors named
    `<layer>.weight` are torch's own layers under that name; all else are calls of operators.

    Raises:
        BadInput: a tensor is missing.
    """
    missing = [name for name in program.tensors() if name not in tensors]
    if missing:
        raise BadInput(
            "the tensors do not belong to this network",
            got=f"{len(tensors)} tensors without {', '.join(missing[:3])}",
            wanted=f"all {len(program.tensors())} that its operators read",
        )
    root, graph = nn.Module(), fx.Graph()
    layers = _layers(program, tensors)
    values: dict[str, fx.Node] = {name: graph.placeholder(name) for name in program.inputs}
    read: dict[str, fx.Node] = {}

    def node_of(leaf: Any) -> Any:
        """What an argument is in the graph."""
        if isinstance(leaf, Value):
            return values[leaf.name]
        if isinstance(leaf, Tensor):
            if leaf.name not in read:
                _register(root, leaf.name, tensors[leaf.name], leaf.name in program.buffers)
                read[leaf.name] = graph.get_attr(leaf.name)
            return read[leaf.name]
        return leaf

    for step in program.steps:
        if step.name in layers:
            name, layer = layers[step.name]
            _attach(root, name, layer)
            values[step.name] = graph.call_module(name, (node_of(step.arguments["input"]),))
        else:
            args, kwargs = _positional(step, lambda value: mapped(value, node_of))
            values[step.name] = graph.call_function(target_of(step.operator), args, kwargs)
    graph.output(mapped(program.output, node_of))
    module = fx.GraphModule(root, graph)
    module.load_state_dict(dict(tensors), strict=False)
    for name, parameter in module.named_parameters():
        if name in program.frozen:
            parameter.requires_grad_(False)
    return module.eval()


def called(step: Step, value_of: Callable[[Any], Any]) -> Any:
    """What a step gives; `value_of` says what a Value, a Tensor and any other argument is."""
    args, kwargs = _positional(step, lambda value: mapped(value, value_of))
    return target_of(step.operator)(*args, **kwargs)


def _positional(step: Step, convert: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as the operator takes them: by place, those that are by name only by name."""
    if step.operator in PYTHON:
        return tuple(convert(v) for v in step.arguments.values()), {}
    schema, given = target_of(step.operator)._schema.arguments, step.arguments
    last = max((i for i, a in enumerate(schema) if not a.kwarg_only and a.name in given), default=-1)
    args = tuple(convert(given.get(a.name, a.default_value)) for a in schema[: last + 1])
    return args, {a.name: convert(given[a.name]) for a in schema if a.kwarg_only and a.name in given}


def _attach(root: nn.Module, name: str, layer: nn.Module) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = _parent(root, parent_name)
    if parent._modules.get(leaf) is layer:
        return
    old = parent._modules.get(leaf)
    if old is not None:  # a container that was made for one of its children
        for child_name, child in old.named_children():
            layer.add_module(child_name, child)
        for key, parameter in old.named_parameters(recurse=False):
            if key not in layer._parameters:
                layer.register_parameter(key, parameter)
    parent.add_module(leaf, layer)


def _register(root: nn.Module, name: str, tensor: torch.Tensor, buffer: bool) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = _parent(root, parent_name)
    if hasattr(parent, leaf):
        return  # a layer holds it already
    if buffer or not tensor.is_floating_point():
        parent.register_buffer(leaf, tensor.detach().clone())
    else:
        parent.register_parameter(leaf, nn.Parameter(tensor.detach().clone()))


def _parent(root: nn.Module, name: str) -> nn.Module:
    for part in name.split(".") if name else []:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    return root


def _layers(program: Program, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, nn.Module]]:
    """step -> name and layer, for the steps that a layer of torch computes."""
    made: dict[str, tuple[Any, nn.Module]] = {}
    found: dict[str, tuple[str, nn.Module]] = {}
    for step in program.steps:
        maker = _MAKERS.get(step.operator)
        if maker is None:
            continue
        if step.operator == "dropout.default":
            found[step.name] = f"dropouts.{step.name}", nn.Dropout(step.bound()["p"])
            continue
        name = _layer_name(step)
        if name is None:
            continue
        told = {k: v for k, v in step.bound().items() if k not in ("input", "cudnn_enabled", "cudnn_enable")}
        if name not in made:
            made[name] = told, maker(step.bound(), tensors)
        if made[name][0] == told:
            found[step.name] = name, made[name][1]
    return found


def _layer_name(step: Step) -> str | None:
    """The layer whose `weight`, `bias`, `running_mean` and `running_var` a step reads, if it reads just
    those."""
    given = step.bound()
    held = {k: v for k, v in given.items() if k in ("weight", "bias", "running_mean", "running_var")}
    if not isinstance(held["weight"], Tensor) or not held["weight"].name.endswith(".weight"):
        return None
    name = held["weight"].name.removesuffix(".weight")
    if any(v is not None and v != Tensor(f"{name}.{k}") for k, v in held.items()):
        return None
    if "running_mean" in held and (held["running_mean"] is None or given["training"]):
        return None
    return name


def _empty(layer: nn.Module, tensors: Mapping[str, torch.Tensor], weight: Tensor) -> nn.Module:
    return layer.to(tensors[weight.name].dtype)


def _convolution(kind: Any) -> Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], nn.Module]:
    def make(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        """A convolution layer of the step's arguments."""
        weight, dims = tensors[given["weight"].name], tensors[given["weight"].name].dim() - 2

        def full(value: Any) -> Any:
            """One number a dimension."""
            value = list(value) if isinstance(value, list | tuple) else value
            return tuple(value * dims if len(value) == 1 else value) if isinstance(value, list) else value

        layer = kind(
            weight.shape[1] * given["groups"],
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=full(given["stride"]),
            padding=full(given["padding"]),
            dilation=full(given["dilation"]),
            groups=given["groups"],
            bias=given["bias"] is not None,
        )
        return _empty(layer, tensors, given["weight"])

    return make


def _linear(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    outs, ins = tensors[given["weight"].name].shape
    return _empty(nn.Linear(ins, outs, bias=given["bias"] is not None), tensors, given["weight"])


def _batch_norm(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    width = tensors[given["weight"].name].shape[0]
    layer = _AnyBatchNorm(width, eps=given["eps"], momentum=given["momentum"])
    if given["bias"] is None:
        layer.register_parameter("bias", None)
    return _empty(layer, tensors, given["weight"])


class _AnyBatchNorm(nn.BatchNorm2d):
    """BatchNorm of inputs of any number of dimensions."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any will do."""


def _layer_norm(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    layer = nn.LayerNorm(given["normalized_shape"], eps=given["eps"], bias=given["bias"] is not None)
    return _empty(layer, tensors, given["weight"])


def _group_norm(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    layer = nn.GroupNorm(given["num_groups"], tensors[given["weight"].name].shape[0], eps=given["eps"])
    if given["bias"] is None:
        layer.register_parameter("bias", None)
    return _empty(layer, tensors, given["weight"])


_MAKERS: Mapping[str, Any] = {
    **{f"conv1d.{o}": _convolution(nn.Conv1d) for o in ("default", "padding")},
    **{f"conv2d.{o}": _convolution(nn.Conv2d) for o in ("default", "padding")},
    **{f"conv3d.{o}": _convolution(nn.Conv3d) for o in ("default", "padding")},
    "linear.default": _linear,
    "batch_norm.default": _batch_norm,
    "layer_norm.default": _layer_norm,
    "group_norm.default": _group_norm,
    "dropout.default": lambda given, _tensors: nn.Dropout(given["p"]),
}
"""Operator -> what makes the layer that computes it."""
