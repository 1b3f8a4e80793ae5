"""Network: what flows through the pipeline. A definition plus its tensors, nothing else.

Channels removed show in the shapes, pruned weights are exact zeros, shared or rounded
weights are few distinct values; `Form` says how such values are to be read.
"""

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

import torch
from torch import nn

from tersor.errors import BadInput
from tersor.files import write_whole
from tersor.models import definition as definitions
from tersor.models.preprocessing import Preprocessing
from tersor.models.program import Program, build
from tersor.models.rebuild import rebuild

HEADER_KEY = "tersor.network"
HEADER_VERSION = 1


@dataclass(frozen=True)
class Form:
    """How to read the values of one weight tensor.

    kind: `dense` (any value), `shared` (at most 2^bits distinct values, zeros of a pruned tensor
        not counted), `linear` (value = scale x integer, the integers spanning at most 2^bits steps).
    pruned: exact zeros are pruned connections and stay zero in fine-tuning.
    bits: bits per value of `shared` and `linear`, 1 to 16.
    axis: the axis along which `scale` varies, None for one scale per tensor.
    scale: step size(s) of `linear`.
    """

    kind: Literal["dense", "shared", "linear"] = "dense"
    pruned: bool = False
    bits: int | None = None
    axis: int | None = None
    scale: tuple[float, ...] = ()


DENSE = Form()


@dataclass(frozen=True)
class Activation:
    """The grid that a layer's input is rounded to: scale x (integer - zero_point), integers 0 .. 2^bits - 1.

    bits: 1 to 16.
    scale: the step, finite and greater than zero.
    zero_point: the integer that means zero, one of them.
    """

    bits: int
    scale: float
    zero_point: int = 0


