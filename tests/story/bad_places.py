"""Folders and disks that cannot be written, targets that are not there, broken gates, diverged training."""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from story.cases import QUICK, Case, Prepare, compress, deploy, read_only, train
from story.harness import tiny_recipe, write_recipe

NEW = {"stages": train(), "seed": 5}
"""A recipe of which nothing is cached."""

FULL = {"file_limit_bytes": 16_384}
"""As on a full disk: no file gets larger. The tiny network's files need 200 kB, messages much less."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run as another process would."""
    with (folder / "runs/tiny/.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_at(name: str, prepare: Prepare) -> Prepare:
    """`prepare`, after a file was put where a folder should be."""

    def first_write(folder: Path) -> Sequence[object]:
        (folder / name).write_text("I was here first")
        return prepare(folder)

    return first_write


def study(content: dict[str, Any], **changes: Any) -> Prepare:
    """Run a study of two points of a changed tiny recipe."""

    def prepare(folder: Path) -> Sequence[object]:
        recipe = write_recipe(folder, tiny_recipe(**changes)).name
        axes = {"sparsity.amount": [0.5, 1.0]}
        told = {"name": "grid", "recipe": recipe, "workers": 1, "axes": axes, **content}
        (folder / "grid.yaml").write_text(yaml.safe_dump(told))
        return ["study", "grid.yaml"]

    return prepare


def trained_on_a_gpu(*arguments: object) -> Prepare:
    """A command on the finished run, which now says that it was trained on a GPU."""

    def prepare(folder: Path) -> Sequence[object]:
        path = folder / "runs/tiny/recipe.yaml"
        text = path.read_text()
        assert "device: cpu" in text
        path.write_text(text.replace("device: cpu", "device: cuda"))
        return arguments

    return prepare


def scenario_on(target: str, name: str, *more: object) -> Prepare:
    """A scenario of the bundle's first file."""
    return lambda _: ["benchmark", "dist/tiny/baseline.onnx", "--target", target, "--scenario", name, *more]


NO_GPU = "machine with an NVIDIA GPU"
GPU = [
    Case(
        "GPU required but not there",
        4,
        ("target 'cuda' is required but cannot be timed", "Got ", "Where: --require"),
        deploy("--require", "cuda"),
    ),
    Case(
        "TensorRT required but not there",
        4,
        ("target 'tensorrt' is required but cannot be timed", "TensorRT 10", "Where: --require"),
        deploy("--require", "tensorrt"),
    ),
    Case(
        "no GPU for the only target of deploy",
        4,
        ("nothing can be timed here, 'cuda'", NO_GPU, "setting `deploy.targets`", "Add 'cpu'"),
        deploy(deploy={**QUICK, "targets": ["cuda"]}),
    ),
    Case(
        "no GPU for all targets of deploy",
        4,
        ("'cuda' and 'tensorrt' not being available", "tensorrt: ", "Add 'cpu'"),
        deploy(deploy={**QUICK, "targets": ["cuda", "tensorrt"]}),
    ),
    Case(
        "benchmark on a GPU that is not there",
        4,
        ("target 'cuda' is not available", NO_GPU),
        lambda _: ["benchmark", "dist/tiny/baseline.onnx", "dist/tiny/model.onnx", "--target", "cuda"],
    ),
    Case(
        "benchmark with TensorRT that is not there",
        4,
        ("target 'tensorrt' is not available", "TensorRT 10", NO_GPU),
        lambda _: ["benchmark", "dist/tiny/baseline.onnx", "--target", "tensorrt"],
    ),
    *(
        Case(
            f"scenario {name} on {target} that is not there",
            4,
            (f"target '{target}' is not available", NO_GPU),
            scenario_on(target, name, *more),
        )
        for name, target, more in (
            ("single-stream", "cuda", ()),
            ("offline", "tensorrt", ()),
            ("server", "cuda", ("--p99-ms", 10)),
        )
    ),
    Case(
        "study timed on a GPU that is not there",
        4,
        ("nothing can be timed here, 'cuda'", NO_GPU, "`latency.target` of the study"),
        study({"latency": {"target": "cuda"}}),
    ),
    Case(
        "study that trains on a GPU that is not there",
        4,
        ("the recipe trains on `cuda`, which is not there", "setting `device`", "Set device=cpu"),
        study({}, device="cuda"),
    ),
    Case(
        "lesson that trains on a GPU that is not there",
        4,
        ("the recipe trains on `cuda`, which is not there", "setting `device`", NO_GPU),
        trained_on_a_gpu("lesson", "shrink", "runs/tiny", "--layers", "fc1", "--widths", "fc1=1"),
    ),
    Case(
        "training on a GPU that is not there",
        4,
        ("the recipe trains on `cuda`, which is not there", "setting `device`", "Set device=cpu"),
        compress(**NEW, device="cuda"),
    ),
]
"""Every verb that trains or times on a GPU; the others run on the CPU whatever the recipe says."""


CASES = [
    *GPU,
    Case(
        "run held by another process: compress",
        75,
        ("another process is working on run 'tiny'", "runs/tiny/.lock", "Wait for it"),
        compress(),
        around=locked,
    ),
    Case(
        "run held by another process: deploy",
        75,
        ("another process is working on run 'tiny'", "runs/tiny/.lock", "Wait for it"),
        deploy(),
        around=locked,
    ),
    Case(
        "runs folder read-only",
        4,
        ("may not be written", "Permission denied", "runs", "choose another"),
        compress("--set", "name=other"),
        around=lambda f: read_only(f / "runs"),
    ),
    Case(
        "run folder read-only",
        4,
        ("may not be written", "Permission denied", "runs/tiny/.new", "choose another"),
        compress(),
        around=lambda f: read_only(f / "runs/tiny"),
    ),
    Case(
        "stage cache read-only",
        4,
        ("may not be written", "Permission denied", "runs/.stages", "choose another"),
        compress(**NEW),
        around=lambda f: read_only(f / "runs/.stages"),
    ),
    Case(
        "bundles folder read-only",
        4,
        ("cannot be written", "Permission denied", "dist/tiny", "choose another folder"),
        deploy(deploy=QUICK),
        around=lambda f: read_only(f / "dist"),
    ),
    Case(
        "unpack into a read-only folder",
        4,
        ("cannot write the file", "Permission denied", "Where: dist/out.onnx"),
        lambda _: ["unpack", "dist/tiny/model.tsr", "dist/out.onnx"],
        around=lambda f: read_only(f / "dist"),
    ),
    Case(
        "report of a read-only bundle",
        4,
        ("cannot be written", "Permission denied", "dist/tiny"),
        lambda _: ["report", "dist/tiny"],
        around=lambda f: read_only(f / "dist"),
    ),
    Case(
        "a file where the runs folder should be",
        4,
        ("a file stands where a folder should be", "elsewhere", "choose another"),
        file_at("elsewhere", compress("--runs", "elsewhere")),
    ),
    Case(
        "a file where the bundles folder should be",
        4,
        ("cannot be written", "elsewhere/tiny", "another folder"),
        file_at("elsewhere", deploy("--dist", "elsewhere", deploy=QUICK)),
    ),
    Case(
        "a file where the bundle should be",
        4,
        ("something else stands", "Got a file", "Where: elsewhere/tiny", "another folder"),
        lambda f: [(f / "elsewhere").mkdir(), file_at("elsewhere/tiny", deploy("--dist", "elsewhere"))(f)][1],
    ),
    Case(
        "somebody's folder where the bundle should be",
        4,
        ("something else stands", "without a manifest.json", "Where: runs/tiny", "another folder"),
        deploy("--dist", "runs"),
    ),
    Case(
        "a place the system refuses",
        4,
        ("/sys/tersor", "another"),
        compress("--runs", "/sys/tersor"),
    ),
    Case(
        "a place that cannot exist",
        4,
        ("/proc/tersor", "another"),
        compress("--runs", "/proc/tersor"),
    ),
    Case(
        "full disk: training",
        4,
        ("a file would grow past the limit", "runs/.stages", "run again"),
        compress(**NEW),
        options=FULL,
    ),
    Case(
        "full disk: deploy",
        4,
        ("File too large", "tiny"),
        deploy(),
        options=FULL,
    ),
    Case(
        "full disk: unpack",
        4,
        ("cannot write the file; nothing was changed", "File too large", "Where: dist/tiny/model.onnx"),
        lambda _: ["unpack", "dist/tiny/model.tsr", "dist/tiny/model.onnx"],
        options=FULL,
    ),
    Case(
        "unknown target required",
        2,
        ("'cuba'", "cpu, cuda"),
        deploy("--require", "cuba"),
    ),
    Case(
        "gate broken: bytes",
        3,
        ("max_bytes: model.tsr has", "the limit is 100", "too much", "gates of tiny", "runs/tiny/rejected"),
        deploy(deploy=QUICK, gates={"max_bytes": 100}),
        may_add=("runs/tiny/rejected/*",),
    ),
    Case(
        "gate broken: accuracy",
        3,
        ("max_accuracy_drop: model", "the limit is 0.0 (", "too much", "nothing was shipped"),
        deploy(deploy=QUICK, gates={"max_accuracy_drop": 0.0}),
        may_add=("runs/tiny/rejected/*",),
    ),
    Case(
        "gate broken: latency",
        3,
        ("max_latency_ms: ", "the limit is 1e-09 (", "too much", "nothing was shipped"),
        deploy(deploy=QUICK, gates={"max_latency_ms": 1e-9}),
        may_add=("runs/tiny/rejected/*",),
    ),
    Case(
        "gate broken: difference to torch",
        3,
        ("max_abs_diff: ", "the limit is 1e-12 (", "too much", "nothing was shipped"),
        deploy(deploy=QUICK, gates={"max_abs_diff": 1e-12}),
        may_add=("runs/tiny/rejected/*",),
    ),
    Case(
        "training diverges",
        1,
        ("training diverged", "epoch 1, batch", "Lower learning_rate (now 1e+09)"),
        compress("--set", "train.learning_rate=1e9", "--set", "seed=6"),
    ),
    Case(
        "fine-tuning diverges",
        1,
        ("training diverged", "Lower learning_rate (now 1e+30)"),
        compress("--set", "tune-sharing.learning_rate=1e30", "--set", "tune-sharing.epochs=2"),
    ),
]
