"""verify finds every claim that does not hold, from the files alone, without torch."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tersor.errors import BadInput, ClaimBroken
from tersor.export.bundle.folder import file_entry, write_bundle
from tersor.export.bundle.manifest import Input, Manifest, Parity
from tersor.export.bundle.verify import raise_if_broken, verify
from tersor.export.codec.pack import pack
from tersor.export.forms.int8 import to_int8
from tersor.export.forms.lowbit import to_lowbit
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing import parity
from tersor.export.timing.providers import open_session

KINDS = {
    "model.onnx": "fp32",
    "model.int8.onnx": "int8",
    "model.lowbit.onnx": "lowbit",
    "model.tsr": "packed",
}


def labels_of(logits):
    labels = logits.argmax(1)
    labels[:8] = (labels[:8] + 1) % 10
    return labels


def measured(path, kind, inputs, logits, labels):
    session = open_session(path.with_name("model.onnx") if kind == "packed" else path, "cpu")
    return replace(
        file_entry(path, kind),
        accuracy_fraction=parity.accuracy(session, inputs, labels),
        max_abs_diff=parity.max_abs_diff(session, inputs, logits),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits, plain_onnx, folded_onnx, make_network, make_images, logits_of):
    """A true bundle of the digits network; never changed."""
    folder, inputs, baseline = tmp_path_factory.mktemp("parts"), make_images(), make_network(seed=3)
    export_onnx(baseline, folder / "baseline.onnx")
    shutil.copy(plain_onnx, folder / "model.onnx")
    to_int8(folded_onnx, folder / "model.int8.onnx", make_images(count=100))
    to_lowbit(plain_onnx, folder / "model.lowbit.onnx")
    pack(folder / "model.onnx", folder / "model.tsr")
    logits, base_logits = logits_of(digits, inputs), logits_of(baseline, inputs)
    parity.write_parity(folder / "parity.npz", inputs, logits, base_logits)
    labels = labels_of(logits)
    entries = [measured(folder / name, kind, inputs, logits, labels) for name, kind in KINDS.items()]
    base = measured(folder / "baseline.onnx", "fp32", inputs, base_logits, labels)
    manifest = Manifest(
        name="digits",
        input=Input("input", ("batch", 1, 8, 8), "float32"),
        baseline=base,
        artifacts=tuple(entries),
        compression_ratio=round(base.bytes / entries[-1].bytes, 2),
        parity=Parity("parity.npz", parity.BOUNDS),
    )
    out = tmp_path_factory.mktemp("dist") / "digits"
    names = ["baseline.onnx", *KINDS, "parity.npz"]
    write_bundle(out, {name: folder / name for name in names}, manifest)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "digits"))


@pytest.fixture
def split(digits, make_images, logits_of):
    return make_images(), labels_of(logits_of(digits, make_images()))


def found_out(folder, name):
    """Whether verify tells of the change in the file `name`; of the manifest it may not read any more."""
    try:
        return f"SHA256SUMS: {name}" in broken(folder)
    except BadInput as error:
        return name == "manifest.json" and "manifest" in str(error)


def broken(folder, test=None):
    return {c.name for c in verify(folder, test=test) if not c.ok}


def edit(folder, change):
    """Change the manifest and make the checksums agree, as someone who wants to deceive would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    resum(folder)


def resum(folder):
    names = sorted(p.name for p in folder.iterdir() if p.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def rename_in(folder, name):
    """Let the manifest agree with what the file is now."""

    def change(manifest):
        for entry in [manifest["baseline"], *manifest["artifacts"]]:
            if entry["file"] == name:
                now = file_entry(folder / name, entry["kind"])
                entry.update(bytes=now.bytes, sha256=now.sha256)

    edit(folder, change)


def test_a_true_bundle_holds_with_every_claim_checked(whole, split):
    checks = verify(whole, test=split)
    raise_if_broken(checks)
    names = {c.name for c in checks}
    for file in ("baseline.onnx", *KINDS):
        for claim in ("bytes", "sha256", "parity", "max_abs_diff", "accuracy_fraction"):
            assert f"{file}: {claim}" in names
        assert f"SHA256SUMS: {file}" in names
    assert {"compression_ratio", "unpack(model.tsr) equals model.onnx", "SHA256SUMS: parity.npz"} <= names


@pytest.mark.parametrize("name", ["baseline.onnx", *KINDS, "parity.npz", "manifest.json", "LICENSE"])
@pytest.mark.parametrize("at", [0.1, 0.5, 0.99])
def test_a_changed_byte_in_any_file_is_found(name, at, copy):
    data = bytearray((copy / name).read_bytes())
    place = int(at * len(data))
    data[place] = data[place] ^ 1 if name != "manifest.json" else ord(" ")
    if bytes(data) == (copy / name).read_bytes():
        pytest.skip("that byte was a space already")
    (copy / name).write_bytes(data)
    assert found_out(copy, name)


def test_a_changed_ratio_is_found_even_with_matching_checksums(copy):
    edit(copy, lambda m: m.update(compression_ratio=m["compression_ratio"] * 1.01))
    assert broken(copy) == {"compression_ratio"}


def test_another_packed_file_is_found_even_with_matching_checksums(copy, tmp_path, make_network):
    export_onnx(make_network(bits=4, seed=9), tmp_path / "other.onnx")
    pack(tmp_path / "other.onnx", copy / "model.tsr")
    rename_in(copy, "model.tsr")
    found = broken(copy)
    assert "unpack(model.tsr) equals model.onnx" in found
    assert "model.tsr: parity" in found


def test_changed_weights_are_found_even_with_matching_checksums(copy):
    model = onnx.load(copy / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "fc2.bias")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), "fc2.bias"))
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    rename_in(copy, "model.onnx")
    assert broken(copy) == {
        "unpack(model.tsr) equals model.onnx",
        "model.onnx: parity",
        "model.onnx: max_abs_diff",
    }


