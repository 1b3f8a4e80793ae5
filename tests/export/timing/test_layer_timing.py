"""One layer's kernel time: right models, right counts, and times that grow with the work."""

import numpy as np
import pytest
from onnx import checker, load_from_string

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


def test_sixteen_times_the_work_takes_longer() -> None:
    small, large = (LayerShape(w, w, (3, 3), (1, 1), (1, 1), size=(32, 32)) for w in (16, 64))
    times = time_layers([small, large, small])
    assert set(times) == {small, large}
    assert 0 < times[small] < times[large]


def test_progress_ends_at_one() -> None:
    seen: list[float] = []
    time_layers([DENSE], progress=seen.append)
    assert seen[-1] == pytest.approx(1.0)
    assert seen == sorted(seen)


def test_node_times_name_every_kind_of_node() -> None:
    found = node_times(layer_model(CONV), runs=5)
    assert "Conv" in {kind for kind, _ in found.values()} or "FusedConv" in {k for k, _ in found.values()}
    assert all(ms >= 0 for _, ms in found.values())
