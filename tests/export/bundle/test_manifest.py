"""A manifest comes back key by key; what a stranger wrote into one is told by its key, never a traceback."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tersor.errors import BadInput
from tersor.export.bundle.folder import read_manifest, write_bundle
from tersor.export.bundle.manifest import Manifest, needed

ROW = {
    "provider": "CPUExecutionProvider",
    "batch": 1,
    "threads": 1,
    "p50_ms": 0.2,
    "p90_ms": 0.3,
    "p99_ms": 0.4,
    "speedup": 1.5,
    "p50_low_ms": 0.19,
    "p50_high_ms": 0.21,
    "speedup_low": 1.4,
    "speedup_high": 1.6,
    "distinguishable": True,
    "throughput_per_s": 5000.0,
    "rounds": 30,
}


def entry(file: str, kind: str, **more: Any) -> dict[str, Any]:
    head = {"file": file, "kind": kind, "bytes": 100, "sha256": "0" * 64}
    return {**head, "accuracy_fraction": 0.97, "max_abs_diff": 1e-6, "latency": [dict(ROW)], **more}


def whole() -> dict[str, Any]:
    """Every key that a manifest has, in its order; a new one each time."""
    return {
        "name": "digits",
        "tersor_version": "0.1.0",
        "created_by": "tersor deploy",
        "licence": "not stated",
        "recipe": {"stages": [{"stage": "train", "epochs": 2}]},
        "data": {
            "name": "digits",
            "seed": 0,
            "sha256": "1" * 64,
            "images": {"train": 1000, "test": 360},
            "settings": {"kind": "digits", "image_size": None},
        },
        "classes": ["0", "1"],
        "preprocessing": {"divisor": 16.0, "mean": [0.3], "std": [0.4]},
        "input": {"name": "input", "shape": ["batch", 1, 8, 8], "dtype": "float32"},
        "environment": {"model": "a CPU", "avx2": True},
        "compression_ratio": 55.2,
        "recommended": {"cpu": {"file": "model.onnx", "batch": 1, "speedup": None, "why": "fastest"}},
        "baseline": entry("baseline.onnx", "fp32"),
        "artifacts": [entry("model.onnx", "fp32"), entry("model.tsr", "packed", notes="unpacks to it")],
        "not_measured": [{"what": "cuda", "reason": "no GPU"}],
        "gates": [{"gate": "max_bytes", "limit": 9, "got": None, "ok": False, "file": "model.tsr"}],
        "parity": {"file": "parity.npz", "bounds": {"fp32": 1e-4}},
        "cost": {"baseline": {"parameters": 9, "nonzero_weights": 9, "macs": 99}},
        "stages": [{"name": "train", "validation_loss": 0.1, "details": {"layers": []}}],
        "int8": {
            "floor": None,
            "fp32_validation_accuracy_fraction": 0.9,
            "reduce_range": False,
            "calibration_images": 256,
            "quantized": ["conv1"],
            "kept_float": [],
            "kept_integers": [],
            "method": "entropy",
            "validation_accuracy_fraction": 0.9,
            "holds": True,
            "helps": {},
            "tried": {"entropy": 0.9},
            "operators": "all",
            "layout": "padded",
            "sets": {"weighted": {"validation_accuracy_fraction": 0.9}, "all": {"ms": 0.1}},
            "layouts": {"plain": 0.02, "padded": 0.01},
            "integer_operators": {"Conv": 2},
            "float_operators": {"Relu": 1},
            "smooth_activations": {},
        },
        "advice": ["int8 is slower"],
        "confusion": {"classes": ["0", "1"], "baseline": [[1, 0], [0, 1]], "model": [[1, 0], [1, 0]]},
    }


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of nested JSON is: the keys that lead there."""
    if way:
        yield way
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*way, key))


