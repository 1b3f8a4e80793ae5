"""A bundle is whole or not there, its checksums agree with sha256sum, its card tells measured numbers."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace

import pytest

from tersor.errors import BadInput, Unavailable
from tersor.export.bundle import folder as bundle
from tersor.export.bundle.folder import file_entry, model_card, read_manifest, write_bundle
from tersor.export.bundle.manifest import Artifact, Manifest
from tersor.export.timing.latency import LatencyRow

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def row(speedup, *, distinguishable=True, provider=CPU, batch=1, spread=0.01):
    p50 = 1 / speedup
    return LatencyRow(
        provider,
        batch,
        threads=1,
        p50_ms=p50,
        p90_ms=1.2 * p50,
        p99_ms=1.5 * p50,
        speedup=speedup,
        p50_low_ms=0.99 * p50,
        p50_high_ms=1.01 * p50,
        speedup_low=speedup - spread,
        speedup_high=speedup + spread,
        distinguishable=distinguishable,
        throughput_per_s=1e3 * batch / p50,
        rounds=30,
    )


def entry(file, kind, *latency, size=100, diff=1e-6):
    return Artifact(file, kind, size, "0" * 64, accuracy_fraction=0.9722, max_abs_diff=diff, latency=latency)


def manifest(**changes):
    return Manifest.of(plain(**changes))


def plain(**changes):
    return {
        "name": "digits",
        "tersor_version": "0.1.0",
        "recipe": {"stages": [{"stage": "train"}, {"stage": "share"}]},
        "data": {
            "name": "digits",
            "seed": 3,
            "sha256": "1" * 64,
            "images": {"train": 1000, "test": 360},
            "settings": {"kind": "digits"},
        },
        "classes": list("0123456789"),
        "preprocessing": {"divisor": 16.0, "mean": [0.3], "std": [0.4]},
        "input": {"name": "input", "shape": ["batch", 1, 8, 8], "dtype": "float32"},
        "environment": {"python": "3.11", "model": "a CPU", "vnni": True, "avx2": False, "threads": 1},
        "baseline": entry("baseline.onnx", "fp32", row(1.0, distinguishable=False)).to_json(),
        "artifacts": [
            entry("model.onnx", "fp32", row(2.5)).to_json(),
            entry("model.tsr", "packed").to_json(),
        ],
        "not_measured": [{"what": "cuda", "reason": "no GPU here"}],
        "recommended": {"cpu": {"file": "model.onnx", "batch": 1, "speedup": 2.5, "why": "fastest"}},
        "compression_ratio": 31.25,
        "parity": {"file": "parity.npz", "bounds": {"fp32": 1e-4}},
        **changes,
    }


def test_bundle_holds_files_manifest_licence_and_checksums(tmp_path):
    source = tmp_path / "some.onnx"
    source.write_bytes(b"model")
    write_bundle(tmp_path / "dist" / "digits", {"model.onnx": source, "README.md": b"card"}, manifest())
    folder = tmp_path / "dist" / "digits"
    names = ["LICENSE", "README.md", "SHA256SUMS", "manifest.json", "model.onnx"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert json.loads((folder / "manifest.json").read_text()) == plain()
    assert list(json.loads((folder / "manifest.json").read_text()))[0] == "name"
    assert "not stated" in (folder / "LICENSE").read_text()
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == sorted(set(names) - {"SHA256SUMS"})
    assert f"{hashlib.sha256(b'model').hexdigest()}  model.onnx" in lines
    assert [p.name for p in folder.parent.iterdir()] == ["digits"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_accepts_the_checksums(tmp_path):
    write_bundle(tmp_path / "b", {"a": b"1"}, manifest())
    subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path / "b", check=True)


def test_a_bundle_is_replaced_whole(tmp_path):
    write_bundle(tmp_path / "b", {"old": b"1"}, manifest())
    write_bundle(tmp_path / "b", {"new": b"2"}, manifest())
    assert not (tmp_path / "b" / "old").exists()
    assert (tmp_path / "b" / "new").read_bytes() == b"2"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
@pytest.mark.parametrize("failing", ["copy", "swap"])
def test_a_failure_leaves_the_bundle_before_it_intact(failing, exchange, tmp_path, monkeypatch):
    write_bundle(tmp_path / "b", {"old": b"1"}, manifest())
    before = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    if not exchange:
        monkeypatch.setattr(bundle, "_exchange", lambda *_: False)
    if failing == "copy":
        monkeypatch.setattr(bundle, "sha256_of", fail)
    elif exchange:
        monkeypatch.setattr(bundle, "_swap", fail)
    else:
        real, calls = bundle.os.replace, []

        def second_fails(*names):
            calls.append(names)
            return fail() if len(calls) == 2 else real(*names)

        monkeypatch.setattr(bundle.os, "replace", second_fails)
    with pytest.raises(Unavailable, match="one before it is intact. Got No space left on device.*Free disk"):
        write_bundle(tmp_path / "b", {"new": b"2"}, manifest())
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_the_two_rename_way_replaces_too(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "_exchange", lambda *_: False)
    write_bundle(tmp_path / "b", {"old": b"1"}, manifest())
    write_bundle(tmp_path / "b", {"new": b"2"}, manifest())
    assert (tmp_path / "b" / "new").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_a_killed_run_left_is_cleared(tmp_path):
    left = tmp_path / ".b.new"
    left.mkdir()
    (left / "half.onnx").write_bytes(b"x")
    write_bundle(tmp_path / "b", {"new": b"2"}, manifest())
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert not (tmp_path / "b" / "half.onnx").exists()


def test_a_place_that_takes_no_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Unavailable, match="bundle cannot be written"):
        write_bundle(tmp_path / "file" / "b", {}, manifest())


@pytest.mark.parametrize("name", ["../x", "a/b", "manifest.json", "SHA256SUMS", "..", ""])
def test_names_that_leave_the_bundle_or_collide_are_refused(name, tmp_path):
    with pytest.raises(BadInput, match="no file of this name goes into a bundle"):
        write_bundle(tmp_path / "b", {name: b""}, manifest())
    assert list(tmp_path.iterdir()) == []


def test_same_files_same_bundle(tmp_path):
    for name in ("one", "two"):
        write_bundle(tmp_path / name, {"a": b"1"}, manifest())
    sums = [(tmp_path / name / "SHA256SUMS").read_bytes() for name in ("one", "two")]
    assert sums[0] == sums[1]


def test_file_entry_measures_the_file(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert file_entry(tmp_path / "m.onnx", "fp32") == Artifact("m.onnx", "fp32", 3, digest)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no bundle here. Got no manifest.json"),
        ("{", "manifest cannot be read"),
        ("[]", "manifest is incomplete"),
        (json.dumps({k: v for k, v in plain().items() if k != "parity"}), "incomplete. Got no parity"),
        (json.dumps(plain(parity={"file": "../../x"})), "manifest is damaged"),
        (json.dumps(plain(artifacts=[{"file": "a"}])), "each with kind, bytes and sha256"),
        (json.dumps(plain(artifacts=3)), "manifest is damaged"),
    ],
)
def test_a_missing_or_damaged_manifest_is_told(text, words, tmp_path):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match=words):
        read_manifest(tmp_path)


def test_card_tells_the_measured_numbers_and_what_was_not_measured():
    card = model_card(manifest())
    for words in (
        "31.2 times smaller",
        "| `model.onnx` | fp32 | 100 | 1.00 | 97.22 % | +0.00 points | 1e-06 |",
        "2.50x",
        "Measured on a CPU, VNNI. Speed-up is",
        "Data: digits (images: train 1,000, test 360; split seed 3).",
        "1.00x [0.99, 1.01] (not distinguishable)",
        "cuda: no GPU here",
        "train -> share",
        "test 360",
    ):
        assert words in card, words


def test_the_cards_doubts_stand_beside_the_ratio_that_decides():
    device = {"device_p50_ms": 0.5, "device_speedup": 1.0, "device_speedup_low": 0.99}
    timed = replace(row(2.0, distinguishable=False, provider=CUDA), **device, device_speedup_high=1.01)
    card = model_card(manifest(artifacts=[entry("model.onnx", "fp32", timed).to_json()]))
    assert "| 2.00x [1.99, 2.01] |" in card
    assert "0.5 ms, 1.00x [0.99, 1.01] (not distinguishable) |" in card


def test_card_says_nothing_of_what_is_missing():
    unmeasured = replace(entry("baseline.onnx", "fp32"), accuracy_fraction=None)
    bare = replace(
        manifest(),
        **dict.fromkeys(("recommended", "environment", "recipe", "data", "not_measured")),
        baseline=unmeasured,
        artifacts=(entry("model.onnx", "fp32"),),
    )
    card = model_card(bare)
    assert "## Latency" not in card
    assert "| `baseline.onnx` | fp32 | 100 | 1.00 | not measured |" in card


def test_the_cards_code_runs_and_preprocesses_as_tersor_does(plain_onnx, tmp_path, make_images, monkeypatch):
    import numpy as np

    from tersor.export.timing.parity import predictions
    from tersor.export.timing.providers import open_session
    from tersor.models.preprocessing import Preprocessing

    shutil.copy(plain_onnx, tmp_path / "model.onnx")
    code = model_card(manifest()).split("```python\n")[1].split("```")[0]
    pixels = np.random.default_rng(0).integers(0, 17, (20, 1, 8, 8)).astype(np.uint8)
    monkeypatch.chdir(tmp_path)
    names = {"pixels": pixels}
    exec(code, names)
    inputs = Preprocessing(16.0, (0.3,), (0.4,)).apply(pixels)
    assert np.array_equal(names["classes"], predictions(open_session(plain_onnx, "cpu"), inputs))


def test_the_licence_is_that_of_the_weights(tmp_path):
    write_bundle(tmp_path / "mit", {"a": b"1"}, manifest(licence="MIT"))
    assert (tmp_path / "mit" / "LICENSE").read_text() == "Licence of the weights: MIT.\n"
    write_bundle(tmp_path / "none", {"a": b"1"}, manifest(licence="not stated"))
    assert "not stated" in (tmp_path / "none" / "LICENSE").read_text()
    assert "Licence of the weights: MIT." in model_card(manifest(licence="MIT"))


def test_a_speedup_in_the_card_has_its_interval():
    timed = entry("model.onnx", "fp32", row(2.5, spread=0.1))
    assert "2.50x [2.40, 2.60]" in model_card(replace(manifest(), artifacts=(timed,)))


def test_the_card_marks_times_of_a_busy_machine():
    timed = entry("model.onnx", "fp32", replace(row(2.5), busy="90 switches", narrow=False))
    assert "(wide, machine busy: 90 switches)" in model_card(replace(manifest(), artifacts=(timed,)))
