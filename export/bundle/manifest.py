"""The manifest: all that is claimed of a bundle, as records. Whoever wrote it, what is read has the types."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from tersor.errors import BadInput
from tersor.export.timing.benchmark import Conditions
from tersor.export.timing.latency import LatencyRow
from tersor.models.preprocessing import Preprocessing
from tersor.records import Record

T = TypeVar("T")

REQUIRED = ("name", "baseline", "artifacts", "compression_ratio", "input", "parity")
"""Keys without which nothing can be verified."""
LONGEST_NAME = 255
"""Bytes of a file's name, on every common file system."""
AGAIN = "Get the bundle again"


@dataclass(frozen=True)
class _Claim(Record):
    """A part of the manifest. rest: keys of a later version, which are kept when a report is written anew."""

    TODO: ClassVar[str] = AGAIN
    rest: Mapping[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Artifact(_Claim):
    """A file of the bundle.

    file: its plain name. kind: of `parity.BOUNDS`.
    accuracy_fraction: on the test split; max_abs_diff: from PyTorch's logits. None: not measured.
    """

    WANTED: ClassVar[str | None] = "plain file names, each with kind, bytes and sha256"

    file: str
    kind: str
    bytes: int
    sha256: str
    accuracy_fraction: float | None = None
    max_abs_diff: float | None = None
    latency: tuple[LatencyRow, ...] = ()
    notes: str | None = None

    @property
    def difference(self) -> float:
        """`max_abs_diff`, infinite where it was not measured."""
        return math.inf if self.max_abs_diff is None else self.max_abs_diff


@dataclass(frozen=True)
class Gate(_Claim):
    """A limit, what was got (None: nothing was measured), whether it holds, and the file that decided."""

    gate: str
    limit: float
    got: float | None
    ok: bool
    file: str


@dataclass(frozen=True)
class Recommended(_Claim):
    """The file to take on a target for a batch size.

    speedup: over the baseline, on the device where that was timed; None where nothing was measured. With its
        95 % interval.
    target: a key of `providers.TARGETS`; None in bundles of old, where the key of the mapping says it.
    """

    file: str
    batch: int
    speedup: float | None
    why: str
    target: str | None = None
    threads: int | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None


@dataclass(frozen=True)
class NotMeasured(_Claim):
    """A target or file that there is no figure of, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Input(_Claim):
    """What every file takes. shape: `batch`, channels, height, width."""

    name: str
    shape: tuple[str | int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if len(self.shape) != 4 or not all(isinstance(n, int) and n > 0 for n in self.shape[1:]):
            raise ValueError("a shape of batch, channels, height, width")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.shape
        return int(channels), int(height), int(width)


@dataclass(frozen=True)
class DataEntry(_Claim):
    """What is needed to cut the same test split from the same data.

    sha256: `Data.digest()`. images: how many, by split. settings: the recipe's, without their path.
    """

    name: str
    seed: int
    sha256: str
    images: Mapping[str, int]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Parity(_Claim):
    """file: inputs and PyTorch's logits. bounds: kind -> what `parity.BOUNDS` was."""

    file: str
    bounds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Int8(_Claim):
    """How the int8 file came about: what `make_int8` found.

    floor: least validation accuracy asked for; holds: whether it was reached.
    quantized, kept_float, kept_integers: layers. method: of calibration.
    tried: method -> validation accuracy; helps: layer -> the accuracy with that one in float.
    """

    floor: float | None
    fp32_validation_accuracy_fraction: float
    reduce_range: bool
    calibration_images: int
    quantized: tuple[str, ...]
    kept_float: tuple[str, ...]
    kept_integers: tuple[str, ...]
    method: str
    validation_accuracy_fraction: float
    holds: bool
    helps: Mapping[str, float]
    tried: Mapping[str, float]


@dataclass(frozen=True)
class Confusion(_Claim):
    """Counts on the test split, of the baseline and of the packed model: rows true, columns predicted."""

    classes: tuple[str, ...]
    baseline: tuple[tuple[int, ...], ...]
    model: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        count = len(self.classes)
        for matrix in (self.baseline, self.model):
            if [len(row) for row in matrix] != [count] * count or any(min(row) < 0 for row in matrix):
                raise ValueError("counts, a row and a column for each class")


@dataclass(frozen=True, kw_only=True)
class Manifest(_Claim):
    """All claims of a bundle. What is None is not told; `read_manifest` gives the `REQUIRED` keys at least.

    recipe: resolved, without this machine's paths.
    compression_ratio: bytes of the baseline over those of the packed file.
    recommended: target -> file, at the first batch size. recommendations: for each target and batch size.
    clock: what was seen of the machine while each setting was timed. cost: of `baseline` and `model`.
    stages: `StageMetrics` without learning curves. advice: sentences.
    """

    WHAT: ClassVar[str] = "the manifest"
    UNTRUSTED: ClassVar[bool] = True

    name: str
    tersor_version: str | None = None
    created_by: str | None = None
    licence: str | None = None
    recipe: Mapping[str, Any] | None = None
    data: DataEntry | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    input: Input
    environment: Mapping[str, Any] | None = None
    compression_ratio: float
    recommended: Mapping[str, Recommended] | None = None
    recommendations: tuple[Recommended, ...] | None = None
    clock: tuple[Conditions, ...] | None = None
    baseline: Artifact
    artifacts: tuple[Artifact, ...]
    not_measured: tuple[NotMeasured, ...] | None = None
    gates: tuple[Gate, ...] | None = None
    parity: Parity
    cost: Mapping[str, Mapping[str, int]] | None = None
    stages: tuple[Mapping[str, Any], ...] | None = None
    int8: Int8 | None = None
    advice: tuple[str, ...] | None = None
    confusion: Confusion | None = None

    @classmethod
    def of(cls, told: Any, what: str = "", where: object = None, todo: str = "") -> Self:
        """A manifest of plain data, its claims checked as far as that is possible without the files.

        Raises:
            BadInput: a key is missing or has the wrong type, or a file is named that is outside the bundle.
        """
        missing = [key for key in REQUIRED if not isinstance(told, Mapping) or key not in told]
        if missing:
            raise BadInput(
                "the manifest is incomplete",
                got=f"no {', '.join(missing)}",
                wanted="a tersor manifest",
                where=where,
            )
        manifest = super().of(told, what, where, todo)
        names = [*(entry.file for entry in manifest.entries), manifest.parity.file]
        if not all(map(_is_plain_name, names)):
            raise BadInput(
                "the manifest is damaged",
                got=f"entries for {', '.join(names)}",
                wanted=Artifact.WANTED,
                where=where,
            )
        pre, channels = manifest.preprocessing, manifest.input.image_shape[0]
        if pre is not None and not all(len(numbers) in (1, channels) for numbers in (pre.mean, pre.std)):
            raise BadInput(
                "the manifest is damaged",
                got=f"{len(pre.mean)} means and {len(pre.std)} standard deviations",
                wanted=f"{channels} of each, the channels of the input",
                where=f"{where}, preprocessing" if where else "preprocessing",
                todo=AGAIN,
            )
        return manifest

    @property
    def entries(self) -> tuple[Artifact, ...]:
        """All model files, the baseline first."""
        return self.baseline, *self.artifacts


def needed(value: T | None, key: str, where: object = "the manifest") -> T:
    """A claim that a manifest may lack, and that is needed now.

    Raises:
        BadInput: it is not told.
    """
    if value is None:
        raise BadInput("the manifest is damaged", got=f"no {key}", where=f"{where}, {key}", todo=AGAIN)
    return value


def _is_plain_name(name: str) -> bool:
    plain = Path(name).name == name and name not in ("", "..") and "\0" not in name
    return plain and len(name.encode(errors="replace")) <= LONGEST_NAME
