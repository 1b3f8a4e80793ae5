"""The only place that imports NNI 3.0, and the guards against what it does silently.

NNI's last commit is of October 2023; nothing upstream will be fixed, so each known fault has a
guard here and a contract test in tests/contract/test_nni.py:

- its own tracer dies on today's torch (nni#5768): we pass a torch.fx trace;
- masks and module are changed in place: both are deep-copied;
- without dependency groups conflicting masks are resolved by un-pruning: groups are always set;
- channels that are constant on random data are removed although nobody asked: the caller compares
  the widths got with the widths asked (`structure.prune_channels`);
- replaced layers come back in training mode: `.eval()`;
- it prints: stdout is swallowed and its loggers are quiet.
"""

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from tersor.models.errors import BadInput, Unavailable

PRUNERS = {"l1norm": "L1NormPruner", "l2norm": "L2NormPruner", "fpgm": "FPGMPruner"}
"""Name in a recipe -> NNI's class. l1norm: arXiv:1608.08710, fpgm: arXiv:1811.00250."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow NNI's prints, log lines and warnings; errors pass."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import nni

        nni.silence_stdout()
        for name in ("nni", "Shape Dependency", "nni.compression"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        import nni.compression.speedup.mask_conflict as mask_conflict

        vars(mask_conflict)["print"] = lambda *_, **__: None
        yield


def _quiet_logger() -> logging.Logger:
    logger = logging.getLogger("nni.tersor")
    logger.setLevel(logging.CRITICAL)
    return logger


def trace(module: nn.Module) -> fx.GraphModule:
    """Trace a module symbolically with torch.fx.

    Raises:
        BadInput: the forward pass depends on values or shapes (the remedy is named).
    """
    try:
        return fx.symbolic_trace(module)
    except Exception as error:
        raise BadInput(
            "channels cannot be pruned: the network's forward pass cannot be traced",
            got=f"{type(error).__name__}: {error}",
            wanted="a forward pass without `if` or loops over shapes or values",
            where=f"{type(module).__name__}.forward",
            todo="Move the condition into __init__, or leave out the structure stage",
        ) from error


def dependency_groups(module: nn.Module, example: torch.Tensor) -> list[set[str]]:
    """Sets of layers whose output channels must be removed together (residual sums and the like).

    Args:
        module: the network, in eval mode; not changed.
        example: an input (N, C, H, W), float32.

    Returns:
        Sets of module names; a layer that is in none is free.
    """
    groups: dict[str, set[str]] = {}
    for entry in _grouped_config(propagated(module, example), _prunable(module)):
        if "dependency_group_id" in entry:
            groups.setdefault(entry["dependency_group_id"], set()).update(entry["op_names"])
    return list(groups.values())


def channel_masks(
    module: nn.Module, example: torch.Tensor, pruner: str, remove: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Let an NNI pruner choose which output channels to keep.

    Args:
        module: the network, in eval mode; not changed.
        example: an input (N, C, H, W), float32.
        pruner: one of PRUNERS.
        remove: layer name -> how many of its output channels to remove; layers of one dependency
            group must remove equally many.

    Returns:
        layer name -> bool tensor (out_channels,), True where a channel is kept.
    """
    with _quiet():
        import nni.compression.pruning as pruners

        config = _grouped_config(propagated(module, example), list(remove))
        for entry in config:
            (layer,) = entry["op_names"]
            # NNI floors ratio x width; half a channel more survives the rounding of the division
            entry["sparse_ratio"] = (remove[layer] + 0.5) / width_of(module, layer) if remove[layer] else 0.0
        chooser = getattr(pruners, PRUNERS[pruner])(copy.deepcopy(module), config)
        _, masks = chooser.compress()
    kept = {name: mask["weight"].flatten(1).ne(0).any(1) for name, mask in masks.items()}
    return {name: kept[name] for name in remove}


