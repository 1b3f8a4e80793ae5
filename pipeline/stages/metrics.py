"""What a finished stage and a finished run say of themselves: records, read once from their JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tersor.records import Record

TODO = "Run `tersor compress` first"


@dataclass(frozen=True)
class StageMetrics(Record):
    """A stage's metrics.json; the unit is in the name, fractions are of 1, work is for one image.

    name: of the stage in its recipe; stage: its kind.
    seconds: of the stage itself; measuring_seconds: of measuring its result, the ledger included.
    weights, nonzero_weights: of Conv and Linear layers.
    packed_bytes: the ONNX file through our coder.
    gzip_bytes, zstd_bytes, xz_bytes: through the others (`Ledger`); None where that was not asked for.
    entropy_bytes: what an ideal coder of single values would need.
    details: what only this kind of stage has to tell.
    """

    WHAT: ClassVar[str] = "a stage's metrics"
    TODO: ClassVar[str] = TODO

    name: str
    stage: str
    seconds: float
    validation_accuracy_fraction: float
    validation_top5_accuracy_fraction: float
    validation_loss: float
    parameters: int
    weights: int
    nonzero_weights: int
    macs: int
    effective_macs: int
    onnx_bytes: int
    packed_bytes: int
    entropy_bytes: int
    details: Mapping[str, Any]
    measuring_seconds: float = 0.0
    gzip_bytes: int | None = None
    zstd_bytes: int | None = None
    xz_bytes: int | None = None

    @property
    def has_ledger(self) -> bool:
        """Whether other compressors have been asked."""
        return None not in (self.gzip_bytes, self.zstd_bytes, self.xz_bytes)

    def with_ledger(self, ledger: "Ledger") -> "StageMetrics":
        """The same with what other compressors made of the file, and the time that took."""
        return replace(
            self,
            gzip_bytes=ledger.gzip_bytes,
            zstd_bytes=ledger.zstd_bytes,
            xz_bytes=ledger.xz_bytes,
            measuring_seconds=round(self.measuring_seconds + ledger.seconds, 3),
        )

    @property
    def history(self) -> list[dict[str, Any]]:
        """The training's epochs, one mapping each; none where nothing was trained."""
        return self.details.get("history") or []


@dataclass(frozen=True)
class Ledger(Record):
    """What other compressors make of a stage's ONNX file: ledger.json in the cache, where it was asked for.

    seconds: that they took together, two at a time.
    """

    WHAT: ClassVar[str] = "a stage's ledger"

    gzip_bytes: int
    zstd_bytes: int
    xz_bytes: int
    seconds: float


@dataclass(frozen=True)
class RunMetrics(Record):
    """A run's metrics.json, which is there only when the run is finished.

    stages: folders of the stages, in order: `01-train` and so on.
    recipe_sha256: of the settings that decide the network; data_sha256: `Data.digest()`.
    stage_sha256: the last stage's identity.
    onnx_bytes, packed_bytes: of model.onnx and model.tsr.
    sha256: file, relative to the run -> SHA-256.
    """

    WHAT: ClassVar[str] = "the run's metrics"
    TODO: ClassVar[str] = TODO

    stages: tuple[str, ...]
    recipe_sha256: str
    data_sha256: str
    stage_sha256: str
    onnx_bytes: int
    packed_bytes: int
    sha256: Mapping[str, str]
