"""Sharing: near-optimal, deterministic clusters; zeros outside."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import make

from tersor.errors import BadInput
from tersor.models.network import check_form
from tersor.pipeline.recipe.recipe import Sharing, Sparsity
from tersor.pipeline.weights.sharing import kmeans_1d, nearest, share_weights
from tersor.pipeline.weights.sparsity import prune_weights


def error(values: np.ndarray, centroids: np.ndarray) -> float:
    return float(((nearest(values, centroids).astype(np.float64) - values) ** 2).sum())


def best_error(values: np.ndarray, count: int) -> float:
    """The optimum by trying every cut."""
    ordered = np.sort(values).astype(np.float64)
    cuts = itertools.combinations(range(1, ordered.size), count - 1)
    return min(sum(((p - p.mean()) ** 2).sum() for p in np.split(ordered, cut)) for cut in cuts)


@given(st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=10, unique=True), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_small_sets_reach_the_optimum(values: list[float], count: int) -> None:
    array = np.array(values, dtype=np.float32)
    assert error(array, kmeans_1d(array, count)) <= best_error(array, count) * (1 + 1e-5) + 1e-9


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_centroids_are_sorted_distinct_and_never_too_many(seed: int, count: int, size: int) -> None:
    values = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    centroids = kmeans_1d(values, count)
    assert 1 <= centroids.size <= count
    assert (np.diff(centroids) > 0).all()
    assert centroids.dtype == np.float32


def test_more_centroids_never_hurt() -> None:
    values = np.random.default_rng(1).normal(size=5000).astype(np.float32)
    errors = [error(values, kmeans_1d(values, k)) for k in (2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)


def test_coarse_bins_lose_under_a_hundredth_of_a_percent() -> None:
    values = np.random.default_rng(2).laplace(size=60_000).astype(np.float32)
    exact = error(values, kmeans_1d(values, 16, bins=60_000))
    assert error(values, kmeans_1d(values, 16)) <= 1.0001 * exact


def test_few_distinct_values_are_kept_exactly() -> None:
    values = np.array([0.5, -1.0, 0.5, 2.0], np.float32)
    assert kmeans_1d(values, 3).tolist() == [-1.0, 0.5, 2.0]


def test_shared_network_keeps_zeros_and_counts() -> None:
    sparse, _ = prune_weights(make(), Sparsity(stage="sparsity", method="level", amount=0.5))
    shared, details = share_weights(sparse, Sharing(stage="sharing", bits=3))
    for name, form in shared.forms.items():
        check_form(name, shared.tensors[name], form)
        assert form.kind == "shared"
        assert torch.equal(shared.tensors[name] == 0, sparse.tensors[name] == 0)
        assert shared.tensors[name].unique().numel() <= 9
    assert details["layers"][0]["rms_error"] > 0


def test_values_limits_the_codebook_below_two_to_the_bits() -> None:
    shared, _ = share_weights(make(), Sharing(stage="sharing", bits=4, values=5))
    assert shared.tensors["fc1.weight"].unique().numel() == 5


def test_same_weights_same_codebook() -> None:
    settings_ = Sharing(stage="sharing", bits=4)
    assert share_weights(make(), settings_)[0].digest() == share_weights(make(), settings_)[0].digest()


def test_all_zero_layer_stays_zero() -> None:
    net = make()
    net = net.with_tensors({**net.tensors, "fc2.weight": torch.zeros(10, 128)})
    sparse, _ = prune_weights(net, Sparsity(stage="sparsity", method="level", amount=0.5))
    assert not share_weights(sparse, Sharing(stage="sharing"))[0].tensors["fc2.weight"].any()


def test_nan_weight_is_told_with_its_tensor() -> None:
    net = make()
    bad = torch.full((10, 128), float("nan"))
    with pytest.raises(BadInput, match="NaN or infinite.*fc2.weight"):
        share_weights(net.with_tensors({**net.tensors, "fc2.weight": bad}), Sharing(stage="sharing"))
