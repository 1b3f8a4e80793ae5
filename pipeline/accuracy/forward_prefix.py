"""A forward pass in two parts: what comes before a layer is run once, what follows as often as asked.

The network is traced with torch.fx and its operations run one by one, in the order and with the modules
of its own forward pass, so the logits are those of an undivided pass, bit for bit. Between the parts only
the values that a later operation still reads are kept.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn


class CannotSplit(Exception):
    """The forward pass cannot be run in two parts; the text is the reason, for people."""


class Prefix:
    """The forward pass of one module, held at a place between two of its operations.

    `start(batch)`, then `advance(place)` for growing places, and at each place `finish()` any number of
    times. Only one batch's values are held; `start` drops those of the batch before.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        """Trace a module and prove on `example` that the trace computes what the module does.

        Args:
            module: the network in eval mode; its layers are shared with the trace.
            example: images (N, C, H, W), float32, on the module's device.

        Raises:
            CannotSplit: it cannot be traced, shares a tensor between layers, or the trace computes
                something else.
        """
        named = sum(1 for _ in module.named_parameters(remove_duplicate=False))
        if named != sum(1 for _ in module.parameters()):
            raise CannotSplit("two layers share one tensor")
        try:
            self.traced = fx.symbolic_trace(module)
        except Exception as error:  # a user's forward may fail in any way
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CannotSplit(f"its forward pass cannot be traced ({reason})") from error
        self._nodes = list(self.traced.graph.nodes)
        self._interpreter = fx.Interpreter(self.traced, garbage_collect_values=False)
        self._dies_at = _last_uses(self._nodes)
        self._values: dict[fx.Node, object] = {}
        self._place = 0
        self.start(example)
        with torch.no_grad():
            same = torch.equal(self.finish(), module(example.clone()))
        if not same:
            raise CannotSplit("its trace computes something else than the network")

    def place_of(self, layer: str) -> int:
        """The number of the first operation that uses the layer; the output's for one that none uses.

        A layer inside another that is traced as a whole (an attention block of torch.nn) counts as
        used where that one is.
        """
        for place, node in enumerate(self._nodes):
            if node.op in ("call_module", "get_attr"):
                target = str(node.target)
                if layer == target or layer.startswith(target + ".") or target.startswith(layer + "."):
                    return place
        return len(self._nodes) - 1

    def start(self, inputs: Tensor) -> None:
        """Stand before the first operation with a batch (N, C, H, W); the batch itself is not changed."""
        self._place, self._values = 0, {}
        self._inputs = inputs.clone()  # counts changes in place even where `inputs` does not

    def advance(self, place: int) -> None:
        """Run the operations before `place` and keep what later ones read.

        Raises:
            ValueError: `place` lies behind.
        """
        if place < self._place:
            raise ValueError(f"place {place} lies before {self._place}")
        with torch.no_grad():
            self._run(self._values, self._place, place)
        self._place = place

    def finish(self) -> Tensor:
        """Run the rest and return the logits (N, classes), float32; the place and its values stay.

        Raises:
            CannotSplit: an operation of the rest changed one of the kept values in place.
        """
        tensors = [self._inputs, *_tensors(self._values.values())]
        # Inference tensors count no changes, hence no_grad and not inference_mode.
        versions = [tensor._version for tensor in tensors]
        with torch.no_grad():
            result = self._run(dict(self._values), self._place, len(self._nodes))
        if versions != [tensor._version for tensor in tensors]:
            raise CannotSplit("an operation changes an earlier one's result in place")
        assert isinstance(result, Tensor)
        return result

    @property
    def held_bytes(self) -> int:
        """Bytes of the values kept at the current place, each storage once."""
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(self._values.values())
        }
        return sum(storage.nbytes() for storage in storages.values())

    @contextlib.contextmanager
    def weight(self, layer: str, weight: Tensor) -> Iterator[None]:
        """Put another weight under a layer for a while; shape, dtype and device as its own."""
        module = self._layer(layer)
        original = getattr(module, "weight", None)
        if module is None or original is None:  # no operation uses it, so its weight changes nothing
            yield
            return
        module.weight = nn.Parameter(weight, requires_grad=False)
        try:
            yield
        finally:
            module.weight = original

    def _layer(self, name: str) -> nn.Module | None:
        try:
            return self.traced.get_submodule(name)
        except AttributeError:
            return None

    def _run(self, values: dict[fx.Node, object], begin: int, end: int) -> object:
        """Run operations begin .. end - 1 on `values`, dropping each value after its last use."""
        self._interpreter.env = values
        self._interpreter.args_iter = iter([self._inputs])
        result: object = None
        for node in self._nodes[begin:end]:
            result = values[node] = self._interpreter.run_node(node)
            for dead in self._dies_at.get(node, ()):
                del values[dead]
        self._interpreter.env = {}
        return result


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Operation -> the values that none after it reads; one that is never read dies where it is made."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        for read in node.all_input_nodes:
            last[read] = node
    dies: dict[fx.Node, list[fx.Node]] = {}
    for value, node in last.items():
        if node.op != "output":
            dies.setdefault(node, []).append(value)
    return dies


def _tensors(values: object) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries (what `split` or a block may return)."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif isinstance(values, str) or not hasattr(values, "__iter__"):
        return []
    return [tensor for value in values for tensor in _tensors(value)]
