"""The only place that imports NNI 3.0, and the guards against what it does silently.

NNI's last commit is of October 2023; nothing upstream will be fixed, so each known fault has a
guard here and a contract test in tests/contract/test_nni.py:

- its own tracer dies on today's torch (nni#5768): we pass a torch.fx trace;
- masks and module are changed in place: it gets copies of its own;
- without dependency groups conflicting masks are resolved by un-pruning: only its scores are asked for,
  channels are chosen set by set (coupling.py, widths.py), and masks that grow get the groups from there;
- channels that are constant on random data are removed although nobody asked: the caller compares
  the widths got with the widths asked (`rebuilt_network` in stage.py);
- replaced layers come back in training mode: `.eval()`;
- it prints: stdout is swallowed and its loggers are quiet.
"""

import contextlib
import copy
import io
import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from tersor.errors import BadInput, Unavailable
from tersor.pipeline.structure.graph import trace, width_of

PRUNERS = {"l1norm": "L1NormPruner", "l2norm": "L2NormPruner", "fpgm": "FPGMPruner", "taylor": "TaylorPruner"}
"""Name in a recipe -> NNI's class. l1norm: arXiv:1608.08710, fpgm: arXiv:1811.00250, taylor: Molchanov et
al. 2019, arXiv:1906.10771."""
SCHEDULES = {"agp": "AGPPruner", "linear": "LinearPruner"}
"""Name in a recipe -> NNI's class. agp: Zhu and Gupta, arXiv:1710.01878."""
Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (N, C, H, W) float32 and labels (N,) int64."""


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


def scores(
    module: nn.Module, pruner: str, layers: Sequence[str], batches: Iterable[Batch] = ()
) -> dict[str, np.ndarray]:
    """How important an NNI pruner finds each output channel.

    Args:
        module: the network, in eval mode; not changed.
        pruner: one of PRUNERS.
        layers: names of Conv and Linear layers.
        batches: for `taylor`, whose importance is the sum of (gradient x weight)^2 over a channel's
            weights: training images and labels. The weights stay as they are.

    Returns:
        layer -> float64 (out_channels,), the larger the more important.
    """
    if not layers:
        return {}
    with _quiet():
        import nni.compression.pruning as pruners

        config = [{"op_names": list(layers), "sparse_ratio": 0.5, "target_names": ["weight"]}]
        model, importances = copy.deepcopy(module), {}

        class Watched(getattr(pruners, PRUNERS[pruner])):  # type: ignore[misc]
            """The pruner; what it measured is gone once it has made its masks, so it is noted."""

            def _calculate_metrics(self, data: Any) -> Any:
                metrics = super()._calculate_metrics(data)
                importances.update({name: entry["weight"] for name, entry in metrics.items()})
                return metrics

        batch_list = list(batches)
        extra = (_evaluator(model, batch_list, 0.0), len(batch_list)) if pruner == "taylor" else ()
        Watched(model, config, *extra).compress()
    return {name: importances[name].detach().flatten().double().numpy() for name in layers}


def trained_masks(
    module: nn.Module,
    pruner: str,
    remove: Mapping[str, tuple[int, str]],
    batches: Sequence[Batch] | Callable[[], Iterator[Batch]],
    schedule: str,
    rounds: int,
    steps: int,
    learning_rate: float,
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Let NNI's AGPPruner or LinearPruner mask more and more channels while the network trains.

    Args:
        module: the network; not changed.
        pruner: l1norm, l2norm or fpgm.
        remove: layer -> (how many output channels to remove, the space it belongs to): layers of one
            space are masked alike.
        batches: makes an endless stream of training images and labels.
        schedule: one of SCHEDULES.
        rounds: how many times the masks grow.
        steps: training batches in all, at least `rounds`.
        learning_rate: of SGD with momentum 0.9.

    Returns:
        The trained network in eval mode, masks not applied, and layer -> bool (out_channels,), True
        where a channel is kept.
    """
    with _quiet():
        import nni.compression.pruning as pruners

        model = copy.deepcopy(module)
        config = [
            # NNI floors ratio x width; half a channel more survives the rounding of the division
            {
                "op_names": [name],
                "sparse_ratio": (count + 0.5) / width_of(module, name) if count else 0.0,
                "target_names": ["weight"],
                "dependency_group_id": space,
            }
            for name, (count, space) in remove.items()
        ]
        bound = getattr(pruners, PRUNERS[pruner])(model, config)
        interval = max(1, steps // rounds)
        grower = getattr(pruners, SCHEDULES[schedule])(
            bound, interval, rounds, _evaluator(model, batches, learning_rate)
        )
        _, masks = grower.compress(interval * rounds, None)
        grower.unwrap_model()
    keep_masks = {name: mask["weight"].flatten(1).ne(0).any(1) for name, mask in masks.items()}
    return model.eval(), {name: keep_masks[name] for name in remove}


def _evaluator(model: nn.Module, batches: Any, learning_rate: float) -> Any:
    """NNI's TorchEvaluator around a plain loop; a rate of 0 leaves the network as it is."""
    import nni
    from nni.compression.utils import TorchEvaluator

    def step(batch: Batch, network: nn.Module) -> torch.Tensor:
        """The loss of one batch."""
        return nn.functional.cross_entropy(network(batch[0]), batch[1])

    def loop(network: Any, optimizer: Any, step: Any, _rates: Any, max_steps: int, _epochs: Any) -> None:
        """Train for `max_steps` batches."""
        network.train(learning_rate > 0)
        for batch in itertools.islice(batches() if callable(batches) else iter(batches), max_steps):
            optimizer.zero_grad()
            step(batch, network).backward()
            optimizer.step()

    momentum = 0.9 if learning_rate > 0 else 0.0
    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=learning_rate, momentum=momentum)
    return TorchEvaluator(loop, optimizer, step)


