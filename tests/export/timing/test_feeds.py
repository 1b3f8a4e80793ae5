"""What models are fed: any number of inputs of any element type, the same for every file; else words."""

from types import SimpleNamespace

import numpy as np
import pytest

from tersor.errors import BadInput
from tersor.export.timing import feeds
from tersor.export.timing.feeds import check_runs, check_same, described, feed, parse_shape


def model(*inputs):
    """A session with inputs of (name, element type, shape)."""
    entries = [SimpleNamespace(name=n, type=f"tensor({t})", shape=list(s)) for n, t, s in inputs]
    return SimpleNamespace(get_inputs=lambda: entries)


IMAGE = ("input", "float", ("batch", 3, 8, 8))


def test_every_input_is_fed_and_the_free_first_dimension_is_the_batch():
    fed = feed(model(IMAGE, ("scale", "double", ("batch", 1)), ("flag", "bool", ())), 4)
    assert {name: (array.shape, array.dtype.name) for name, array in fed.items()} == {
        "input": ((4, 3, 8, 8), "float32"),
        "scale": ((4, 1), "float64"),
        "flag": ((), "bool"),
    }


@pytest.mark.parametrize("kind", feeds.ELEMENTS)
def test_every_element_type_is_made_and_varies(kind):
    fed = feed(model(("x", kind[7:-1], (None, 50))), 2)["x"]
    assert fed.dtype == feeds.ELEMENTS[kind]
    assert len(np.unique(fed)) > 1
    assert np.isfinite(fed.astype(np.float64)).all()


def test_integers_are_0_and_1_which_any_table_holds_and_bytes_are_pixels():
    assert set(np.unique(feed(model(("x", "int64", (None, 99))), 2)["x"])) == {0, 1}
    assert feed(model(("x", "uint8", (None, 99))), 9)["x"].max() > 250


def test_all_files_get_the_same_values():
    one, other = (feed(model((name, "float", ("n", 3, 8, 8))), 2) for name in ("a", "b"))
    assert np.array_equal(one["a"], other["b"])


def test_given_images_are_repeated_to_fill_the_batch_and_cast(make_images):
    fed = feed(model(("x", "float16", ("n", 1, 8, 8))), 7, inputs=make_images(count=3))["x"]
    assert fed.shape == (7, 1, 8, 8)
    assert np.array_equal(fed[3:6], make_images(count=3).astype(np.float16))


FREE = ("x", "float", ("batch", 3, "height", "width"))


def test_free_height_and_width_are_asked_for_never_made_one():
    with pytest.raises(BadInput) as told:
        feed(model(FREE), 1)
    assert "x of batchx3xheightxwidth" in str(told.value)
    assert "--shape x=1x3x224x224" in str(told.value)


@pytest.mark.parametrize("name", ["x", ""])
def test_a_shape_that_is_said_is_used_with_the_batch_that_is_timed(name):
    assert feed(model(FREE), 4, {name: (1, 3, 32, 48)})["x"].shape == (4, 3, 32, 48)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"": (1, 1, 32, 32)}, "the shape does not fit the input"),
        ({"": (1, 3, 32)}, "the shape does not fit the input"),
        ({"y": (1, 3, 32, 32)}, "an input that the model does not have"),
        ({"": (1, 3, 10**6, 10**6)}, "an input would be too large"),
    ],
)
def test_a_shape_that_cannot_be_is_told(shapes, words):
    with pytest.raises(BadInput, match=words):
        feed(model(FREE), 1, shapes)


def test_a_fixed_batch_is_not_timed_at_another():
    with pytest.raises(BadInput, match="batch size is fixed. Got batch 4. .* with --batch 2"):
        feed(model(("x", "float", (2, 3))), 4)
    assert feed(model(("x", "float", (2, 3)), ("y", "float", (5,))), 2)["y"].shape == (5,)


@pytest.mark.parametrize("kind", ["string", "bfloat16", "complex64"])
def test_an_input_type_that_cannot_be_made_is_named(kind):
    with pytest.raises(BadInput, match=rf"input of this type cannot be made. Got x of tensor\({kind}\)"):
        feed(model(("x", kind, (1, 3))), 1)


def test_a_file_without_inputs_is_told():
    with pytest.raises(BadInput, match="the model has no inputs"):
        feed(model(), 1)


def test_files_of_different_inputs_are_not_compared():
    feeds_ = {"a.onnx": feed(model(IMAGE), 1), "b.onnx": feed(model(("x", "float", ("n", 3, 9, 9))), 1)}
    with pytest.raises(BadInput, match="Got 1x3x9x9 in b.onnx. Wanted 1x3x8x8, as in a.onnx"):
        check_same(feeds_)
    check_same({"a": feed(model(IMAGE), 1), "b": feed(model(("x", "float16", ("n", 3, 8, 8))), 1)})


def test_inputs_that_do_not_fit_are_told_in_words(plain_onnx):
    from tersor.export.timing.providers import open_session

    session = open_session(plain_onnx, "cpu")
    with pytest.raises(BadInput, match="inputs do not fit the model. Got 1x2x8x8"):
        check_runs(session, {"input": np.zeros((1, 2, 8, 8), np.float32)})


def test_what_was_fed_is_said_in_words():
    fed = feed(model(IMAGE, ("ids", "int64", (1, 5)), ("pixels", "uint8", (1, 2))), 2)
    assert described(fed, True) == (
        "input: float32 2x3x8x8, given images; ids: int64 1x5, 0 and 1; pixels: uint8 1x2, bytes"
    )
    assert described(fed, False).startswith("input: float32 2x3x8x8, noise")


def test_a_shape_is_read_with_or_without_a_name():
    assert parse_shape("input=1x3x224x224") == ("input", (1, 3, 224, 224))
    assert parse_shape("1x3x8x8") == ("", (1, 3, 8, 8))
    assert parse_shape("a=b=2x3") == ("a=b", (2, 3))


@pytest.mark.parametrize("text", ["", "x=", "x=1x", "x=0x3", "x=1,3", "-1x3", "1x3x99999999999"])
def test_what_is_no_shape_is_told(text):
    with pytest.raises(BadInput, match="this is no shape of an input"):
        parse_shape(text)
