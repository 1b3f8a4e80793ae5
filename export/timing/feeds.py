"""What a model is fed when it is timed: arrays for every input, the same values for every file."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tersor.errors import BadInput

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ELEMENTS: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(uint32)": np.uint32,
    "tensor(int64)": np.int64,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}
"""ONNX Runtime's name of an element type -> numpy's, for all types that an input can be made of."""
MOST_SHAPE_ELEMENTS = 2**31
"""Of one input: beyond it a slip of the pen would fill the memory."""


def feed(
    session: "InferenceSession",
    batch: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    inputs: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """An array for each input of a model: input name -> array.

    Args:
        session: the model.
        batch: size of the first dimension, where that is free.
        shapes: input name (or "" for the only input, or for all that fit) -> its whole shape; needed where
            other dimensions than the first are free. The first number is the batch where that is 1 in the
            file's terms: it gives way to `batch`.
        inputs: values (N, ...), repeated as needed to fill the batch, cast to the element type of the
            first input; None: noise for floats, 0 and 1 for integers and booleans, bytes of 0 to 255 for
            uint8. The same shape and type gives the same values in every file.

    Raises:
        BadInput: no inputs, an element type that cannot be made, a free dimension without a shape, a shape
            that does not fit.
    """
    entries = session.get_inputs()
    if not entries:
        raise BadInput("the model has no inputs", wanted="a model that is fed something", where="benchmark")
    shapes = shapes or {}
    unknown = set(shapes) - {""} - {entry.name for entry in entries}
    if unknown:
        raise BadInput(
            "a shape is given for an input that the model does not have",
            got=", ".join(sorted(unknown)),
            wanted=", ".join(entry.name for entry in entries),
            where="--shape",
        )
    fed = {}
    for index, entry in enumerate(entries):
        shape = _shape(entry, batch, shapes.get(entry.name, shapes.get("")), first=index == 0)
        kind = _element(entry)
        if index == 0 and inputs is not None:
            fed[entry.name] = np.ascontiguousarray(inputs[np.arange(shape[0]) % len(inputs)], kind)
        else:
            fed[entry.name] = _values(shape, kind, index)
    return fed


def described(fed: Mapping[str, np.ndarray], given: bool) -> str:
    """What was fed, in words.

    Args:
        fed: what `feed` made.
        given: whether the first input's values were given.
    """
    parts = []
    for index, (name, array) in enumerate(fed.items()):
        shape = "x".join(map(str, array.shape)) or "scalar"
        values = "given images" if given and index == 0 else _VALUES.get(array.dtype.kind, "0 and 1")
        parts.append(f"{name}: {array.dtype} {shape}, {'bytes' if array.dtype == np.uint8 else values}")
    return "; ".join(parts)


def check_runs(session: "InferenceSession", fed: Mapping[str, np.ndarray]) -> None:
    """Check that a model takes what it is fed, by a run.

    Raises:
        BadInput: it does not.
    """
    try:
        session.run(None, dict(fed))
    except Exception as error:  # ONNX Runtime has no common base class below Exception
        raise BadInput(
            "the inputs do not fit the model",
            got=_told([array.shape for array in fed.values()]),
            wanted=", ".join(f"{e.name} {e.type} of {_free(e.shape)}" for e in session.get_inputs()),
        ) from error


def check_same(feeds: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Check that all files take the same: as many inputs, of the same shapes (names and types may differ).

    Raises:
        BadInput: they do not.
    """
    shapes = {name: [array.shape for array in fed.values()] for name, fed in feeds.items()}
    first = next(iter(shapes), None)
    for name, own in shapes.items():
        if first is not None and own != shapes[first]:
            raise BadInput(
                "the files take inputs of different shapes, so their times cannot be compared",
                got=f"{_told(own)} in {name}",
                wanted=f"{_told(shapes[first])}, as in {first}",
                todo="Time files of one network against each other",
            )


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`name=1x3x224x224`, or `1x3x224x224` for the only input: its name ("" for the only one), the shape.

    Raises:
        BadInput: not of this form.
    """
    name, _, numbers = text.rpartition("=")
    if not re.fullmatch(r"[1-9]\d{0,9}(x[1-9]\d{0,9})*", numbers):
        raise BadInput(
            "this is no shape of an input",
            got=text,
            wanted="name=1x3x224x224, or 1x3x224x224 for the only input",
            where="--shape",
        )
    return name, tuple(map(int, numbers.split("x")))


_VALUES = {"f": "noise"}


def _told(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


def _shape(entry: Any, batch: int, given: Sequence[int] | None, *, first: bool) -> tuple[int, ...]:
    """The whole shape of an input; the first one's first dimension is the batch."""
    own = list(entry.shape)
    if given is not None:
        fits = len(given) == len(own) and all(
            not isinstance(o, int) or o == g for o, g in list(zip(own, given, strict=False))
        )
        if not fits:
            raise BadInput(
                "the shape does not fit the input",
                got="x".join(map(str, given)),
                wanted=f"{entry.name} of {_free(own)}",
                where="--shape",
            )
        own = [batch if not isinstance(own[0], int) else own[0], *given[1:]] if own else []
    elif own and not isinstance(own[0], int):
        own = [batch, *own[1:]]
    free = [d for d in own if not isinstance(d, int)]
    if free:
        raise BadInput(
            "an input has free dimensions beside the batch, so its size has to be said",
            got=f"{entry.name} of {_free(entry.shape)}",
            where="the model's inputs",
            todo=f"Say it, such as --shape {entry.name}=1x3x224x224",
        )
    if first and own and own[0] != batch:
        raise BadInput(
            "the file's batch size is fixed",
            got=f"batch {batch}",
            wanted=f"{entry.name} of {_free(entry.shape)}",
            todo=f"Time it with --batch {own[0]}, or export it with a free batch",
        )
    if int(np.prod(own, dtype=object)) > MOST_SHAPE_ELEMENTS:
        raise BadInput("an input would be too large", got=_told([tuple(own)]), where=entry.name)
    return tuple(own)


def _free(shape: Sequence[Any]) -> str:
    return "x".join(str(d) if d is not None else "?" for d in shape) or "a single value"


def _element(entry: Any) -> Any:
    if entry.type not in ELEMENTS:
        raise BadInput(
            "an input of this type cannot be made",
            got=f"{entry.name} of {entry.type}",
            wanted="a tensor of floats, integers or booleans",
            where="the model's inputs",
        )
    return ELEMENTS[entry.type]


def _values(shape: tuple[int, ...], kind: Any, index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    if np.issubdtype(kind, np.floating):
        return rng.standard_normal(shape, np.float32).astype(kind)
    return rng.integers(0, 256 if kind is np.uint8 else 2, shape).astype(kind)
