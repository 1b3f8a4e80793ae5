"""What only a GPU can show; the same bodies run on the CPU with small numbers, where no time is judged."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import make

from tersor.export.bundle.manifest import Artifact
from tersor.export.bundle.recommendation import recommend
from tersor.export.forms.fp16 import to_fp16
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.benchmark import benchmark
from tersor.export.timing.device import Bound, open_bound
from tersor.export.timing.parity import bound, max_abs_diff
from tersor.export.timing.providers import TARGETS, open_session, provider_options
from tersor.models.network import Network
from tersor.pipeline.accuracy.evaluate import Images
from tersor.pipeline.recipe.recipe import Structure
from tersor.pipeline.structure.stage import prune_channels

GPU = pytest.mark.gpu
SMALL, LARGE = ("mnist", (1, 28, 28), 2), ("resnet18", (3, 224, 224), 32)
Size = tuple[str, tuple[int, int, int], int]
"""Network, shape of an image, batch."""
Files = Callable[[str, tuple[int, int, int]], dict[str, Path]]


HALVED = Structure.model_validate(
    {"stage": "structure", "sparsity": 0.5, "pruner": "l1norm", "reestimate_batch_norm": False}
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Files of a network: itself, in half precision with both kinds of inputs, and of half its channels."""

    @functools.cache
    def made(name: str, shape: tuple[int, int, int]) -> dict[str, Path]:
        """Once for each."""
        return write_files(tmp_path_factory.mktemp(name), name, shape)

    return made


def write_files(folder: Path, name: str, shape: tuple[int, int, int]) -> dict[str, Path]:
    network: Network = make(name, shape)
    paths = {name: folder / f"{name}.onnx" for name in ("base", "half", "halfio", "pruned")}
    export_onnx(network, paths["base"])
    images = Images(torch.zeros(4, *shape), torch.zeros(4, dtype=torch.int64))
    export_onnx(prune_channels(network, HALVED, images, lambda *_: None)[0], paths["pruned"])
    to_fp16(paths["base"], paths["half"])
    to_fp16(paths["base"], paths["halfio"], half_inputs=True)
    return paths


def ours_ms(path: Path, feed: np.ndarray, target: str) -> float:
    run: Bound = open_bound(path, {"input": feed}, target)
    return float(np.median([run.device_ms(20) for _ in range(15)]))


def plain_ms(path: Path, feed: np.ndarray, target: str) -> float:
    """A script with IO binding and a CUDA graph, as one writes it without us."""
    import time

    import onnxruntime

    device = "cpu" if target == "cpu" else "cuda"
    provider = (TARGETS[target], provider_options(target, graph=True))
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=[provider])
    binding, kind = session.io_binding(), feed.dtype
    values = [
        onnxruntime.OrtValue.ortvalue_from_numpy(feed.copy(), device, 0),
        onnxruntime.OrtValue.ortvalue_from_shape_and_type([len(feed), 10], kind, device, 0),
    ]
    binding.bind_ortvalue_input("input", values[0])
    binding.bind_ortvalue_output(session.get_outputs()[0].name, values[1])
    times = []
    for _ in range(105):
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times[5:]))


@pytest.mark.parametrize(
    ("target", "size"), [("cpu", SMALL), pytest.param("cuda", LARGE, marks=GPU)], ids=["cpu", "cuda"]
)
def test_ratios_of_half_files_and_of_a_pruned_one_are_those_of_a_plain_script(
    target: str, size: Size, files: Files
) -> None:
    name, shape, batch = size
    paths = files(name, shape)
    feed = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    feeds = {"base": feed, "half": feed, "halfio": feed.astype(np.float16), "pruned": feed}
    ours = {name: ours_ms(paths[name], feeds[name], target) for name in paths}
    plain = {name: plain_ms(paths[name], feeds[name], target) for name in paths}
    assert all(np.isfinite([*ours.values(), *plain.values()]))
    if target != "cpu":
        for name in ("half", "halfio", "pruned"):
            assert ours["base"] / ours[name] == pytest.approx(plain["base"] / plain[name], rel=0.05)
            assert ours["base"] > ours[name]


@pytest.mark.parametrize(
    ("target", "size"), [("cpu", SMALL), pytest.param("cuda", LARGE, marks=GPU)], ids=["cpu", "cuda"]
)
def test_the_file_recommended_is_the_fastest_where_it_runs(target: str, size: Size, files: Files) -> None:
    name, shape, batch = size
    paths = files(name, shape)
    seconds = 0.02 if target == "cpu" else 1.0
    timed = benchmark(paths, target, baseline="base", batches=(batch,), seconds_per_model=seconds, force=True)
    entries = [
        Artifact(path.name, "fp32", 1, "", latency=tuple(r for r in timed.rows if r.file == name))
        for name, path in paths.items()
    ]
    (chosen,) = recommend(entries, [target], [batch], default="base.onnx")
    fastest = max(timed.rows, key=lambda row: row.decisive[1])
    taken = next(row for row in timed.rows if f"{row.file}.onnx" == chosen.file)
    if target != "cpu":
        assert all(row.device_p50_ms is not None for row in timed.rows)
        assert taken.decisive[2] >= fastest.decisive[0], "none is faster beyond the noise"
        assert chosen.file != "base.onnx"


@pytest.mark.parametrize("target", ["cpu", *(pytest.param(t, marks=GPU) for t in ("cuda", "tensorrt"))])
@pytest.mark.parametrize("name", ["half", "halfio"])
def test_half_files_hold_their_bound_where_they_run(target: str, name: str, files: Files) -> None:
    paths = files(*SMALL[:2])
    inputs = np.random.default_rng(1).standard_normal((4, *SMALL[1]), np.float32)
    expected = open_session(paths["base"], "cpu").run(None, {"input": inputs})[0]
    session = open_session(paths[name], target)
    assert max_abs_diff(session, inputs, expected, batches=(4,)) <= bound("fp16", expected)
