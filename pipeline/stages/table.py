"""The table of stages: for each kind one function and a version number.

Adding a stage: a settings class in recipe.py, a function, a line here. Raise the version whenever a
stage's result changes for equal settings: cached results of older versions are then not used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tersor.errors import BadInput
from tersor.files import sha256_of
from tersor.models import network
from tersor.models.network import Network
from tersor.pipeline.data.load import Data
from tersor.pipeline.recipe.recipe import Recipe
from tersor.pipeline.training.fit import fit
from tersor.pipeline.weights.linear import quantize_weights
from tersor.pipeline.weights.load_weights import read_weights
from tersor.pipeline.weights.sharing import share_weights
from tersor.pipeline.weights.sparsity import prune_weights
from tersor.pipeline.weights.vectors import round_vectors
from tersor.progress import Tell

Result = tuple[Network, dict[str, Any]]


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


def train(start: Network, settings: Any, context: Context) -> Result:
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


def load_weights(start: Network, settings: Any, context: Context) -> Result:
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


def prune_structure(start: Network, settings: Any, context: Context) -> Result:
    """Remove channels with NNI and prove the rebuilt network."""
    from tersor.pipeline.structure import stage as structure  # imports NNI's neighbourhood: slow, so late

    some, preprocess = context.data.train, context.data.preprocessing.apply
    images = structure.Images(preprocess(some.images[:10_000]), some.labels[:10_000])
    torch.manual_seed(context.seed)  # NNI's propagation draws random inputs
    tell, seed = context.progress, context.seed
    baseline = context.baseline() if context.baseline else start
    counts = structure.counts_for(settings, start, baseline, context.profiles, tell)
    return structure.prune_channels(start, settings, images, tell, seed=seed, counts=counts)


def prune_small_weights(start: Network, settings: Any, context: Context) -> Result:
    """Set small weights to zero."""
    if settings.sensitivity:
        amounts, points = _by_sensitivity(start, settings, context, "sparsity", SPARSITIES)
        settings = settings.model_copy(update={"method": "level", "per_layer": amounts})
        pruned, details = prune_weights(start, settings)
        return pruned, {**details, "amounts": amounts, "sensitivity": points}
    return prune_weights(start, settings)


def share(start: Network, settings: Any, context: Context) -> Result:
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


def round_batch_norm_and_biases(start: Network, settings: Any, _context: Context) -> Result:
    """Fold BatchNorm's statistics, and round what is left and the biases."""
    return round_vectors(start, settings)


def quantize(start: Network, settings: Any, context: Context) -> Result:
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


def quantize_inputs(start: Network, settings: Any, context: Context) -> Result:
    """Give each layer's input a grid, calibrated on training images."""
    from tersor.pipeline.weights.activations import calibrate

    images = context.data.preprocessing.apply(context.data.train.images[: settings.images])
    return calibrate(start, settings, images, progress=context.progress)


SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""Levels that `sensitivity: auto` tries; a whole layer is never removed."""


def _by_sensitivity(
    start: Network, settings: Any, context: Context, method: Any, levels: Sequence[float]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Each chosen layer's own amount, from its sensitivity on the validation split, and all points."""
    from tersor.models.layers import by_layer, chosen_layers
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
        **({"grid": settings} if method == "bits" else {}),
    )
    own = by_layer(layers, settings.per_layer, f"stage `{settings.name}`")
    return amounts | own, [vars(point) for point in points]


STAGES: dict[str, tuple[int, Callable[[Network, Any, Context], Result]]] = {
    "train": (1, train),
    "tune": (2, train),
    "load": (1, load_weights),
    "structure": (2, prune_structure),
    "sparsity": (1, prune_small_weights),
    "sharing": (1, share),
    "linear": (2, quantize),
    "activations": (1, quantize_inputs),
    "vectors": (1, round_batch_norm_and_biases),
}
"""kind -> (version of its result, function)."""


def fresh_network(recipe: Recipe, data: Data) -> Network:
    """The recipe's network with fresh weights, checked against the data.

    Raises:
        BadInput: the network does not take these images or has another number of outputs.
    """
    torch.manual_seed(_seed(recipe.seed, 0))
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


def stage_seed(recipe: Recipe, index: int) -> int:
    """The seed of a stage: its own for each index."""
    return _seed(recipe.seed, index + 1)


def _seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint32)[0])
