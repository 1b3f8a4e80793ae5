"""What a finished stage and a finished run say of themselves: records, read once from their JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from tersor.errors import BadInput
from tersor.files import read_json, write_json

TODO = "Run `tersor compress` first"


class _Record:
    """A frozen dataclass that lies in a JSON file."""

    WHAT = ""

    @classmethod
    def read(cls, path: Path, what: str = "", todo: str = TODO) -> Self:
        """Read and check one.

        Raises:
            BadInput: missing, damaged, or not what this version of tersor writes.
        """
        record = read_json(path, what or cls.WHAT, todo)
        try:
            return cls.of(record)
        except (TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{what or cls.WHAT} is damaged", got=str(error), where=path, todo=todo) from error

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Self:
        """One of plain data; keys that this version does not know are left out.

        Raises:
            TypeError: a key is missing.
        """
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: value for key, value in told.items() if key in known})

    def write(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class StageMetrics(_Record):
    """A stage's metrics.json; the unit is in the name, fractions are of 1, work is for one image.

    name: of the stage in its recipe; stage: its kind.
    seconds: of the stage itself; measuring_seconds: of measuring its result.
    weights, nonzero_weights: of Conv and Linear layers.
    gzip_bytes, zstd_bytes, xz_bytes, packed_bytes: the ONNX file through each coder, ours last.
    entropy_bytes: what an ideal coder of single values would need.
    details: what only this kind of stage has to tell.
    """

    WHAT = "a stage's metrics"

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
    gzip_bytes: int
    zstd_bytes: int
    xz_bytes: int
    packed_bytes: int
    entropy_bytes: int
    details: Mapping[str, Any]
    measuring_seconds: float = 0.0

    @property
    def history(self) -> list[dict[str, Any]]:
        """The training's epochs, one mapping each; none where nothing was trained."""
        return self.details.get("history") or []


@dataclass(frozen=True)
class RunMetrics(_Record):
    """A run's metrics.json, which is there only when the run is finished.

    stages: folders of the stages, in order: `01-train` and so on.
    recipe_sha256: of the settings that decide the network; data_sha256: `Data.digest()`.
    stage_sha256: the last stage's identity.
    onnx_bytes, packed_bytes: of model.onnx and model.tsr.
    sha256: file, relative to the run -> SHA-256.
    """

    WHAT = "the run's metrics"

    stages: tuple[str, ...]
    recipe_sha256: str
    data_sha256: str
    stage_sha256: str
    onnx_bytes: int
    packed_bytes: int
    sha256: Mapping[str, str]
