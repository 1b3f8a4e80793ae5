"""The first images of a split are the same before and after preprocessing, and batches leave none out."""

import pytest
import torch
from nets import blobs

from tersor.pipeline.accuracy.evaluate import Images

DATA = blobs(50)
WHOLE = Images.of(DATA.train, DATA.preprocessing)


@pytest.mark.parametrize("count", [1, 7, 10_000])
def test_the_first_images_are_the_same_before_and_after_preprocessing(count: int) -> None:
    one, other = Images.of(DATA.train.first(count), DATA.preprocessing), WHOLE.first(count)
    assert len(one) == len(other) == min(count, len(WHOLE))
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.labels, WHOLE.labels[: len(one)])


@pytest.mark.parametrize("size", [1, 8, 10_000])
def test_batches_hold_every_image_once_in_order(size: int) -> None:
    inputs, labels = zip(*WHOLE.batches(size))
    assert max(map(len, inputs)) == min(size, len(WHOLE))
    assert torch.equal(torch.cat(inputs), WHOLE.inputs)
    assert torch.equal(torch.cat(labels), WHOLE.labels)
