"""A convolution as a product is the same convolution, and only what is the same is timed."""

import pytest
import torch
from nets import make
from torch import nn

from tersor.errors import BadInput, ClaimBroken
from tersor.pipeline.lessons import gemm as gemm_lesson
from tersor.pipeline.lessons.convolution_product import GemmConv2d, as_products
from tersor.pipeline.lessons.gemm import check_same, lesson_markdown, max_difference, r3_network, run_lesson


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 5), "padding": (0, 2), "dilation": (2, 1), "bias": False},
        {"kernel_size": 1, "stride": (1, 3)},
    ],
)
def test_it_computes_the_convolution(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, **settings)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 13, 11)
    with torch.no_grad():
        assert torch.allclose(GemmConv2d(convolution)(images), convolution(images), atol=1e-5)


@pytest.mark.parametrize("settings", [{"groups": 2}, {"padding": "same"}, {"padding_mode": "reflect"}])
def test_what_is_no_single_product_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="cannot be written as one matrix product. Got groups"):
        GemmConv2d(nn.Conv2d(4, 4, 3, **settings))  # type: ignore[arg-type]


def test_a_whole_network_keeps_its_logits() -> None:
    network = make("resnet20", (3, 32, 32))
    module, images = network.module(), torch.randn(2, 3, 32, 32)
    assert as_products(module) == sum(isinstance(m, nn.Conv2d) for m in network.module().modules())
    with torch.no_grad():
        assert torch.allclose(module(images), network.module()(images), atol=1e-4)


def test_every_part_and_way_has_a_row() -> None:
    threads = torch.get_num_threads()
    found = run_lesson(None, batch=2, threads=1, seconds=0.01, quiet=True)
    torch.set_num_threads(threads)
    assert [lesson.part for lesson in found] == ["network", "conv1", "conv2"]
    for lesson in found:
        assert lesson.rows[0].file == "Conv2d"
        assert max(lesson.max_abs_diff.values()) <= 1e-4
        assert {"unfold + matmul", "ONNX Runtime"} <= {row.file for row in lesson.rows}
    # every pixel of conv2's 8 x 26 x 26 inputs becomes 9 of 8 x 9 x 24 x 24
    assert found[2].column_bytes == 2 * 8 * 9 * 24 * 24 * 4
    assert found[2].input_bytes == 2 * 8 * 26 * 26 * 4
    text = lesson_markdown(found)
    assert "R3: 2.99 s against 1.62 s" in text
    assert text.count("| conv2 |") == 5


def test_ways_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GemmConv2d, "product", lambda self, columns: self.of.weight.flatten(1) @ columns + 1)
    monkeypatch.setattr(gemm_lesson, "time_calls", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(ClaimBroken, match=r"unfold \+ matmul does not compute.*lesson gemm, network"):
        run_lesson(None, batch=2, threads=1, seconds=0.01, quiet=True)


def test_nan_and_other_shapes_are_no_match() -> None:
    one = torch.zeros(2, 3)
    assert max_difference(one, torch.zeros(3, 2).numpy()) == float("inf")
    with pytest.raises(ClaimBroken, match="differs by nan"):
        check_same("conv1", {"ONNX Runtime": float("nan")})


def test_r3s_network_has_its_shapes() -> None:
    assert r3_network().tensors["fc1.weight"].shape == (100, 8 * 24 * 24)
