"""docs/python.md shows every public name in code that runs."""

import re
from pathlib import Path

import pytest

import tersor

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)

SHORT = {
    "train.epochs": 12,
    "tune-structure.epochs": 2,
    "tune-sparsity-1.epochs": 2,
    "tune-sparsity-2.epochs": 2,
    "tune-sharing.epochs": 1,
    "deploy.seconds_per_model": 0.03,
    "gates.max_accuracy_drop": 0.5,
}


def test_the_page_shows_every_public_name() -> None:
    shown = set(re.findall(r"tersor\.(\w+)", "\n".join(BLOCKS)))
    assert set(tersor.__all__) - {"Bundle", "Run"} <= shown


@pytest.mark.slow
def test_the_pages_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one go, as a reader would; the recipe's trainings and the study are cut short."""
    for folder in ("recipes", "studies"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(BLOCKS).replace('"recipes/digits.yaml")', f'"recipes/digits.yaml", set={SHORT})')
    code = code.replace("fast=True,", f"axes={{'sparsity-1.amount': [0.8]}}, overrides={SHORT}, seeds=[0],")
    names: dict[str, object] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["softer"] != names["small"]
    assert (tmp_path / "dist" / "digits" / "report.html").is_file()
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
