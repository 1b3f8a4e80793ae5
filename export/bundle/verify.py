"""Re-check a bundle from its files: hashes, ratio, parity, packed equals plain, accuracy. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tersor.errors import BadInput, ClaimBroken, TersorError, Unavailable
from tersor.export.bundle.folder import SUMS, read_manifest
from tersor.export.bundle.manifest import Artifact, Manifest
from tersor.export.timing import parity
from tersor.export.timing.providers import open_session
from tersor.files import sha256_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKED_SUFFIX = ".tsr"
RATIO_TOLERANCE = 1e-3
"""Relative: the manifest may round its ratio to two or three decimals."""

CLAIM_FACTOR, CLAIM_BOUND_FRACTION = 2.0, 0.01
"""Another processor sums in another order: twice the claimed difference and 1 % of the bound
(0.1 % where the bound is wide) are allowed."""


@dataclass(frozen=True)
class Check:
    """One claim of the manifest: what was found, what was claimed, and whether they agree."""

    name: str
    ok: bool
    got: str
    wanted: str
    detail: str = ""


def verify(folder: Path, *, test: tuple[np.ndarray, np.ndarray] | None = None) -> list[Check]:
    """Check every claim of `folder`'s manifest that its files can prove.

    Args:
        folder: a bundle.
        test: the test split, preprocessed images float32 (N, C, H, W) and labels int64 (N,), to
            re-check accuracy too.

    Returns:
        All checks, those that hold and those that do not; see `raise_if_broken`.

    Raises:
        BadInput: no bundle, a damaged manifest, or test data that do not fit it.
    """
    manifest = read_manifest(folder)
    if test is not None:
        _check_test(manifest, *test)
    entries = manifest.entries
    checks = [*_sums(folder, entries), *(c for e in entries for c in _file_checks(folder, e))]
    checks += [_ratio(folder, manifest), *_packed(folder, entries)]
    expected = _expected(folder, manifest, checks)
    for entry in entries:
        checks += _runs(folder, manifest, entry, expected, test)
    return checks


def raise_if_broken(checks: Sequence[Check]) -> None:
    """Raise if a check does not hold.

    Raises:
        ClaimBroken: which claims are broken, and by how much.
    """
    broken = [c for c in checks if not c.ok]
    if broken:
        told = "; ".join(
            f"{c.name}: got {c.got}, claimed {c.wanted}" + (f" ({c.detail})" if c.detail else "")
            for c in broken
        )
        raise ClaimBroken(
            f"{len(broken)} of {len(checks)} claims do not hold: {told}",
            todo="Do not use these files; get the bundle again from where it was made",
        )


def _check_test(manifest: Manifest, images: np.ndarray, labels: np.ndarray) -> None:
    wanted = manifest.input.image_shape
    if images.shape[1:] != wanted or len(images) != len(labels) or len(images) == 0:
        raise BadInput(
            "the test data do not fit the bundle",
            got=f"{len(labels)} labels and images of shape {images.shape}",
            wanted=f"as many labels as images, (N, {', '.join(map(str, wanted))})",
        )


def _sums(folder: Path, entries: Sequence[Artifact]) -> Iterator[Check]:
    """The lines of SHA256SUMS, and that it lists every file of the manifest."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        yield Check(SUMS, False, str(error), "a readable list of checksums")
        return
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in ["manifest.json", *(entry.file for entry in entries)]:
        if name not in listed:
            yield Check(f"{SUMS}: {name}", False, "not listed", "a checksum")
    for name, digest in listed.items():
        if Path(name).name != name:
            yield Check(f"{SUMS}: {name}", False, "a path", "a plain file name")
            continue
        yield _hash_check(f"{SUMS}: {name}", folder / name, digest)


def _hash_check(name: str, path: Path, wanted: str) -> Check:
    got = sha256_of(path) if path.is_file() else "no such file"
    return Check(name, got == wanted, _short(got), _short(wanted))


def _short(digest: str) -> str:
    return f"{digest[:12]}..." if len(digest) == 64 else digest


def _file_checks(folder: Path, entry: Artifact) -> Iterator[Check]:
    path = folder / entry.file
    size = path.stat().st_size if path.is_file() else None
    yield Check(f"{entry.file}: bytes", size == entry.bytes, str(size), str(entry.bytes))
    yield _hash_check(f"{entry.file}: sha256", path, entry.sha256)


