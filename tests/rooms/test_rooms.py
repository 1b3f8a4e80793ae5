"""The house: imports go one way, NNI has one room, the codec knows no torch, files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("models", "export", "pipeline")
FILES = [f for room in ROOMS for f in sorted((ROOT / room).rglob("*.py"))]
MAY_IMPORT = {"models": {"models"}, "export": {"models", "export"}, "pipeline": set(ROOMS)}
CORE = {"numpy", "onnx", "numba", "typer", "rich", "tersor", "onnxruntime"}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything a file imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 40


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    for name in imports(ast.parse(file.read_text())):
        parts = name.split(".")
        assert parts[0] not in ROOMS, f"{name}: import it as tersor.{name}"
        if parts[0] == "tersor" and len(parts) > 1 and parts[1] in ROOMS:
            assert parts[1] in MAY_IMPORT[room], f"{room} may not import {name}"
        assert parts[0] != "nni" or file.name == "nni_room.py", f"{file.name} imports nni"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_stay_small(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name}: {length} lines"


@pytest.mark.parametrize(
    "module",
    ["tersor.export.codec.pack", "tersor.export.bundle.verify", "tersor.export.timing.benchmark",
     "tersor.export.bundle.folder",
     "tersor.pipeline.cli.main", "tersor.pipeline.shipping.recheck"],
)  # fmt: skip
def test_what_a_consumer_needs_imports_with_the_core_alone(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'nni', 'sklearn', 'pydantic', 'safetensors', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        f"import {module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, tersor.pipeline.cli.main\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'numba', 'nni', 'pydantic', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