def speed_up(
    module: nn.Module, example: torch.Tensor, kept: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Let NNI's ModelSpeedup rebuild the module without the channels that are not kept.

    Args:
        module: the network, in eval mode; not changed.
        example: an input (N, C, H, W), float32.
        kept: layer name -> bool tensor (out_channels,).

    Returns:
        The state dict of the rebuilt module, names as before, shapes smaller.

    Raises:
        BadInput: ModelSpeedup cannot handle a layer (named, with the remedy).
        Unavailable: no space for the temporary file that ModelSpeedup writes.
    """
    masks = {name: _expand(module.get_submodule(name), keep) for name, keep in kept.items()}
    with _quiet():
        from nni.compression.speedup import ModelSpeedup

        target = copy.deepcopy(module)
        rebuilder = ModelSpeedup(
            target, example, copy.deepcopy(masks), graph_module=trace(target), logger=_quiet_logger()
        )
        try:
            rebuilt = rebuilder.speedup_model()
        except Exception as error:
            if (reason := _no_space(error)) is not None:
                raise Unavailable(
                    "NNI cannot write its temporary file",
                    got=reason,
                    where=tempfile.gettempdir(),
                    todo="Free some space there, or set TMPDIR to another folder, and run again",
                ) from error
            raise BadInput(
                "NNI's ModelSpeedup cannot rebuild this network",
                got=f"{type(error).__name__}: {error}",
                where=f"layer {_failing_layer(error, module)!r}",
                todo="List the layers that feed it under `exclude` of the structure stage; a reshape with a "
                "number written in must become `flatten` or `view(n, -1)`, and zero-padding shortcuts "
                "(option A) projections (option B)",
            ) from error
    return {name: tensor.detach().clone() for name, tensor in rebuilt.eval().state_dict().items()}


def _no_space(error: BaseException | None) -> str | None:
    """Why ModelSpeedup could not save the weights; its clean-up hides the first error behind another."""
    while error is not None:
        if isinstance(error, OSError) or "inline_container" in str(error):  # how torch.save tells a full disk
            return getattr(error, "strerror", None) or "torch.save failed"
        error = error.__cause__ or error.__context__
    return None


def width_of(module: nn.Module, layer: str) -> int:
    """The number of output channels of a Conv or Linear layer."""
    weight = module.get_submodule(layer).weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def _prunable(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def propagated(module: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """A trace of a copy of `module` whose nodes carry their shapes (`meta["tensor_meta"]`).

    Raises:
        BadInput: as `trace`.
    """
    from torch.fx.passes.shape_prop import ShapeProp

    traced = trace(copy.deepcopy(module))
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
    return traced


def _grouped_config(traced: fx.GraphModule, layers: list[str]) -> list[dict[str, Any]]:
    """NNI's config entries, one a layer, with its dependency group id; the ratio is a placeholder."""
    with _quiet():
        from nni.compression.speedup.dependency import auto_set_denpendency_group_ids

        return auto_set_denpendency_group_ids(traced, [{"op_names": layers, "sparse_ratio": 0.5}])


def _expand(layer: nn.Module, keep: torch.Tensor) -> dict[str, torch.Tensor]:
    """NNI's mask of a layer: 0 and 1, of the shape of weight and bias."""
    weight, bias = layer.weight, layer.bias
    mask = keep.float().reshape(-1, *[1] * (weight.dim() - 1)).expand_as(weight).clone()  # type: ignore
    return {"weight": mask} | ({"bias": keep.float()} if bias is not None else {})


def _failing_layer(error: BaseException, module: nn.Module) -> str:
    """The layer in whose replacement or propagation NNI failed, read off the traceback's locals."""
    names = {name.replace(".", "_"): name for name, _ in module.named_modules()}
    found, step = "unknown", error.__traceback__
    while step is not None:
        node = step.tb_frame.f_locals.get("node")
        if isinstance(node, fx.Node):
            found = names.get(node.name, f"{node.name} ({node.op} {node.target})")
        step = step.tb_next
    return found
