"""The house: packages in one order, no rings of files, each foreign library in its one room."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("models", "export", "pipeline")
GROUND = sorted((ROOT / "src" / "tersor").glob("*.py"))
FILES = [*GROUND, *(f for room in ROOMS for f in sorted((ROOT / room).rglob("*.py")))]

ORDER = (
    "version", "errors", "progress", "machine", "files", "records",
    "models",
    "export.codec", "export.forms", "export.timing", "export.bundle",
    "pipeline.recipe", "pipeline.data", "pipeline.show", "pipeline.accuracy", "pipeline.weights",
    "pipeline.structure", "pipeline.training", "pipeline.stages", "pipeline.run", "pipeline.shipping",
    "pipeline.deploy", "pipeline.study", "pipeline.lessons", "pipeline.reports", "pipeline.cli",
    "artifacts", "door", "stages",
)  # fmt: skip
"""A package imports only from itself and from those before it."""

ONE_ROOM = {
    "nni": "pipeline/structure/nni_room.py",
    "ray": "pipeline/study/ray_cluster.py",
    "mlflow": "pipeline/study/tracking.py",
    "optuna": "pipeline/study/optuna_search.py",
    "joblib": "pipeline/study/engine.py",
    "jinja2": "pipeline/show/html.py",
    "matplotlib": "pipeline/show/picture.py",
    "onnxscript": "export/forms/to_onnx.py",
    "mlperf_loadgen": "export/timing/loadgen.py",
    "openvino": "export/timing/openvino_peer.py",
    "typer": "pipeline/cli/",
}
"""Foreign library -> the file or folder that may import it."""


def name_of(file: Path) -> str:
    """The dotted name below `tersor`, that of the package for its `__init__`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[2:] if parts[0] == "src" else parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {name_of(f): f for f in FILES}


def place_of(name: str) -> int:
    """Where a file stands in the order."""
    fits = [i for i, room in enumerate(ORDER) if name == room or name.startswith(f"{room}.")]
    assert fits, f"{name} stands in no package of the order"
    return fits[0]


@cache
def imports(file: Path) -> tuple[str, ...]:
    """Dotted names of everything a file imports, wherever the import stands, for types only too."""
    return tuple(_imports(ast.parse(file.read_text())))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The files of ours that a file imports, less the package it stands in."""
    ours = {i.removeprefix("tersor.") for i in imports(NAMES[name]) if i.startswith("tersor.")} & set(NAMES)
    return {o for o in ours if NAMES[o].name != "__init__.py"} - {name}


ORDERED = [n for n in NAMES if NAMES[n].name not in ("__init__.py", "__main__.py")]


def test_there_is_something_to_check() -> None:
    assert len(ORDERED) > 120
    assert {place_of(name) for name in ORDERED} == set(range(len(ORDER)))


@pytest.mark.parametrize("name", ORDERED)
def test_a_package_imports_only_from_packages_before_it(name: str) -> None:
    against = [other for other in own_imports(name) if place_of(other) > place_of(name)]
    assert not against, f"{name} may not import {against}: see ORDER"
    bare = [i for i in imports(NAMES[name]) if i.split(".")[0] in ROOMS]
    assert not bare, f"{bare}: import it as tersor.x"
    assert "tersor" not in imports(NAMES[name]), "a room imports from rooms, not from the door"


def test_no_ring_of_files() -> None:
    left = {name: own_imports(name) for name in ORDERED}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"these import each other, or from those that do: {sorted(left)}"


@pytest.mark.parametrize("library", ONE_ROOM)
def test_a_foreign_library_stays_in_its_room(library: str) -> None:
    users = {str(f.relative_to(ROOT)) for f in FILES if any(i.split(".")[0] == library for i in imports(f))}
    assert users, f"nothing imports {library}"
    assert all(user.startswith(ONE_ROOM[library]) for user in users), users


@pytest.mark.parametrize("file", (ROOT / "export" / "codec").glob("*.py"), ids=lambda f: f.name)
def test_the_codec_knows_bytes_numpy_and_numba_and_nothing_else(file: Path) -> None:
    foreign = {i.split(".")[0] for i in imports(file)} - set(sys.stdlib_module_names) - {"tersor"}
    assert foreign <= {"numpy", "numba"}


def test_no_folder_is_a_heap() -> None:
    folders: dict[Path, int] = {}
    for file in FILES:
        folders[file.parent] = folders.get(file.parent, 0) + (file.name != "__init__.py")
    assert max(folders.values()) <= 25, max(folders, key=lambda f: folders[f])


@pytest.mark.parametrize(
    "package",
    sorted({f.parent for f in FILES if f.parent.name != "tersor"}),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_every_package_says_what_belongs_in_it(package: Path) -> None:
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    text = (package / "README.md").read_text()
    for word in ("Enters", "Leaves", "Imports", "Never"):
        assert f"**{word}**" in text, f"{package.name}/README.md does not say: {word}"
    for file in package.glob("*.py"):
        assert file.stem in ("__init__", "__main__") or f"`{file.stem}" in text or f"{file.stem}`" in text, (
            file.name
        )


def test_every_public_function_class_and_method_has_a_docstring() -> None:
    bare = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            defined = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if defined and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not bare


@pytest.mark.parametrize(
    "module",
    [
        "tersor.export.codec.pack",
        "tersor.export.bundle.verify",
        "tersor.export.timing.benchmark",
        "tersor.export.bundle.folder",
        "tersor.pipeline.cli.main",
        "tersor.pipeline.shipping.recheck",
        "tersor.pipeline.lessons.scenarios_run",
    ],
)
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
