"""The page of 1,000 trials in a real browser: it opens, filters and sorts within a second."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tersor.pipeline.show.study_page import front, write_page

# Loaded by file: with --import-mode=importlib a test folder is no package.
_spec = importlib.util.spec_from_file_location("study_samples", Path(__file__).with_name("study_samples.py"))
assert _spec
assert _spec.loader
samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(samples)

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path"
)
LIMIT_MS = 1000


def open_page(path: Path, profile: Path) -> str:
    """The page's elements after its script has run."""
    assert BROWSER
    # Root has no sandbox to enter; the page is our own file.
    options = ["--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [BROWSER, *options, "--dump-dom", f"{path.resolve().as_uri()}#selftest"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def measured(path: Path, tmp_path: Path) -> dict[str, Any]:
    found = re.search(r'<pre id="selftest">(.*?)</pre>', open_page(path, tmp_path / "profile"), re.S)
    assert found, "the page's script did not reach its end"
    return json.loads(unescape(found[1]))


def test_a_page_of_a_thousand_trials_opens_filters_and_sorts_within_a_second(tmp_path: Path) -> None:
    content, path = samples.large(), tmp_path / "report.html"
    write_page(path, content)
    # Other work on the machine only ever slows a page down, so the best of a few openings counts.
    best: dict[str, float] = {}
    for _ in range(4):
        report = measured(path, tmp_path)
        best = {k: min(v, best.get(k, v)) for k, v in report.items() if k.endswith("_ms")}
        if max(best.values()) < LIMIT_MS:
            break
    assert set(best) == {"open_ms", "chip_ms", "text_ms", "sort_ms"}
    assert max(best.values()) < LIMIT_MS, best
    assert report["before"] == 1000
    assert report["after_chip"] == 800  # one of five values of the first axis with chips is off
    rates = [t["settings"]["train.learning_rate"] for t in content["trials"]]
    found = sum(f"{rate:g}".startswith("0.0001") for rate in rates)  # text finds parts of words
    assert report["after_text"] == report["rows_after_text"] == found < 200
    assert report["rows"] == 200


def test_the_browser_draws_the_front_that_python_computes(tmp_path: Path) -> None:
    content, path = samples.large(), tmp_path / "report.html"
    write_page(path, content)
    report = measured(path, tmp_path)
    assert (report["x"], report["y"]) == ("training_seconds", "validation_accuracy_fraction")
    points = [[t["metrics"].get(report[k]) for k in "xy"] for t in content["trials"]]
    assert sorted(report["front"]) == front(points, ["minimize", "maximize"])


def test_odd_text_runs_as_text(tmp_path: Path) -> None:
    content, path = samples.study(seeds=(0, 1)), tmp_path / "report.html"
    for row in [*content["trials"], *content["summary"]]:
        row["settings"]["model"] = "</script><img src=x onerror=\"document.title='run'\">"
    for trial in content["trials"]:
        trial["error"] = trial["error"] and "<script>document.title='run'</script>"
    write_page(path, content)
    dom = open_page(path, tmp_path / "profile")
    assert "<title>grid: study</title>" in dom
    assert "<img" not in dom
    assert 'id="selftest"' in dom
