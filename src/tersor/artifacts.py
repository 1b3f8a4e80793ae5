"""What `import tersor` offers for files that ship: read, checked, timed and run without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tersor.export.bundle.folder import read_manifest
from tersor.export.bundle.manifest import Manifest
from tersor.export.bundle.verify import Check, raise_if_broken
from tersor.export.codec import pack as packing
from tersor.export.codec.form_choice import Coder
from tersor.export.codec.ledger import LedgerRow
from tersor.export.codec.ledger import inspect as ledger_of
from tersor.export.codec.pack import PackReport
from tersor.export.timing.benchmark import time_files
from tersor.export.timing.latency import LatencyRow
from tersor.export.timing.packed import load as load_packed
from tersor.export.timing.providers import open_session
from tersor.pipeline.data.load import Data
from tersor.pipeline.shipping.recheck import recheck

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

AnyPath = str | Path


@dataclass(frozen=True)
class Bundle:
    """A folder that ships: what `deploy` made, or one that came from elsewhere."""

    path: Path

    @property
    def manifest(self) -> Manifest:
        """What it claims.

        Raises:
            BadInput: no bundle there, or a damaged one.
        """
        return read_manifest(self.path)

    def verify(self, data: AnyPath | Data | None = None) -> list[Check]:
        """Re-check every claim from the files; see `verify`."""
        return verify(self.path, data)

    def load(self, file: str = "model.tsr") -> "InferenceSession":
        """An ONNX Runtime session on one of its files."""
        return load(self.path / file)


def verify(bundle: AnyPath | Bundle, data: AnyPath | Data | None = None) -> list[Check]:
    """Re-check a bundle from its files: hashes, ratio, parity, and accuracy where the data are at hand.

    Raises:
        BadInput: no bundle, or other data than those of the bundle. ClaimBroken: a claim does not hold.
    """
    folder = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    checks = recheck(folder, data if isinstance(data, Data) else None if data is None else Path(data))
    raise_if_broken(checks)
    return checks


def pack(onnx: AnyPath, tsr: AnyPath, *, coder: Coder = "huffman") -> PackReport:
    """Pack any ONNX file, losslessly.

    Raises:
        BadInput: no such file. Unavailable: the packed one cannot be written.
    """
    return packing.pack(Path(onnx), Path(tsr), coder=coder)


def unpack(tsr: AnyPath, onnx: AnyPath) -> Path:
    """Give back the packed file, byte for byte.

    Raises:
        BadInput: no such file. FormatError: it is damaged. Unavailable: the file cannot be written.
    """
    packing.unpack(Path(tsr), Path(onnx))
    return Path(onnx)


def load(path: AnyPath) -> "InferenceSession":
    """An ONNX Runtime session on the CPU, of a .tsr or .onnx file, or of a bundle's packed model.

    Raises:
        BadInput, FormatError: no such file, or a damaged one. Unavailable: onnxruntime is not installed.
    """
    file = Path(path) / "model.tsr" if Path(path).is_dir() else Path(path)
    return load_packed(file) if file.suffix == ".tsr" else open_session(file, "cpu")


def inspect(tsr: AnyPath) -> list[LedgerRow]:
    """What every byte of a packed file is spent on.

    Raises:
        BadInput: no such file. FormatError: it is damaged.
    """
    return ledger_of(Path(tsr))


def benchmark(
    models: Sequence[AnyPath],
    *,
    target: Literal["cpu", "cuda"] = "cpu",
    batch: Sequence[int] | None = None,
    threads: Sequence[int] = (1,),
    seconds: float = 2.0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
) -> list[LatencyRow]:
    """Time .onnx and .tsr files against the first one, alone and in turn, in this process.

    Args:
        models: files; the first is what the speed-ups divide. The same file twice shows the clock's noise.
        target: where.
        batch: images per run; None: 1 and 64, or the files' where it is fixed.
        threads: intra-op threads.
        seconds: spent on each file at each batch and number of threads, at least.
        shapes: input name -> its shape, where it has free dimensions beside the batch.
        force: keep what was timed on a busy machine; the rows say so in `busy`.

    Raises:
        BadInput: a file is missing or damaged. Unavailable: the target is not there, or the machine was busy.
    """
    paths = [Path(model) for model in models]
    timed = time_files(
        paths, target, batches=batch, threads=threads, seconds=seconds, shapes=shapes, force=force
    )
    return list(timed.needed())