@dataclass(frozen=True, eq=False)
class Network:
    """A network definition plus its tensors: a value, which nobody can change in place.

    The tensors are copies of their own, made in torch's inference mode: changing one raises a RuntimeError.
    Two networks are equal when their digests are.

    definition: a name of the zoo, `path/to/file.py:factory`, or `live Name` for a module of this process.
    arguments: keyword arguments of the factory.
    input_shape: (channels, height, width) of one input, float32.
    classes: the class names, in the order of the outputs.
    tensors: the state dict, on the CPU.
    forms: tensor name -> Form; absent means dense.
    source_sha256: digest of the factory's file, for definitions outside the zoo.
    activations: layer name -> the grid of its input, where one is simulated. `module()` computes in float;
        see pipeline/weights/activations.py.
    """

    definition: str
    arguments: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    forms: Mapping[str, Form] = field(default_factory=dict)
    source_sha256: str | None = None
    activations: Mapping[str, Activation] = field(default_factory=dict)
    program: Program | None = field(default=None, repr=False)
    """What is computed, where the definition's Python cannot follow the tensors' shapes (sizes written
    in)."""
    template: nn.Module | None = field(default=None, repr=False)
    """Of a network made from a live module: what `module()` copies in place of building the definition."""

    def __post_init__(self) -> None:
        frozen = {name: _frozen(tensor) for name, tensor in self.tensors.items()}
        object.__setattr__(self, "tensors", MappingProxyType(frozen))
        for name in ("arguments", "forms", "activations"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    @classmethod
    def of_module(
        cls,
        module: nn.Module,
        input_shape: tuple[int, int, int],
        classes: tuple[str, ...],
        preprocessing: Preprocessing,
    ) -> Self:
        """A network of a live module, which serves in this process: `save` refuses it.

        Args:
            module: float32 (N, C, H, W) -> (N, classes); copied, in whatever state it is.
            input_shape, classes, preprocessing: as the fields.
        """
        template = copy.deepcopy(module).cpu().eval()
        tensors = {k: v.detach() for k, v in template.state_dict().items()}
        source_sha256 = hashlib.sha256(repr(template).encode()).hexdigest()
        return cls(
            f"live {type(module).__name__}",
            {},
            input_shape,
            classes,
            preprocessing,
            tensors,
            source_sha256=source_sha256,
            template=template,
        )

    def module(self) -> nn.Module:
        """The network as a PyTorch module in eval mode, float32 (N, C, H, W) -> (N, classes)."""
        if self.program is not None:
            return build(self.program, self.tensors)
        if self.template is not None:
            return rebuild(copy.deepcopy(self.template), self.tensors)
        fresh = definitions.build(self.definition, self.input_shape, len(self.classes), self.arguments)
        return rebuild(fresh, self.tensors)

    def form(self, name: str) -> Form:
        """The form of the tensor called `name`; dense where nothing was said."""
        return self.forms.get(name, DENSE)

    def with_module(self, module: nn.Module, forms: Mapping[str, Form] | None = None) -> Self:
        """The same network with the tensors (and shapes) of `module`, copied to the CPU."""
        tensors = {k: v.detach() for k, v in module.state_dict().items()}
        return self.with_tensors(tensors, forms)

    def with_tensors(
        self, tensors: Mapping[str, torch.Tensor], forms: Mapping[str, Form] | None = None
    ) -> Self:
        """The same network with other tensors; `forms` are kept where not given."""
        return replace(self, tensors=tensors, forms=self.forms if forms is None else forms)

    def with_program(self, program: Program, tensors: Mapping[str, torch.Tensor]) -> Self:
        """A network that computes `program` with these tensors, in place of its definition; forms are
        dense."""
        return replace(self, program=program, tensors=tensors, forms={}).with_module(build(program, tensors))

    def digest(self) -> str:
        """SHA-256 over header and tensors, in hex: equal networks have equal digests."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        sha = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def save(self, path: Path) -> None:
        """Write one `.safetensors` file: the tensors and a small header.

        Raises:
            BadInput: the network was made from a live module, which no file can build anew.
            OSError: the file cannot be written.
        """
        from safetensors.torch import save

        if self.template is not None:
            raise BadInput(
                "a network made from a live module cannot be saved",
                got=self.definition,
                wanted="a definition that can be built anew: a name of the zoo, or path/to/file.py:factory",
                where=path,
                todo="Put what builds the module into a file, and use "
                "Network.of('path/to/file.py:factory', ...).with_module(module)",
            )
        tensors = {k: v.contiguous() for k, v in self.tensors.items()}
        content = save(tensors, {HEADER_KEY: json.dumps(self._header(), sort_keys=True)})
        write_whole(path, content)  # not save_file: on a full disk it raises no OSError

    def _header(self) -> dict[str, Any]:
        named = ("definition", "input_shape", "classes", "source_sha256")
        fields = {name: getattr(self, name) for name in named} | {"arguments": dict(self.arguments)}
        forms = {k: asdict(v) for k, v in self.forms.items()}
        entries = {"version": HEADER_VERSION, "forms": forms, "preprocessing": asdict(self.preprocessing)}
        if self.activations:  # networks without keep the digests they always had
            entries["activations"] = {k: asdict(v) for k, v in self.activations.items()}
        if self.program is not None:
            entries["program"] = self.program.to_json()
        return json.loads(json.dumps({**fields, **entries}))


def _frozen(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that cannot be changed in place; one that already is such a copy, as it is."""
    if tensor.is_inference():
        return tensor
    with torch.inference_mode():
        return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def create(
    definition: str,
    arguments: Mapping[str, Any],
    input_shape: tuple[int, int, int],
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
) -> Network:
    """Build a network with fresh weights drawn from torch's global generator.

    Raises:
        BadInput: the definition is unknown, or its factory fails.
    """
    module = definitions.build(definition, input_shape, len(classes), arguments)
    shell = Network(
        definition,
        dict(arguments),
        input_shape,
        classes,
        preprocessing,
        {},
        source_sha256=definitions.source_digest(definition),
    )
    return shell.with_module(module)


def load(path: Path) -> Network:
    """Read a network that `Network.save` wrote; values are checked against their forms.

    Raises:
        BadInput: the file is missing, damaged, not a tersor network, made from another version
            of the user's own factory, or its values contradict their forms.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise BadInput("the network file is missing", where=path, todo="Check the path")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[HEADER_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = _from_header(header, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            "the file is not a network that tersor saved, or it is damaged",
            got=f"{type(error).__name__}: {error}",
            where=path,
            todo="To use weights from elsewhere, use a `load` stage with `weights:`",
        ) from error
    _check_source(network, path)
    for name, form in network.forms.items():
        check_form(name, network.tensors[name], form)
    return network


def _from_header(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Network:
    if header["version"] != HEADER_VERSION:
        raise ValueError(f"header version {header['version']}, this tersor reads {HEADER_VERSION}")
    pre = header["preprocessing"]
    forms = {k: Form(**{**v, "scale": tuple(v["scale"])}) for k, v in header["forms"].items()}
    return Network(
        header["definition"],
        header["arguments"],
        tuple(header["input_shape"]),
        tuple(header["classes"]),
        Preprocessing(pre["divisor"], tuple(pre["mean"]), tuple(pre["std"])),
        tensors,
        forms,
        header["source_sha256"],
        {k: _checked_activation(k, Activation(**v)) for k, v in header.get("activations", {}).items()},
        Program.from_json(header["program"]) if "program" in header else None,
    )


def _checked_activation(layer: str, grid: Activation) -> Activation:
    sound = 1 <= grid.bits <= 16 and math.isfinite(grid.scale) and grid.scale > 0
    if not sound or not 0 <= grid.zero_point < 2**grid.bits:
        raise ValueError(f"the input grid of layer {layer!r} makes no sense: {grid}")
    return grid


def _check_source(network: Network, path: Path) -> None:
    now = definitions.source_digest(network.definition)
    if now != network.source_sha256:
        raise BadInput(
            "the factory's source changed since this network was saved",
            got=f"SHA-256 {now}",
            wanted=f"SHA-256 {network.source_sha256}",
            where=f"{network.definition}, for {path}",
            todo="Restore the source, or run compress again",
        )


def check_form(name: str, tensor: torch.Tensor, form: Form) -> None:
    """Check that the values of `tensor` agree with what `form` says of them.

    Raises:
        BadInput: too many distinct values, or values off the linear grid.
    """
    if form.kind == "dense":
        return
    bits = form.bits or 0
    if form.kind == "shared":
        values = tensor[tensor != 0] if form.pruned else tensor
        count = values.unique().numel()
        if count > 2**bits:
            raise BadInput(
                f"tensor {name!r} is not what its header says",
                got=f"{count} distinct values",
                wanted=f"at most {2**bits} ({bits} bits, shared)",
            )
        return
    shape = [1] * tensor.dim()
    if form.axis is not None:
        shape[form.axis] = -1
    steps = tensor / torch.tensor(form.scale).reshape(shape)
    off_grid = float((steps - steps.round()).abs().max()) if tensor.numel() else 0.0
    # float32 rounding of scale x integer leaves a relative error of 2^-24 per operation
    if not off_grid <= 1e-6 * 2**bits + 1e-4:
        raise BadInput(
            f"tensor {name!r} is not what its header says",
            got=f"a value {off_grid:.2g} steps off the grid",
            wanted=f"multiples of the scale ({bits} bits, linear)",
        )
