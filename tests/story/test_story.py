"""The story end to end: what compress and deploy give is complete, true, and can be checked again."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from story.cases import QUICK
from story.harness import MODEL_FILES, Server, leftovers, sha256, stage_times, tiny_recipe, write_recipe

SHIPPED = [*MODEL_FILES, "LICENSE", "README.md", "report.html", "manifest.json", "SHA256SUMS"]
LATENCY_KEYS = {"provider", "batch", "threads", "p50_ms", "p90_ms", "p99_ms", "speedup"}
FILE_KEYS = {"file", "kind", "bytes", "sha256", "accuracy_fraction", "max_abs_diff", "latency"}
STAGES = [s.get("name", s["stage"]) for s in tiny_recipe()["stages"]]


@pytest.fixture(scope="session")
def manifest(story) -> dict[str, Any]:
    """What the bundle claims."""
    return json.loads((story.bundle / "manifest.json").read_text())


def test_bundle_holds_every_file_and_no_other(story) -> None:
    assert sorted(p.name for p in story.bundle.iterdir()) == sorted(SHIPPED)


def test_run_folder_holds_every_file_and_a_folder_a_stage(story) -> None:
    folders = [f"{i + 1:02d}-{name}" for i, name in enumerate(STAGES)]
    files = [
        "network.safetensors",
        "model.onnx",
        "model.tsr",
        "recipe.yaml",
        "environment.json",
        "metrics.json",
    ]
    assert sorted(p.name for p in story.run.iterdir()) == sorted([".lock", *files, *folders])
    for folder in folders:
        names = sorted(p.name for p in (story.run / folder).iterdir())
        assert names == ["metrics.json", "model.onnx", "network.safetensors"], folder


def test_nothing_half_written_is_left(story) -> None:
    assert leftovers(story.folder) == []


def test_stage_metrics_carry_units_and_true_sizes(story) -> None:
    for folder in sorted(story.run.glob("[0-9]*")):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["onnx_bytes"] == (folder / "model.onnx").stat().st_size
        assert 0.5 < metrics["validation_accuracy_fraction"] <= 1, "the tiny network has learned"
        assert {"name", "stage", "seconds", "parameters", "macs", "packed_bytes"} <= set(metrics)


def test_manifest_has_the_keys_that_were_promised(manifest: dict[str, Any]) -> None:
    top = {"baseline", "artifacts", "not_measured", "recommended", "compression_ratio"}
    assert top <= set(manifest)
    for entry in [manifest["baseline"], *manifest["artifacts"]]:
        assert set(entry) >= FILE_KEYS, entry["file"]
        assert all(set(row) >= LATENCY_KEYS for row in entry["latency"]), entry["file"]


def test_readme_of_the_bundle_tells_machine_and_images(story, manifest: dict[str, Any]) -> None:
    card = (story.bundle / "README.md").read_text()
    machine = manifest["environment"].get("model") or manifest["environment"]["system"]
    assert f"Measured on {machine}" in card
    assert f"(images: train {manifest['data']['images']['train']:,}, validation " in card


def test_manifest_lists_every_model_file_once(manifest: dict[str, Any]) -> None:
    files = [entry["file"] for entry in [manifest["baseline"], *manifest["artifacts"]]]
    assert sorted(files) == sorted(name for name in MODEL_FILES if name != "parity.npz")


def test_manifest_tells_true_sizes_and_hashes(story, manifest: dict[str, Any]) -> None:
    for entry in [manifest["baseline"], *manifest["artifacts"]]:
        path = story.bundle / entry["file"]
        assert (entry["bytes"], entry["sha256"]) == (path.stat().st_size, sha256(path)), entry["file"]


def test_ratio_is_that_of_the_files(story, manifest: dict[str, Any]) -> None:
    sizes = [(story.bundle / name).stat().st_size for name in ("baseline.onnx", "model.tsr")]
    assert manifest["compression_ratio"] == pytest.approx(sizes[0] / sizes[1], abs=1e-4)


def test_every_onnx_file_was_timed_at_every_batch_size(manifest: dict[str, Any]) -> None:
    for entry in [manifest["baseline"], *manifest["artifacts"]]:
        batches = [row["batch"] for row in entry["latency"]]
        assert batches == ([] if entry["kind"] == "packed" else [1, 8]), entry["file"]


def test_checksums_list_every_other_file(story) -> None:
    lines = (story.bundle / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    assert sorted(listed) == sorted(name for name in SHIPPED if name != "SHA256SUMS")
    assert {name: sha256(story.bundle / name) for name in listed} == listed


def test_no_path_of_this_machine_is_in_the_bundle(story) -> None:
    for path in story.bundle.iterdir():
        assert str(story.folder).encode() not in path.read_bytes(), path.name
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes(), path.name


def test_json_is_all_there_is_on_stdout(story, manifest: dict[str, Any]) -> None:
    assert json.loads(story.deployed.stdout) == manifest


def test_compress_prints_json_alone_on_stdout_too(server: Server, copy: Path) -> None:
    printed = json.loads(server.run("compress", "tiny.yaml", "--json", cwd=copy).stdout)
    assert [stage["name"] for stage in printed["stages"]] == STAGES


def test_quiet_says_nothing(server: Server, copy: Path) -> None:
    assert server.run("compress", "tiny.yaml", "--quiet", cwd=copy).stderr == ""


class Page(HTMLParser):
    """Gathers what a page would load, and how many pictures it holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action") and v]


