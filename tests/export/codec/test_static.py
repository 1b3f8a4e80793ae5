"""The static coder: engines agree, every array comes back, and damage of its streams is told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import FormatError
from tersor.export.codec import blocks, static
from tersor.export.codec.bits import ByteReader
from tersor.export.codec.pack import pack_bytes, unpack_bytes
from tersor.export.codec.state_codes import choose_states


def skewed(count, distinct, seed=0, dtype=np.uint8):
    """[count] symbols below `distinct`, nine of ten of them 0."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 0.9, 0, rng.integers(0, distinct, count)).astype(dtype)


def entropy_bytes(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / len(symbols))).sum()) / 8


@pytest.mark.parametrize("count", [2, 100, 32_767, 32_768, 40_001])
@pytest.mark.parametrize(("distinct", "dtype"), [(2, np.uint8), (17, np.uint8), (3000, np.uint16)])
def test_both_engines_write_and_read_the_same_bytes(count, distinct, dtype):
    symbols = skewed(count, distinct, 0, dtype)
    symbols[:2] = 0, 1
    table, _ = choose_states(np.bincount(symbols))
    coded = {engine: static.encode(symbols, table, engine=engine) for engine in ("plain", "numba")}
    assert coded["plain"] == coded["numba"]
    for engine in ("plain", "numba"):
        source = ByteReader(coded["plain"], "test")
        assert np.array_equal(static.decode(source, count, table, symbols.dtype, engine=engine), symbols)
        source.finish()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_any_block_comes_back(count, distinct, seed):
    symbols = skewed(count, distinct, seed, np.uint16)
    source = ByteReader(blocks.encode(symbols, with_static=True), "test")
    assert np.array_equal(blocks.decode(source, count, 400), symbols)
    source.finish()


def test_a_block_takes_two_percent_more_than_its_entropy_at_most():
    symbols = skewed(200_000, 17)
    assert len(blocks.encode(symbols, with_static=True)) < 1.02 * entropy_bytes(symbols)
    assert len(blocks.encode(symbols)) > 1.1 * entropy_bytes(symbols)


def test_a_static_block_is_refused_in_version_1():
    coded = blocks.encode(skewed(5000, 17), with_static=True)
    blocks.decode(ByteReader(coded, "test"), 5000, 17)
    with pytest.raises(FormatError, match="code length is out of range"):
        blocks.decode(ByteReader(coded, "test", 1), 5000, 17)


@pytest.mark.parametrize("count", [3000, 40_000])
def test_changed_bits_never_crash_a_decoder(count):
    coded = bytearray(blocks.encode(skewed(count, 17), with_static=True))
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(60):
        changed = bytearray(coded)
        changed[rng.integers(len(coded) if rng.random() < 0.5 else 40)] ^= 1 << rng.integers(8)
        try:
            blocks.decode(ByteReader(bytes(changed), "test"), count, 17)
        except FormatError:
            told += 1
    assert told > 50  # a stream's last state tells nearly all
    for size in range(0, len(coded), len(coded) // 20):
        with pytest.raises(FormatError):
            blocks.decode(ByteReader(bytes(coded[:size]), "test"), count, 17)


def test_a_file_says_the_version_it_needs():
    data = np.arange(4000, dtype=np.int32).tobytes()
    assert pack_bytes(data)[3] == 1
    assert unpack_bytes(pack_bytes(data, coder="static")) == data
