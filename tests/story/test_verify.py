"""`tersor verify` on a bundle the story made: true claims hold, every false one is found, without torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from story.bad_files import artifact, claimed, flip, repair_sums
from story.harness import MODEL_FILES, Server, sha256, tersor

BUNDLE = "dist/tiny"

NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'torchvision', 'nni', 'onnxscript'):
            raise ImportError(name + ' is not to be imported')

sys.meta_path.insert(0, Refuse())
"""


def test_verify_holds(server: Server, story) -> None:
    checked = server.run("verify", BUNDLE, cwd=story.folder)
    assert checked.code == 0, checked.stderr
    for words in ("compression_ratio", "unpack(model.tsr) equals model.onnx", "accuracy_fraction", "parity"):
        assert words in checked.stdout


def test_verify_works_without_torch(story, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    checked = tersor("verify", BUNDLE, cwd=story.folder, environment={"PYTHONPATH": str(tmp_path)})
    assert checked.code == 0, checked.stderr
    assert "accuracy_fraction" in checked.stdout, "the data could be read, too"


def test_the_hook_against_torch_works(story, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    refused = tersor("compress", "tiny.yaml", cwd=story.folder, environment={"PYTHONPATH": str(tmp_path)})
    assert refused.code == 4, "and commands that need torch say so"
    assert refused.message.startswith(
        "tersor: a library that this command needs is not installed. Got torch is"
    )
    assert "pip install 'tersor[cpu,compress]'" in refused.message


@pytest.mark.parametrize("name", [*MODEL_FILES, "README.md", "LICENSE", "report.html", "manifest.json"])
def test_one_changed_byte_breaks_a_claim(name: str, server: Server, copy: Path) -> None:
    path = copy / BUNDLE / name
    flip(path, path.stat().st_size // 2)
    checked = server.run("verify", BUNDLE, cwd=copy)
    # a byte inside the manifest may leave it unreadable, which is bad input
    assert checked.code in ((2, 3) if name == "manifest.json" else (3,)), checked.stderr
    assert name in checked.message


def test_a_changed_byte_of_the_checksums_breaks_a_claim(server: Server, copy: Path) -> None:
    flip(copy / BUNDLE / "SHA256SUMS", 5)
    checked = server.run("verify", BUNDLE, cwd=copy)
    assert checked.code == 3
    assert "claims do not hold: SHA256SUMS" in checked.message


def of(name: str, **values: Any) -> Callable[[Path], None]:
    """Claim something else of a file."""
    return claimed(lambda m: artifact(m, name).update(values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (claimed(lambda m: m.update(compression_ratio=m["compression_ratio"] * 1.01)), "compression_ratio"),
        (of("model.onnx", accuracy_fraction=0.99), "model.onnx: accuracy_fraction"),
        (of("model.int8.onnx", accuracy_fraction=0.99), "model.int8.onnx: accuracy_fraction"),
        (of("model.tsr", bytes=5000), "model.tsr: bytes"),
        (of("model.lowbit.onnx", sha256="0" * 64), "model.lowbit.onnx: sha256"),
        (of("model.int8.onnx", max_abs_diff=0.0), "model.int8.onnx: max_abs_diff"),
        (claimed(lambda m: m["baseline"].update(accuracy_fraction=0.5)), "baseline.onnx: accuracy_fraction"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_false_claim_is_found_behind_true_checksums(
    change: Callable[[Path], None], words: str, server: Server, copy: Path
) -> None:
    change(copy / BUNDLE)
    checked = server.run("verify", BUNDLE, cwd=copy)
    assert checked.code == 3, checked.stderr
    assert words in checked.message


def swapped(bundle: Path, name: str, other: str) -> None:
    """Ship another file under a name, with entry and checksums to match."""
    path = bundle / name
    path.write_bytes((bundle / other).read_bytes())
    of(name, bytes=path.stat().st_size, sha256=sha256(path))(bundle)


def test_a_model_that_is_not_the_packed_one_is_found(server: Server, copy: Path) -> None:
    swapped(copy / BUNDLE, "model.onnx", "baseline.onnx")
    checked = server.run("verify", BUNDLE, cwd=copy)
    assert checked.code == 3
    assert "unpack(model.tsr) equals model.onnx" in checked.message
    assert "model.onnx: parity" in checked.message


def test_other_parity_outputs_are_found(server: Server, copy: Path) -> None:
    path = copy / BUNDLE / "parity.npz"
    arrays = dict(np.load(path))
    assert "logits" in arrays, sorted(arrays)
    arrays["logits"] = arrays["logits"] + np.float32(0.01)
    np.savez(path, **arrays)
    repair_sums(copy / BUNDLE)
    checked = server.run("verify", BUNDLE, cwd=copy)
    assert checked.code == 3
    assert "model.onnx: parity" in checked.message


def test_json_of_verify_is_valid(server: Server, story) -> None:
    checks = json.loads(server.run("verify", BUNDLE, "--json", cwd=story.folder).stdout)
    assert all(check["ok"] for check in checks)
    assert len(checks) > 30


def test_what_was_not_checked_is_said(server: Server, copy: Path) -> None:
    """The manifest says MNIST, which is read from a folder that is not given."""
    claimed(lambda m: m["data"]["settings"].update(kind="mnist"))(copy / BUNDLE)
    checked = server.run("verify", BUNDLE, cwd=copy)
    assert checked.code == 0, checked.stderr
    assert "accuracy not checked: give the folder of the data with --data" in checked.stderr
    assert "accuracy_fraction" not in checked.stdout