def _ratio(folder: Path, manifest: Manifest) -> Check:
    claimed = manifest.compression_ratio
    packed = [entry.file for entry in manifest.artifacts if entry.file.endswith(PACKED_SUFFIX)]
    files = [folder / manifest.baseline.file, *(folder / name for name in packed[:1])]
    if len(files) < 2 or not all(path.is_file() for path in files):
        return Check("compression_ratio", False, "no packed file or no baseline", str(claimed))
    got = files[0].stat().st_size / max(1, files[1].stat().st_size)
    ok = abs(got - claimed) <= RATIO_TOLERANCE * got
    return Check("compression_ratio", ok, f"{got:.4f}", str(claimed), f"{files[0].name} / {files[1].name}")


def _packed(folder: Path, entries: Sequence[Artifact]) -> Iterator[Check]:
    """Every `x.tsr` unpacks to `x.onnx`, byte for byte."""
    from tersor.export.codec.pack import unpack_bytes

    for entry in entries:
        if not entry.file.endswith(PACKED_SUFFIX):
            continue
        packed = folder / entry.file
        plain = packed.with_suffix(".onnx")
        name = f"unpack({packed.name}) equals {plain.name}"
        try:
            same = unpack_bytes(packed.read_bytes()) == plain.read_bytes()
        except (TersorError, OSError) as error:
            yield Check(name, False, str(error), "the same bytes")
            continue
        yield Check(name, same, "the same bytes" if same else "other bytes", "the same bytes")


def _expected(
    folder: Path, manifest: Manifest, checks: list[Check]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    path = folder / manifest.parity.file
    try:
        return *parity.read_parity(path), parity.read_baseline_logits(path)
    except BadInput as error:
        checks.append(Check(f"{path.name}: readable", False, str(error), "inputs and logits"))
        return None


def _runs(
    folder: Path,
    manifest: Manifest,
    entry: Artifact,
    expected: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None,
    test: tuple[np.ndarray, np.ndarray] | None,
) -> Iterator[Check]:
    """Load one file, compare its outputs with torch's and its accuracy with the claim."""
    try:
        session = _open(folder / entry.file)
        if expected is not None:
            inputs, logits, baseline = expected
            wanted = baseline if entry is manifest.baseline else logits
            if wanted is not None:  # a bundle may leave out the baseline's logits
                yield from _parity(session, manifest, entry, inputs, wanted)
        if test is not None and entry.accuracy_fraction is not None:
            yield _accuracy(session, entry, entry.accuracy_fraction, *test)
    except (BadInput, Unavailable, OSError) as error:
        yield Check(
            f"{entry.file}: runs",
            False,
            getattr(error, "what", str(error)),
            "a model that loads and takes the inputs",
        )


def _open(path: Path) -> "InferenceSession":
    if path.suffix == PACKED_SUFFIX:
        from tersor.export.timing.packed import load

        return load(path)
    return open_session(path, "cpu")


def _parity(
    session: "InferenceSession",
    manifest: Manifest,
    entry: Artifact,
    inputs: np.ndarray,
    logits: np.ndarray,
) -> Iterator[Check]:
    kind, name = entry.kind, entry.file
    own = parity.bound(kind, logits)
    # a manifest may hold itself to a tighter bound, never to a looser one
    stated = manifest.parity.bounds.get(kind, parity.BOUNDS[kind])
    limit = own * min(1.0, stated / parity.BOUNDS[kind])
    got = parity.max_abs_diff(session, inputs, logits)
    yield Check(f"{name}: parity", got <= limit, f"{got:.3g}", f"at most {limit:.3g}", "difference of logits")
    claimed = entry.max_abs_diff
    if claimed is not None:
        slack = CLAIM_BOUND_FRACTION * (0.1 if kind in parity.RELATIVE else 1.0)
        most = CLAIM_FACTOR * claimed + slack * limit
        yield Check(
            f"{name}: max_abs_diff",
            got <= most,
            f"{got:.3g}",
            f"{claimed:.3g}",
            f"at most {most:.3g} allowed",
        )


def _accuracy(
    session: "InferenceSession", entry: Artifact, claimed: float, images: np.ndarray, labels: np.ndarray
) -> Check:
    """One image may fall the other way on another processor; of a quantized file half a percent more."""
    got = parity.accuracy(session, images, labels)
    allowed = 1.5 / len(labels) + (0.005 if entry.kind in parity.RELATIVE else 0.0)
    return Check(
        f"{entry.file}: accuracy_fraction",
        abs(got - claimed) <= allowed,
        f"{got:.4f}",
        f"{claimed:.4f}",
        f"{len(labels)} images",
    )
