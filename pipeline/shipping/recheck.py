"""`tersor verify`: hand the bundle, and the test split where it is at hand, to `verify`. No torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.errors import BadInput
from tersor.export.bundle.folder import read_manifest
from tersor.export.bundle.verify import Check, verify
from tersor.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from tersor.pipeline.data.load import Data


def recheck(bundle: Path, data: "Path | Data | None") -> list[Check]:
    """Check a bundle; accuracy too when the data are given (or where they lie), or need no path (digits).

    Raises:
        BadInput: no bundle, a damaged manifest, or data that are not those of the bundle.
    """
    manifest = read_manifest(bundle)
    found = bundle_data(manifest, data)
    if found is None:
        return verify(bundle)
    pre = manifest["preprocessing"]
    preprocessing = Preprocessing(pre["divisor"], tuple(pre["mean"]), tuple(pre["std"]))
    return verify(bundle, test=(preprocessing.apply(found.test.images), found.test.labels))


def bundle_data(manifest: dict[str, Any], given: "Path | Data | None") -> "Data | None":
    """The data a bundle was made from; None when they need a path and none is given.

    Raises:
        BadInput: a damaged manifest, or other data than those of the bundle.
    """
    from tersor.pipeline.data.load import data_as_told

    try:
        told, pre = manifest["data"], manifest["preprocessing"]
        Preprocessing(pre["divisor"], tuple(pre["mean"]), tuple(pre["std"]))  # what verify will need
        data = data_as_told(told, given) if given is None or isinstance(given, Path) else given
    except ImportError:
        if given is None:
            return None  # the data were not asked for, and what reads them is not installed
        raise
    except (KeyError, TypeError) as error:
        raise BadInput(
            "the manifest is damaged",
            got=f"{type(error).__name__}: {error}",
            where="its data and preprocessing",
            todo="Get the bundle again",
        ) from error
    if data is not None and data.digest() != told["sha256"]:
        raise BadInput(
            "these are not the data of the bundle",
            got=f"SHA-256 {data.digest()}",
            wanted=f"SHA-256 {told['sha256']}",
            where=given if isinstance(given, Path) else data.name,
        )
    return data
