"""The table of stages: for each kind its settings, its version, what runs it and what rehearses it.

Adding a stage: a settings class in recipe.py, a function, a row here. Raise the version whenever a stage's
result changes for equal settings: cached results of older versions are then not used.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from tersor.errors import BadInput, TersorError
from tersor.files import sha256_of
from tersor.models import network
from tersor.models.layers import by_layer, check_patterns, chosen_layers
from tersor.models.network import Network, check_form
from tersor.models.user_code import beside
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.own_stage import Own, is_own, load_stage
from tersor.pipeline.recipe.recipe import (
    Activations,
    Linear,
    Load,
    Recipe,
    Sharing,
    Sparsity,
    Train,
    Tune,
    Vectors,
)
from tersor.pipeline.recipe.settings import StageSettings
from tersor.pipeline.recipe.structure import Structure
from tersor.pipeline.recipe.training import Training
from tersor.pipeline.stages.identity import stage_seed
from tersor.pipeline.training.fit import fit
from tersor.pipeline.weights.linear import quantize_weights
from tersor.pipeline.weights.load_weights import read_weights
from tersor.pipeline.weights.sharing import share_weights
from tersor.pipeline.weights.sparsity import prune_weights
from tersor.pipeline.weights.vectors import round_vectors
from tersor.progress import Tell

if TYPE_CHECKING:
    from tersor.pipeline.weights.sensitivity import Method

S = TypeVar("S", bound=StageSettings)
Result = tuple[Network, dict[str, Any]]
"""The network, and what the stage has to tell: the `details` of its metrics."""


@dataclass(frozen=True)
class Context:
    """What a stage is given besides its network and settings."""

    recipe: Recipe
    data: Data
    seed: int
    checkpoint: Path
    profiles: Path
    progress: Tell
    baseline: Callable[[], Network] | None = None
    """The first stage's result; None in the first stage."""


@dataclass(frozen=True)
class Stage(Generic[S]):
    """A kind of stage.

    settings: the class of its settings.
    version: of its result.
    run: network, settings, context -> the network that it makes, and what it has to tell.
    rehearse: tries on the fresh network what would else fail only after the training; raises BadInput.
    """

    settings: type[S]
    version: int
    run: Callable[[Network, S, Context], Result]
    rehearse: Callable[[Network, S, Context], None] = lambda *_: None


def train(start: Network, settings: Training, context: Context) -> Result:
    """Train or fine-tune; constraints are read off the weights."""
    distilled = getattr(settings, "distill", 0.0) and context.baseline is not None
    return fit(
        start,
        settings,
        context.data,
        seed=context.seed,
        device=context.recipe.device,
        teacher=context.baseline() if distilled and context.baseline else None,
        checkpoint=context.checkpoint,
        progress=context.progress,
    )


def load_weights(start: Network, settings: Load, context: Context) -> Result:
    """Put weights from a file into the fresh network."""
    path = settings.weights
    tensors = read_weights(path)
    try:
        loaded = start.with_tensors(tensors)
        loaded = loaded.with_module(loaded.module())
        check_fits(loaded, context.data)
    except BadInput as error:
        raise BadInput(
            f"the weights do not fit the network: {error.what}",
            got=error.got,
            wanted=error.wanted,
            where=path,
            todo="Check `model` and `arguments` against the file",
        ) from error
    return loaded, {"weights_sha256": sha256_of(path)}


def prune_structure(start: Network, settings: Structure, context: Context) -> Result:
    """Remove channels with NNI and prove the rebuilt network."""
    from tersor.pipeline.structure import stage as structure  # imports NNI's neighbourhood: slow, so late

    images = Images.of(context.data.train.first(10_000), context.data.preprocessing)
    torch.manual_seed(context.seed)  # NNI's propagation draws random inputs
    tell, seed = context.progress, context.seed
    baseline = context.baseline() if context.baseline else start
    counts = structure.counts_for(settings, baseline, context.profiles, tell)
    return structure.prune_channels(start, settings, images, tell, seed=seed, counts=counts)


def prune_small_weights(start: Network, settings: Sparsity, context: Context) -> Result:
    """Set small weights to zero."""
    if settings.sensitivity:
        amounts, points = _by_sensitivity(start, settings, context, "sparsity", SPARSITIES)
        settings = settings.model_copy(update={"method": "level", "per_layer": amounts})
        pruned, details = prune_weights(start, settings)
        return pruned, {**details, "amounts": amounts, "sensitivity": points}
    return prune_weights(start, settings)