def test_report_is_one_page_that_loads_nothing(story) -> None:
    text = (story.bundle / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [url for url in page.loads if not url.startswith(("#", "data:"))] == []
    assert re.findall(r"@import|url\((?!['\"]?(?:data:|#))|fetch\(|XMLHttpRequest", text) == []
    assert page.tags.count("svg") + page.tags.count("img") >= 3, "it has pictures"
    assert "table" in page.tags


def test_compress_again_reuses_every_stage(server: Server, copy: Path) -> None:
    before = stage_times(copy / "runs")
    again = server.run("compress", "tiny.yaml", cwd=copy)
    assert again.code == 0, again.stderr
    assert again.stderr.count("(reused)") == len(STAGES), again.stderr
    assert "epoch" not in again.stderr
    assert stage_times(copy / "runs") == before
    assert leftovers(copy) == []


def test_one_changed_setting_repeats_that_stage_and_the_later_ones_only(server: Server, copy: Path) -> None:
    said = server.run("compress", "tiny.yaml", "--set", "sharing.values=7", cwd=copy).stderr.splitlines()
    assert ["(reused)" in line for line in said] == [True] * 5 + [False] * 3


def test_deploy_settings_and_gates_do_not_repeat_a_stage(server: Server, copy: Path) -> None:
    recipe = tiny_recipe(gates={"max_bytes": 10**6}, deploy=QUICK)
    again = server.run("compress", write_recipe(copy, recipe).name, cwd=copy)
    assert again.stderr.count("(reused)") == len(STAGES), again.stderr


def test_dry_run_tells_what_is_cached_and_writes_nothing(server: Server, copy: Path) -> None:
    before = stage_times(copy / "runs")
    plan = server.run("compress", "tiny.yaml", "--set", "sharing.values=7", "--dry-run", cwd=copy)
    lines = plan.stdout.splitlines()[1:]
    assert [line.split()[1] for line in lines] == STAGES
    assert ["cached" in line for line in lines] == [True] * 5 + [False] * 2
    assert ["to do" in line for line in lines] == [False] * 5 + [True] * 2
    assert stage_times(copy / "runs") == before


def test_dry_run_in_a_fresh_folder_makes_nothing(server: Server, tmp_path: Path) -> None:
    write_recipe(tmp_path, tiny_recipe())
    plan = server.run("compress", "tiny.yaml", "--dry-run", cwd=tmp_path)
    assert plan.stdout.count("to do") == len(STAGES), plan.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_gate_that_holds_again_removes_the_rejected_bundle(server: Server, copy: Path) -> None:
    strict = write_recipe(copy, tiny_recipe(deploy=QUICK, gates={"max_bytes": 100})).name
    assert server.run("deploy", strict, cwd=copy).code == 3
    assert (copy / "runs/tiny/rejected/manifest.json").is_file()
    loose = write_recipe(copy, tiny_recipe(deploy=QUICK)).name
    assert server.run("deploy", loose, cwd=copy).code == 0
    assert not (copy / "runs/tiny/rejected").exists()


def test_report_can_be_written_anew_and_the_bundle_stays_true(server: Server, copy: Path) -> None:
    (copy / "dist/tiny/report.html").write_text("lost")
    assert server.run("report", "dist/tiny", cwd=copy).code == 0
    assert "<svg" in (copy / "dist/tiny/report.html").read_text(encoding="utf-8")
    assert server.run("verify", "dist/tiny", cwd=copy).code == 0


def test_help_is_there_before_anything_heavy_is_imported() -> None:
    heavy = "('torch', 'numpy', 'onnx', 'pydantic', 'yaml')"
    code = f"import sys, tersor.pipeline.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