def test_wrong_accuracy_and_difference_claims_are_found(copy, split):
    def change(manifest):
        manifest["baseline"]["accuracy_fraction"] += 0.1
        manifest["artifacts"][1]["max_abs_diff"] = 0.0
        manifest["artifacts"][1]["accuracy_fraction"] += 0.1

    edit(copy, change)
    assert broken(copy, split) == {
        "baseline.onnx: accuracy_fraction",
        "model.int8.onnx: accuracy_fraction",
        "model.int8.onnx: max_abs_diff",
    }


def test_a_looser_bound_in_the_manifest_does_not_count_a_tighter_one_does(copy):
    edit(copy, lambda m: m["parity"]["bounds"].update(fp32=1e9, int8=1e-9))
    assert "model.int8.onnx: parity" in broken(copy)
    model = onnx.load(copy / "model.onnx")
    model.graph.initializer[-1].raw_data = bytes(len(model.graph.initializer[-1].raw_data))
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    assert "model.onnx: parity" in broken(copy)


def test_a_missing_file_is_a_broken_claim(copy):
    (copy / "model.int8.onnx").unlink()
    found = broken(copy)
    assert {"SHA256SUMS: model.int8.onnx", "model.int8.onnx: bytes", "model.int8.onnx: runs"} <= found


def test_a_file_left_out_of_the_checksums_is_found(copy):
    lines = (copy / "SHA256SUMS").read_text().splitlines(keepends=True)
    (copy / "SHA256SUMS").write_text("".join(line for line in lines if "model.tsr" not in line))
    assert broken(copy) == {"SHA256SUMS: model.tsr"}


def test_external_data_are_refused(copy):
    model = onnx.load(copy / "model.onnx")
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    check = next(c for c in verify(copy) if c.name == "model.onnx: runs")
    assert not check.ok
    assert "other files" in check.got


def test_broken_claims_are_listed_with_by_how_much(copy):
    edit(copy, lambda m: m.update(compression_ratio=999.0))
    with pytest.raises(ClaimBroken) as caught:
        raise_if_broken(verify(copy))
    assert caught.value.exit_code == 3
    assert "1 of " in str(caught.value)
    assert "compression_ratio: got " in str(caught.value)
    assert "claimed 999.0 (baseline.onnx / model.tsr)" in str(caught.value)


def test_no_bundle_and_unfit_test_data_are_bad_input(whole, tmp_path, split):
    with pytest.raises(BadInput, match="no bundle here"):
        verify(tmp_path)
    images, labels = split
    with pytest.raises(BadInput, match=r"do not fit the bundle.*Wanted as many labels.*\(N, 1, 8, 8\)"):
        verify(whole, test=(images[:, :, :7], labels))


def test_a_manifest_of_wrong_types_is_bad_input(copy):
    edit(copy, lambda m: m["artifacts"][0].update(max_abs_diff="small"))
    words = (
        r'manifest is damaged\. Got "small"\. Wanted a number\. Where: .*json, artifacts\[0\]\.max_abs_diff\.'
    )
    with pytest.raises(BadInput, match=words):
        verify(copy)


def test_verify_works_without_torch(whole):
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'nni', 'onnxscript', 'sklearn'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from tersor.export.bundle.verify import raise_if_broken, verify\n"
        "checks = verify(Path(sys.argv[1]))\n"
        "raise_if_broken(checks)\n"
        "print(len(checks))\n"
        "from tersor.export.forms import fp16, int8, lowbit, to_onnx\n"
        "from tersor.export.timing import benchmark, parity, providers\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(whole)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