def share(start: Network, settings: Sharing, context: Context) -> Result:
    """Replace weights by few shared values."""
    if settings.sensitivity:
        amounts, points = _by_sensitivity(start, settings, context, "sharing", range(1, settings.bits + 1))
        settings = settings.model_copy(
            update={"per_layer": {k: int(v) for k, v in amounts.items()}, "sensitivity": None}
        )
        shared, details = share(start, settings, context)
        return shared, {**details, "amounts": amounts, "sensitivity": points}
    if settings.rate == "auto" or settings.pays == "network":
        from tersor.pipeline.weights.sharing_price import share_at_a_price

        return share_at_a_price(start, settings, context.data, seed=context.seed, progress=context.progress)
    return share_weights(start, settings)


def round_batch_norm_and_biases(start: Network, settings: Vectors, _context: Context) -> Result:
    """Fold BatchNorm's statistics, and round what is left and the biases."""
    return round_vectors(start, settings)


def quantize(start: Network, settings: Linear, context: Context) -> Result:
    """Round weights to a uniform grid."""
    if settings.sensitivity:
        amounts, points = _by_sensitivity(start, settings, context, "bits", range(1, settings.bits + 1))
        settings = settings.model_copy(update={"per_layer": {k: int(v) for k, v in amounts.items()}})
        rounded, details = quantize_weights(start, settings)
        return rounded, {**details, "amounts": amounts, "sensitivity": points}
    if settings.budget is not None:
        from tersor.pipeline.weights.bit_budget import quantize_within

        return quantize_within(start, settings, context.data, context.progress)
    return quantize_weights(start, settings)


def quantize_inputs(start: Network, settings: Activations, context: Context) -> Result:
    """Give each layer's input a grid, calibrated on training images."""
    from tersor.pipeline.weights.activations import calibrate

    images = context.data.preprocessing.apply(context.data.train.images[: settings.images])
    return calibrate(start, settings, images, progress=context.progress)


SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""Levels that `sensitivity: auto` tries; a whole layer is never removed."""


def _by_sensitivity(
    start: Network,
    settings: Sparsity | Sharing | Linear,
    context: Context,
    method: "Method",
    levels: Sequence[float],
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Each chosen layer's own amount, from its sensitivity on the validation split, and all points."""
    from tersor.pipeline.weights.sensitivity import auto_amounts

    layers = chosen_layers(start, settings.layers, settings.exclude, f"stage `{settings.name}`")
    amounts, points = auto_amounts(
        start,
        context.data,
        method=method,
        levels=levels,
        max_drop=settings.max_drop,
        layers=layers,
        progress=context.progress,
        **({"grid": settings} if isinstance(settings, Linear) else {}),  # type: ignore[arg-type]
    )
    fixed_amounts: Mapping[str, float] = by_layer(layers, settings.per_layer, f"stage `{settings.name}`")
    return {**amounts, **fixed_amounts}, [vars(point) for point in points]


def run_own(start: Network, settings: Own, context: Context) -> Result:
    """Call a stage of the user's.

    Raises:
        BadInput: its file or settings are wrong, it fails, or it returns something else than a network.
    """
    function, where = load_stage(settings.stage), f"stage `{settings.name}`, {settings.stage}"
    offered = {
        "network": start,
        "settings": settings.own_settings,
        "data": context.data,
        "seed": context.seed,
        "device": context.recipe.device,
        "baseline": context.baseline() if context.baseline else start,
        "tell": context.progress,
    }
    parameters = inspect.signature(function).parameters
    torch.manual_seed(context.seed)
    try:
        with beside(Path(settings.stage.rpartition(":")[0])):
            returned = function(**{name: value for name, value in offered.items() if name in parameters})
    except TersorError:
        raise
    except (Exception, SystemExit) as error:  # a user's code may fail in any way
        raise BadInput(
            "the stage failed", got=f"{type(error).__name__}: {error}".splitlines()[0], where=where
        ) from error
    after, details = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
    if not isinstance(after, Network) or not isinstance(details, Mapping):
        raise BadInput(
            "the stage did not return a network",
            got=f"a {type(after).__name__}" + ("" if details == {} else f" and a {type(details).__name__}"),
            wanted="a tersor Network, or a Network and a dict",
            where=where,
            todo="End it with `return network.with_tensors(...)` or `network.with_module(...)`",
        )
    check_fits(after, context.data)
    for name, form in after.forms.items():
        if name in after.tensors:
            check_form(name, after.tensors[name], form)
    return after, json.loads(json.dumps(dict(details), default=str))