def put(way: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The whole manifest with another value there."""
    changed: Any = copy.deepcopy(whole())
    at = changed
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = value
    return dict(changed)


def test_a_manifest_comes_back_byte_for_byte() -> None:
    told = whole()
    assert json.dumps(Manifest.of(told).to_json()) == json.dumps(told)


def test_what_is_not_told_is_not_written() -> None:
    told = {key: whole()[key] for key in ("name", "input", "compression_ratio", "baseline")}
    told |= {"artifacts": [], "parity": {"file": "parity.npz", "bounds": {}}}
    assert json.dumps(Manifest.of(told).to_json()) == json.dumps(told)


def test_keys_of_a_later_version_are_kept_at_the_end_wherever_they_stand() -> None:
    told = whole() | {"signature": {"by": ["x"]}}
    told["baseline"]["colour"] = "red"
    told["artifacts"][0]["latency"][0]["rest"] = 7
    assert json.dumps(Manifest.of(told).to_json()) == json.dumps(told)


def test_a_bundle_that_is_written_again_has_the_same_manifest(tmp_path: Path) -> None:
    write_bundle(tmp_path / "one", {}, Manifest.of(whole()))
    write_bundle(tmp_path / "two", {}, read_manifest(tmp_path / "one"))
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("way", "value", "words"),
    [
        (("compression_ratio",), "55", 'Got "55". Wanted a number. Where: compression_ratio.'),
        (("compression_ratio",), True, "Got true. Wanted a number. Where: compression_ratio."),
        (("baseline", "bytes"), 1.5, "Got 1.5. Wanted a whole number. Where: baseline.bytes."),
        (("artifacts", 1, "file"), None, "Got null. Wanted text. Where: artifacts[1].file."),
        (("artifacts",), {}, "Got a mapping. Wanted a list. Where: artifacts."),
        (("recommended",), [], "Got a list. Wanted a mapping. Where: recommended."),
        (("recommended", "cpu"), "x", 'Got "x". Wanted a mapping. Where: recommended.cpu.'),
        (("gates", 0, "ok"), 1, "Got 1. Wanted true or false. Where: gates[0].ok."),
        (("baseline", "latency", 0), {}, "Got no provider. Where: baseline.latency[0]."),
        (("preprocessing",), {"divisor": 1.0}, "Got no mean. Where: preprocessing."),
        (("preprocessing", "mean"), [0.1, 0.2], "Got 2 means and 1 standard deviations."),
        (
            ("input", "shape"),
            ["batch", 1, 8],
            "Wanted a shape of batch, channels, height, width. Where: input.",
        ),
        (("input", "shape", 0), [], "Got a list. Wanted text or a whole number. Where: input.shape[0]."),
        (
            ("confusion", "model"),
            [[1]],
            "Wanted counts, a row and a column for each class. Where: confusion.",
        ),
        (("stages", 0, "validation_loss"), float("nan"), "Got NaN. Wanted a number. Where: stages[0]."),
        (("environment", "model"), float("inf"), "Got Infinity. Wanted a number. Where: environment.model."),
        (
            ("environment", "model"),
            2**70,
            "Got a huge number. Wanted at most 64 bits. Where: environment.model",
        ),
        (("name",), "\ud800", 'Got "\\ud800". Wanted text that UTF-8 can hold. Where: name.'),
        (("parity", "file"), "a\0b", "Wanted plain file names"),
        (("parity", "file"), "y" * 300, "Wanted plain file names"),
        (("cost", "two\nlines"), 1, 'Wanted a mapping. Where: cost."two\\nlines".'),
    ],
)
def test_a_damaged_claim_is_told_by_its_key(way: tuple[Any, ...], value: Any, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        Manifest.of(put(way, value))
    assert str(caught.value).startswith("the manifest is damaged.")
    assert words in str(caught.value)


def test_the_file_is_named_before_the_key(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(put(("baseline", "bytes"), "x")))
    with pytest.raises(BadInput) as caught:
        read_manifest(tmp_path)
    assert f"Where: {tmp_path / 'manifest.json'}, baseline.bytes. Get the bundle again." in str(caught.value)


STRANGE = [None, True, -1, 1e308, float("nan"), 10**400, "x", "\ud800", "a\0b", [], {}, [1], {"a": [{}]}]


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:12])
def test_no_value_anywhere_in_a_manifest_is_a_traceback(value: Any) -> None:
    told: list[str] = []
    for way in places(whole()):
        try:
            manifest = Manifest.of(put(way, value))
            json.dumps(manifest.to_json(), allow_nan=False, ensure_ascii=False).encode()
        except BadInput as error:
            told.append(str(error))
    assert len(told) > 20
    assert not any("\n" in words for words in told)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"name": ' * 100_000,
        json.dumps(whole() | {"recipe": {"x": 0}}).replace(
            '{"x": 0}', '{"x": ' + "[" * 200 + "]" * 200 + "}"
        ),
    ],
    ids=["lists", "mappings", "within"],
)
def test_deep_nesting_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match="the manifest (cannot be read|is damaged.*nesting. Where: .*recipe)"):
        read_manifest(tmp_path)


def test_a_claim_that_is_needed_and_not_told_is_named() -> None:
    assert needed(0, "data") == 0
    with pytest.raises(BadInput, match=r"the manifest is damaged. Got no data. Where: here, data\."):
        needed(None, "data", "here")
