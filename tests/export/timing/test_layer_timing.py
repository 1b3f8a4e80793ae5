"""One layer's kernel time: right models, right counts, and of the profile what is the layer's."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import checker, load_from_string

from tersor.export.timing import layer_timing
from tersor.export.timing.layer_timing import LayerShape, layer_model, node_times, time_layers
from tersor.export.timing.providers import open_session

CONV = LayerShape(16, 32, (3, 3), (2, 2), (1, 1), size=(16, 16))
DEEP = LayerShape(16, 16, (3, 3), (1, 1), (1, 1), groups=16, size=(8, 8))
DENSE = LayerShape(64, 10, linear=True)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("shape", "output"), [(CONV, (3, 32, 8, 8)), (DEEP, (3, 16, 8, 8)), (DENSE, (3, 10))]
)
def test_models_are_valid_and_have_the_layers_output(
    shape: LayerShape, output: tuple[int, ...], int8: bool
) -> None:
    model = layer_model(shape, int8=int8)
    checker.check_model(load_from_string(model), full_check=True)
    session = open_session(model, "cpu")
    size = () if shape.linear else shape.size
    image = np.ones((3, shape.inputs, *size), np.uint8 if int8 else np.float32)
    assert session.run(None, {"x": image})[0].shape == output


def test_macs_are_those_of_the_formula() -> None:
    assert CONV.macs == 16 * 32 * 9 * 8 * 8
    assert DEEP.macs == 16 * 9 * 8 * 8
    assert DENSE.macs == 640


def test_keys_tell_shapes_apart() -> None:
    shapes = [CONV, DEEP, DENSE, LayerShape(10, 64, linear=True), LayerShape(10, 64)]
    assert len({shape.key() for shape in shapes}) == len(shapes)


class Traced:
    """A session whose profile tells microseconds that were given: the kernel's, run after run, cyclically."""

    def __init__(self, trace: Path, kernel_us: list[int]) -> None:
        self.trace, self.kernel_us, self.runs = trace, kernel_us, 0

    def get_inputs(self) -> list[SimpleNamespace]:
        """One, of 16 channels."""
        return [SimpleNamespace(name="x", shape=["batch", 16], type="tensor(float)")]

    def run(self, *_: object) -> None:
        """One run, which takes no time."""
        self.runs += 1

    def end_profiling(self) -> str:
        """Write the trace as ONNX Runtime does: a copy and the kernel in each run, and the session itself."""
        events = [{"cat": "Session", "name": "model_run", "dur": 10**9}]
        for run in range(self.runs):
            kernel = self.kernel_us[run % len(self.kernel_us)]
            for name, kind, dur in (("copy", "ReorderInput", 7000), ("layer", "Conv", kernel)):
                event = {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": kind}}
                events += [event, {**event, "name": f"{name}_fence_before"}]
        self.trace.write_text(json.dumps(events))
        return str(self.trace)


def test_a_profile_has_the_kernels_of_all_runs_after_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = Traced(tmp_path / "trace", [100, 200, 300, 400])
    monkeypatch.setattr(layer_timing, "open_session", lambda *_, **__: traced)
    profile = layer_timing._profile(b"", 1, 1, lambda _: 5, tmp_path)
    assert {name: kind for name, (kind, _) in profile.items()} == {"copy": "ReorderInput", "layer": "Conv"}
    assert profile["copy"][1].tolist() == [7.0] * 5
    assert profile["layer"][1].tolist() == [0.4, 0.1, 0.2, 0.3, 0.4]
    assert not traced.trace.exists()


def test_a_layers_time_is_its_kernels_in_the_faster_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the copy beside it, nor a slow pass, nor a few slow runs among many count."""
    small, large = (LayerShape(w, w, (3, 3), (1, 1), (1, 1), size=(32, 32)) for w in (16, 64))
    passes = [[300], [*[1600] * 7, 9999], [*[100] * 7, 9999], [1601], [101]]
    traced = (Traced(tmp_path / "trace", kernel_us) for kernel_us in passes)
    monkeypatch.setattr(layer_timing, "open_session", lambda *_, **__: next(traced))
    times = time_layers([small, large, small])
    assert {shape: time.ms for shape, time in times.items()} == pytest.approx({small: 0.1, large: 1.6})
    assert next(traced, None) is None  # the small one's first two passes differed, so it had a third
    assert all(time.trusted for time in times.values())


def test_a_layer_that_never_takes_the_same_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = (Traced(tmp_path / "trace", [100 * 2**n]) for n in range(layer_timing.MOST_PASSES))
    monkeypatch.setattr(layer_timing, "open_session", lambda *_, **__: next(traced))
    (time,) = time_layers([DENSE]).values()
    assert (time.ms, time.second_ms) == pytest.approx((0.1, 0.2))
    assert not time.trusted


def test_memory_beside_a_layer_is_read_before_each_run(tmp_path: Path) -> None:
    read: list[int] = []

    class Memory:
        """Notes that it is read."""

        def max(self) -> None:
            """Read."""
            read.append(1)

    layer_timing._profile(layer_model(DENSE), 1, 1, lambda _: 5, tmp_path, [Memory()])  # type: ignore[list-item]
    assert len(read) == 5


def test_the_rest_is_the_run_less_its_layers_and_part_of_it_goes_with_the_activations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = {"a": ("QLinearConv", 1.0), "b": ("Add", 0.5), "c": ("MaxPool", 0.2), "d": ("Gemm", 0.25)}
    monkeypatch.setattr(layer_timing, "node_times", lambda *_, **__: nodes)
    monkeypatch.setattr(layer_timing, "processor_ms", lambda *_: {"run": 1.5})
    rest = layer_timing.rest_of(layer_model(DENSE))
    assert rest.scaled_ms == pytest.approx(0.3)  # of Add, what is more than the cheapest node
    assert rest.fixed_ms == pytest.approx(1.5 - 1.25 - 0.3)
    assert rest.at(0.5) == pytest.approx(rest.fixed_ms + 0.15)


def test_onnx_runtimes_profile_has_the_kernel_of_every_kind_of_layer() -> None:
    times = time_layers([CONV, DEEP, LayerShape(256, 256, linear=True)])
    assert len(times) == 3
    assert all(time.ms > 0 for time in times.values())


def test_progress_ends_at_one() -> None:
    seen: list[float] = []
    time_layers([DENSE], progress=seen.append)
    assert seen[-1] == pytest.approx(1.0)
    assert seen == sorted(seen)


def test_node_times_name_every_kind_of_node() -> None:
    times = node_times(layer_model(CONV), runs=5)
    assert "Conv" in {kind for kind, _ in times.values()} or "FusedConv" in {k for k, _ in times.values()}
    assert all(ms >= 0 for _, ms in times.values())