def rehearse_structure(fresh: Network, settings: Structure, context: Context) -> None:
    """Prune and prove on fresh weights."""
    from tersor.pipeline.structure.stage import try_structure

    context.progress(0.0, "checking that its channels can be pruned")
    try_structure(fresh, settings, context.profiles, context.progress)


def rehearse_patterns(
    fresh: Network, settings: Sparsity | Sharing | Linear | Activations, _context: Context
) -> None:
    """Look whether patterns of layers match any."""
    check_patterns(fresh, settings)


def rehearse_training(fresh: Network, settings: Training, _context: Context) -> None:
    """Look whether there is anything to train, what training sees, and whether the ramp's patterns match."""
    module = fresh.module().train()
    with torch.no_grad():
        given = module(torch.zeros(2, *fresh.input_shape))
    if not isinstance(given, torch.Tensor):
        raise BadInput(
            "the network gives something else in training than in evaluation",
            got=f"a {type(given).__name__}, where evaluation gives logits",
            wanted="one tensor of logits (images, classes)",
            where=f"network {fresh.definition!r}, stage `{settings.name}`",
            todo="Build it without outputs that only training has (aux_logits=False and its like)",
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise BadInput(
            "the network has no parameter that can be trained",
            got="all of them frozen (requires_grad is False), or none at all",
            where=f"stage `{settings.name}`, network {fresh.definition!r}",
            todo="Leave some parameters unfrozen, or start with `stage: load` and leave out the training",
        )
    if settings.ramp is not None:
        check_patterns(fresh, settings.ramp, f"stage `{settings.name}`, ramp")


def rehearse_own(fresh: Network, settings: Own, context: Context) -> None:
    """Call the user's stage on fresh weights and few images, unless its function has `rehearse = False`."""
    if getattr(load_stage(settings.stage), "rehearse", True):
        context.progress(0.0, f"checking that {settings.name} returns a network")
        few = {part: getattr(context.data, part).first(REHEARSED) for part in ("train", "validation", "test")}
        run_own(fresh, settings, replace(context, data=replace(context.data, **few)))


REHEARSED = 64
"""Images of each split on which a user's stage is tried before training."""

STAGES: dict[str, Stage[Any]] = {
    "train": Stage(Train, 1, train, rehearse_training),
    "tune": Stage(Tune, 2, train, rehearse_training),
    "load": Stage(Load, 1, load_weights),
    "structure": Stage(Structure, 5, prune_structure, rehearse_structure),
    "sparsity": Stage(Sparsity, 1, prune_small_weights, rehearse_patterns),
    "sharing": Stage(Sharing, 1, share, rehearse_patterns),
    "linear": Stage(Linear, 2, quantize, rehearse_patterns),
    "activations": Stage(Activations, 1, quantize_inputs, rehearse_patterns),
    "vectors": Stage(Vectors, 1, round_batch_norm_and_biases),
}
OWN_STAGE = Stage(Own, 1, run_own, rehearse_own)
"""The row of every stage of the user's; its version is the digest of its source."""


def row_of(settings: StageSettings) -> Stage[Any]:
    """The row of a stage of a recipe."""
    return OWN_STAGE if is_own(settings.stage) else STAGES[settings.stage]


def fresh_network(recipe: Recipe, data: Data) -> Network:
    """The recipe's network with fresh weights, checked against the data.

    Raises:
        BadInput: the network does not take these images or has another number of outputs.
    """
    torch.manual_seed(stage_seed(recipe, -1))
    start = network.create(recipe.model, recipe.arguments, data.input_shape, data.classes, data.preprocessing)
    check_fits(start, data)
    return start


def check_fits(start: Network, data: Data) -> None:
    """Run two images through.

    Raises:
        BadInput: the network does not take these images or has another number of outputs.
    """
    example = torch.zeros(2, *data.input_shape)
    try:
        with torch.no_grad():
            logits = start.module()(example)
    except Exception as error:  # a user's forward may fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(
            "the network does not take these images",
            got=f"images of {_shape_words(data.input_shape)}; {reason}",
            where=f"network `{start.definition}`, data `{data.name}`",
            todo="Set `arguments` of the network, or `data.image_size` and `data.channels`",
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
    if shape != (2, len(data.classes)):
        raise BadInput(
            "the network's outputs do not fit the classes",
            got=f"outputs of shape {shape} for 2 images",
            wanted=f"(2, {len(data.classes)})",
            where=f"network `{start.definition}`, data `{data.name}`",
        )


def _shape_words(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} channel{'s' if shape[0] > 1 else ''}, {shape[1]}x{shape[2]} pixels"
