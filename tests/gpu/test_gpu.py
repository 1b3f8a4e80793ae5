"""What only a GPU can show; the same bodies run on the CPU with small numbers, where no time is judged."""

from pathlib import Path

import numpy as np
import pytest
from nets import make

from tersor.export.forms.fp16 import to_fp16
from tersor.export.forms.to_onnx import export_onnx
from tersor.export.timing.device import Bound, open_bound
from tersor.export.timing.parity import bound, max_abs_diff
from tersor.export.timing.providers import TARGETS, open_session, provider_options
from tersor.models.network import Network

GPU = pytest.mark.gpu
SMALL, LARGE = ((3, 32, 32), 2), ((3, 224, 224), 32)


def files(folder: Path, shape: tuple[int, int, int]) -> dict[str, Path]:
    """A ResNet-18, and its half-precision files."""
    network: Network = make("resnet18", shape)
    paths = {name: folder / f"{name}.onnx" for name in ("base", "half", "halfio")}
    export_onnx(network, paths["base"])
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
def test_the_ratio_of_half_to_float_is_that_of_a_plain_script(
    target: str, size: tuple[tuple[int, int, int], int], tmp_path: Path
) -> None:
    shape, batch = size
    paths = files(tmp_path, shape)
    feed = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
    feeds = {"base": feed, "half": feed, "halfio": feed.astype(np.float16)}
    ours = {name: ours_ms(paths[name], feeds[name], target) for name in paths}
    plain = {name: plain_ms(paths[name], feeds[name], target) for name in paths}
    assert all(np.isfinite([*ours.values(), *plain.values()]))
    if target != "cpu":
        for name in ("half", "halfio"):
            assert ours["base"] / ours[name] == pytest.approx(plain["base"] / plain[name], rel=0.05)
            assert ours["base"] > ours[name]


@pytest.mark.parametrize("target", ["cpu", *(pytest.param(t, marks=GPU) for t in ("cuda", "tensorrt"))])
@pytest.mark.parametrize("name", ["half", "halfio"])
def test_half_files_hold_their_bound_where_they_run(target: str, name: str, tmp_path: Path) -> None:
    paths = files(tmp_path, SMALL[0])
    inputs = np.random.default_rng(1).standard_normal((4, *SMALL[0]), np.float32)
    expected = open_session(paths["base"], "cpu").run(None, {"input": inputs})[0]
    session = open_session(paths[name], target)
    assert max_abs_diff(session, inputs, expected, batches=(4,)) <= bound("fp16", expected)