def distrusted(module: nn.Module, traced: fx.GraphModule) -> str | None:
    """Why ModelSpeedup is not asked to rebuild this network; None where it may be tried."""
    called: set[str] = set()
    for node in traced.graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            layer = module.get_submodule(target)
            if getattr(layer, "groups", 1) > 1:
                return f"{target!r} is a grouped convolution"
            if target in called and isinstance(layer, nn.Conv2d | nn.Linear):
                return f"{target!r} is called twice"
            called.add(target)
        elif node.op == "call_function" and getattr(node.target, "__name__", "") == "pad":
            return f"{node.name!r} pads channels or pixels by numbers"
    return None


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
    layers = dict(module.named_modules())
    if strangers := [name for name in kept if not hasattr(layers.get(name), "weight")]:
        raise BadInput("NNI masks layers, and a weight is none", got=strangers[0], where="ModelSpeedup")
    masks = {name: _expand(layers[name], keep) for name, keep in kept.items()}
    with _quiet(), contextlib.redirect_stderr(io.StringIO()):  # torch prints tracebacks of what fails
        from nni.compression.speedup import ModelSpeedup

        target = copy.deepcopy(module)
        # It holds all activations and gradients of so many images. Large maps show with 4 that a channel
        # lives; with its own 8 ResNet-50 at 224 px takes 6 GiB.
        trial = 8 if example.shape[-2] * example.shape[-1] <= 128 * 128 else 4
        traced = trace(target)
        try:
            rebuilder = ModelSpeedup(
                target, example, masks, batch_size=trial, graph_module=traced, logger=_quiet_logger()
            )
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


def _expand(layer: nn.Module, keep: torch.Tensor) -> dict[str, torch.Tensor]:
    """NNI's mask of a layer: 0 and 1, of the shape of weight and bias."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    mask = keep.float().reshape(-1, *[1] * (weight.dim() - 1)).expand_as(weight).clone()  # type: ignore
    return {"weight": mask} | ({"bias": keep.float()} if bias is not None else {})


def _failing_layer(error: BaseException, module: nn.Module) -> str:
    """The layer in whose replacement or propagation NNI failed, read off the traceback's locals."""
    names = {name.replace(".", "_"): name for name, _ in module.named_modules()}
    layer, step = "unknown", error.__traceback__
    while step is not None:
        node = step.tb_frame.f_locals.get("node")
        if isinstance(node, fx.Node):
            layer = names.get(node.name, f"{node.name} ({node.op} {node.target})")
        step = step.tb_next
    return layer
