"""Trials and stages with made-up numbers, for tests of what is made of them."""

from dataclasses import replace
from typing import Any

from tersor.pipeline.stages.metrics import StageMetrics
from tersor.pipeline.study.trial import Trial


def stage(name: str = "train", **changes: Any) -> StageMetrics:
    """A stage's metrics."""
    plain = StageMetrics(
        name=name,
        stage=name,
        seconds=2.0,
        validation_accuracy_fraction=0.9,
        validation_top5_accuracy_fraction=0.99,
        validation_loss=0.3,
        parameters=110,
        weights=100,
        nonzero_weights=25,
        macs=1000,
        effective_macs=250,
        onnx_bytes=600,
        gzip_bytes=500,
        zstd_bytes=400,
        xz_bytes=300,
        packed_bytes=200,
        entropy_bytes=100,
        details={},
    )
    return replace(plain, **changes)


def trial(**changes: Any) -> Trial:
    """A trial that ended well, of which nothing else is known."""
    plain = Trial(trial=0, key="k", settings={}, seed=0, state="finished", error=None, metrics={}, stages=())
    return replace(plain, **changes)
