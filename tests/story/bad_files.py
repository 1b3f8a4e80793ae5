"""Packed files and bundles that are damaged, and claims that do not hold."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from story.cases import Case, Prepare, deploy
from story.harness import sha256

BUNDLE = "dist/tiny"


def flip(path: Path, position: int) -> None:
    """Change one bit of a byte; negative positions count from the end."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def repair_sums(bundle: Path) -> None:
    """Make SHA256SUMS true again, as somebody who changes a claim would."""
    names = [line.partition("  ")[2] for line in (bundle / "SHA256SUMS").read_text().splitlines()]
    (bundle / "SHA256SUMS").write_text("".join(f"{sha256(bundle / n)}  {n}\n" for n in names))


def tampered(change: Callable[[Path], Any], *command: object) -> Prepare:
    """`change` the bundle, then run the command (verify unless given)."""

    def prepare(folder: Path) -> Sequence[object]:
        change(folder / BUNDLE)
        return command or ("verify", BUNDLE)

    return prepare


def claimed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the manifest's content, and SHA256SUMS with it."""

    def write(bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        change(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        repair_sums(bundle)

    return write


def cut(path: Path, size: int) -> None:
    """Keep the first bytes of a file."""
    path.write_bytes(path.read_bytes()[:size])


def artifact(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """A file's entry in the manifest."""
    return next(a for a in manifest["artifacts"] if a["file"] == name)


UNPACK = ("unpack", f"{BUNDLE}/model.tsr", "out.onnx")

CASES = [
    Case(
        "unpack: truncated .tsr",
        2,
        ("the packed file is damaged", "SHA-256", "model.tsr", "Get the file again"),
        tampered(lambda b: cut(b / "model.tsr", 3000), *UNPACK),
        must_not_exist="out.onnx",
    ),
    Case(
        "unpack: .tsr cut inside its header",
        2,
        ("ends too early", "Got 20 bytes", "model.tsr"),
        tampered(lambda b: cut(b / "model.tsr", 20), *UNPACK),
        must_not_exist="out.onnx",
    ),
    Case(
        "unpack: one bit of a .tsr changed",
        2,
        ("the packed file is damaged", "SHA-256", "model.tsr", "Get the file again"),
        tampered(lambda b: flip(b / "model.tsr", 2000), *UNPACK),
        must_not_exist="out.onnx",
    ),
    Case(
        "unpack: .tsr of a later version",
        2,
        ("unknown version of the packed format", "Wanted 1", "model.tsr"),
        tampered(lambda b: (b / "model.tsr").write_bytes(b"TSR\x07" + bytes(100)), *UNPACK),
        must_not_exist="out.onnx",
    ),
    Case(
        "unpack: no .tsr",
        2,
        ("this is no packed file", "Wanted", "baseline.onnx"),
        lambda _: ["unpack", f"{BUNDLE}/baseline.onnx", "out.onnx"],
        must_not_exist="out.onnx",
    ),
    Case(
        "unpack: an empty file",
        2,
        ("this is no packed file", "model.tsr"),
        tampered(lambda b: cut(b / "model.tsr", 0), *UNPACK),
        must_not_exist="out.onnx",
    ),
    Case(
        "unpack: no such file",
        2,
        ("cannot read the file", "No such file", "Where: nowhere.tsr"),
        lambda _: ["unpack", "nowhere.tsr", "out.onnx"],
    ),
    Case(
        "unpack over an earlier file: it stays",
        2,
        ("the packed file is damaged",),
        tampered(
            lambda b: flip(b / "model.tsr", -1), "unpack", f"{BUNDLE}/model.tsr", f"{BUNDLE}/model.onnx"
        ),
    ),
    Case(
        "inspect: one bit of a .tsr changed",
        2,
        ("the packed file is damaged", "model.tsr"),
        tampered(lambda b: flip(b / "model.tsr", 100), "inspect", f"{BUNDLE}/model.tsr"),
    ),
    Case(
        "pack: no such file",
        2,
        ("cannot read the file", "Where: nowhere.onnx"),
        lambda _: ["pack", "nowhere.onnx", "out.tsr"],
        must_not_exist="out.tsr",
    ),
    Case(
        "benchmark: no such file",
        2,
        ("nowhere.onnx",),
        lambda _: ["benchmark", f"{BUNDLE}/baseline.onnx", "nowhere.onnx", "--seconds", "0.01"],
    ),
    Case(
        "benchmark: no ONNX file",
        2,
        ("tiny.yaml", "ONNX"),
        lambda _: ["benchmark", f"{BUNDLE}/baseline.onnx", "tiny.yaml", "--seconds", "0.01"],
    ),
    Case(
        "verify: no bundle there",
        2,
        ("there is no bundle here", "no manifest.json", "Where: runs", "Run deploy first"),
        lambda _: ["verify", "runs"],
    ),
    Case(
        "verify: manifest is no JSON",
        2,
        ("the manifest cannot be read", f"{BUNDLE}/manifest.json"),
        tampered(lambda b: cut(b / "manifest.json", 500)),
    ),
    Case(
        "verify: manifest without a part",
        2,
        ("the manifest is incomplete", "no compression_ratio", f"{BUNDLE}/manifest.json"),
        tampered(claimed(lambda m: m.pop("compression_ratio"))),
    ),
    Case(
        "verify: manifest names a file outside",
        2,
        ("the manifest is damaged", "../../tiny.yaml", "plain file names", f"{BUNDLE}/manifest.json"),
        tampered(claimed(lambda m: artifact(m, "model.onnx").update(file="../../tiny.yaml"))),
    ),
    Case(
        "verify: manifest with a wrong type",
        2,
        ("the manifest is damaged", BUNDLE),
        tampered(claimed(lambda m: m.update(artifacts=7))),
    ),
    Case(
        "verify: manifest without preprocessing",
        2,
        ("the manifest is damaged", "preprocessing"),
        tampered(claimed(lambda m: m.pop("preprocessing"))),
    ),
    Case(
        "verify: manifest with impossible data settings",
        2,
        ("the manifest is damaged", "data"),
        tampered(claimed(lambda m: m["data"]["settings"].update(colour="red"))),
    ),
    Case(
        "report: damaged manifest",
        2,
        ("the manifest is incomplete", "no artifacts"),
        tampered(claimed(lambda m: m.pop("artifacts")), "report", BUNDLE),
    ),
    Case(
        "verify: a file is gone",
        3,
        ("claims do not hold", "model.int8.onnx", "no such file", "Do not use these files"),
        tampered(lambda b: (b / "model.int8.onnx").unlink()),
    ),
    Case(
        "verify: a claim of more accuracy",
        3,
        ("model.tsr: accuracy_fraction", "claimed 0.9999", "Do not use these files"),
        tampered(claimed(lambda m: artifact(m, "model.tsr").update(accuracy_fraction=0.9999))),
    ),
    Case(
        "verify: a claim of a better ratio",
        3,
        ("compression_ratio", "claimed 99.0", "Do not use these files"),
        tampered(claimed(lambda m: m.update(compression_ratio=99.0))),
    ),
    Case(
        "deploy: a damaged stage of the run",
        2,
        ("damaged", "runs/tiny/07-tune-sharing/metrics.json", "Run `tersor compress` first"),
        lambda f: [cut(f / "runs/tiny/07-tune-sharing/metrics.json", 10), deploy()(f)][1],
    ),
    Case(
        "deploy: a damaged network of the run",
        2,
        ("a file of the run is damaged", "runs/tiny/network.safetensors", "Run `tersor compress`"),
        lambda f: [cut(f / "runs/tiny/network.safetensors", 1000), deploy()(f)][1],
    ),
    Case(
        "deploy: one bit of the run's model changed",
        2,
        ("a file of the run is damaged", "Where: runs/tiny/model.onnx", "Run `tersor compress`"),
        lambda f: [flip(f / "runs/tiny/model.onnx", 30_000), deploy()(f)][1],
    ),
]
