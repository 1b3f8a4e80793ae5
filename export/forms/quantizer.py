"""What the int8 and fp16 converters of ONNX Runtime have in common: checks before, silence during."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from tersor.errors import BadInput


def check_finite(model: ModelProto, where: Path) -> None:
    """Check that no float32 initializer holds NaN or infinity.

    Raises:
        BadInput: one does.
    """
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        bad = int(np.count_nonzero(~np.isfinite(numpy_helper.to_array(tensor))))
        if bad:
            raise BadInput(
                f"weight {tensor.name!r} holds NaN or infinity",
                got=f"{bad} such values",
                wanted="finite weights",
                where=where,
                todo="Train again with a lower learning rate",
            )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence the quantizer, which warns through the root logger and prints."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
