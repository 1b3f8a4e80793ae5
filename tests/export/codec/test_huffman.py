"""Huffman coding: optimal lengths, canonical codes, two engines with the same bytes, damage noticed."""

import contextlib
import heapq
import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import FormatError
from tersor.export.codec import huffman
from tersor.export.codec.bits import ByteReader, pack_fields, unpack_fields, write_varint
from tersor.export.codec.prefix_codes import (
    FAST_LENGTH,
    MAX_LENGTH,
    CodeTable,
    choose_table,
    code_lengths,
    read_table,
    write_table,
)

COUNTS = st.lists(st.integers(1, 10_000), min_size=1, max_size=40)


def plain_huffman_cost(weights):
    """Bits of an unlimited Huffman code: the sum of all merged weights (Huffman 1952)."""
    heap, cost = list(weights), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost


def round_trip(symbols, alphabet, engine="plain"):
    block = huffman.encode(symbols, engine=engine)
    source = ByteReader(block + b"tail", "test")
    decoded, _ = huffman.decode(source, len(symbols), alphabet, engine=engine)
    assert source.remaining == 4
    return block, decoded


def skewed(rng, count, alphabet):
    shares = rng.random(alphabet) ** 8 + 1e-9
    dtype = np.uint8 if alphabet <= 256 else np.uint16
    return rng.choice(alphabet, count, p=shares / shares.sum()).astype(dtype)


@given(COUNTS)
def test_lengths_are_optimal_when_no_limit_binds(weights):
    lengths = code_lengths(np.array(weights), 40)
    assert (lengths * weights).sum() == plain_huffman_cost(weights)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.integers(3, 4))
def test_lengths_are_optimal_under_a_limit_by_brute_force(weights, limit):
    complete = (
        lengths
        for lengths in itertools.product(range(1, limit + 1), repeat=len(weights))
        if sum(2.0**-n for n in lengths) <= 1
    )
    best = min(sum(n * w for n, w in zip(lengths, weights)) for lengths in complete)
    lengths = code_lengths(np.array(weights), limit)
    assert (lengths * weights).sum() == best
    assert lengths.max() <= limit
    assert (0.5**lengths).sum() == 1


def test_fibonacci_weights_are_held_to_the_limit():
    weights = [1, 1]
    while len(weights) < 40:
        weights.append(weights[-1] + weights[-2])
    assert code_lengths(np.array(weights), 60).max() == 39
    assert code_lengths(np.array(weights), MAX_LENGTH).max() == MAX_LENGTH
    # Words over 12 bits save nothing here, so the table that decodes faster is taken.
    assert choose_table(np.array(weights)).longest == FAST_LENGTH


@pytest.mark.parametrize(("weights", "limit"), [([], 5), ([1, 0], 5), ([1] * 33, 5)])
def test_impossible_codes_are_refused(weights, limit):
    with pytest.raises(ValueError, match=rf"no code of at most {limit} bits for {len(weights)} symbols"):
        code_lengths(np.array(weights, np.int64), limit)


def test_canonical_codes_of_the_worked_example():
    table = CodeTable(np.arange(4), np.array([2, 1, 3, 3]))
    words = [f"{code:0{length}b}" for code, length in zip(table.codes(), table.lengths)]
    assert words == ["10", "0", "110", "111"]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60, unique=True), st.data())
def test_tables_round_trip(symbols, data):
    histogram = np.zeros(401, np.int64)
    histogram[symbols] = data.draw(
        st.lists(st.integers(1, 9999), min_size=len(symbols), max_size=len(symbols))
    )
    table = choose_table(histogram)
    read = read_table(ByteReader(write_table(table), "test"), 401)
    assert read.symbols.tolist() == table.symbols.tolist()
    assert read.lengths.tolist() == table.lengths.tolist()


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=400))
def test_round_trip_of_any_symbols(symbols):
    wide = np.array(symbols, np.uint16)
    assert round_trip(wide, 301)[1].tolist() == symbols
    low = (wide % 7).astype(np.uint8)
    assert round_trip(low, 7)[1].tolist() == low.tolist()


@pytest.mark.parametrize("alphabet", [1, 2, 3, 31, 256, 300, 5000])
@pytest.mark.parametrize("count", [1, 32767, 32768, 32769, 32771, 70001])
def test_both_engines_write_and_read_the_same_bytes(count, alphabet):
    symbols = skewed(np.random.default_rng(count + alphabet), count, alphabet)
    plain, by_plain = round_trip(symbols, alphabet, "plain")
    fast, by_fast = round_trip(symbols, alphabet, "numba")
    assert plain == fast
    assert np.array_equal(by_plain, symbols)
    assert np.array_equal(by_fast, symbols)


@pytest.mark.parametrize("kind", ["five bits", "one symbol in 90 %"])
def test_ten_million_symbols_survive_and_two_million_agree(kind):
    rng = np.random.default_rng(1)
    count = 10_000_000
    if kind == "five bits":
        symbols = np.clip(rng.standard_normal(count, np.float32) * 5.2 + 16, 0, 31).astype(np.uint8)
    else:
        symbols = rng.integers(1, 32, count, np.uint8) * (rng.random(count, np.float32) < 0.1)
        symbols = symbols.astype(np.uint8)
    assert np.array_equal(round_trip(symbols, 32, "numba")[1], symbols)
    part = symbols[:2_000_000]
    block, decoded = round_trip(part, 32, "plain")
    assert np.array_equal(decoded, part)
    assert huffman.encode(part, engine="numba") == block


def test_kernels_work_where_nothing_can_be_cached(monkeypatch):
    from tersor.export.codec import huffman_fast

    def no_place(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(huffman_fast.numba, "njit", no_place)
    assert huffman_fast.Kernel(lambda x: x + 1)(1) == 2

    def full_disk(function):
        def compiled(x):
            raise OSError(28, "No space left on device")

        return compiled

    monkeypatch.setattr(
        huffman_fast.numba, "njit", lambda **options: full_disk if options.get("cache") else lambda f: f
    )
    assert huffman_fast.Kernel(lambda x: x + 1)(1) == 2


def test_auto_goes_on_without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "tersor.export.codec.huffman_fast", None)
    monkeypatch.delattr("tersor.export.codec.huffman_fast", raising=False)
    monkeypatch.setattr(huffman, "NUMBA_LOADED_FROM", huffman.STREAMS_FROM)
    symbols = skewed(np.random.default_rng(5), 40_000, 9)
    assert np.array_equal(round_trip(symbols, 9, "auto")[1], symbols)
    with pytest.raises(ImportError):
        huffman.encode(symbols, engine="numba")


def test_uneven_streams_finish():
    # The first quarter takes 1 bit a symbol, the others many: the fast loop leaves early.
    rng = np.random.default_rng(0)
    symbols = np.concatenate([np.zeros(50_000), rng.integers(0, 4000, 150_000)]).astype(np.uint16)
    assert np.array_equal(round_trip(symbols, 4000, "numba")[1], symbols)


def test_mean_length_is_within_a_thousandth_of_the_unlimited_optimum():
    rng = np.random.default_rng(2)
    for alphabet in (32, 256, 512):
        histogram = np.bincount(skewed(rng, 300_000, alphabet), minlength=alphabet)
        table = choose_table(histogram)
        coded = int((histogram[table.symbols] * table.lengths).sum())
        assert coded <= 1.001 * plain_huffman_cost(histogram[histogram > 0].tolist())


@pytest.mark.parametrize(
    "symbols", [np.zeros(0, np.uint8), np.zeros(3, np.int32), np.zeros((2, 2), np.uint8)]
)
def test_wrong_arrays_are_refused(symbols):
    with pytest.raises(ValueError, match=r"wanted \[n >= 1\] uint8 or uint16"):
        huffman.encode(symbols)


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="cannot decode 0 symbols"):
        huffman.decode(ByteReader(b"\xff", "test"), 0, 4)


def test_incomplete_code_names_the_place():
    table = write_table(CodeTable(np.arange(3), np.array([1, 2, 2])))
    broken = write_table(CodeTable(np.arange(3), np.array([2, 2, 2])))
    assert read_table(ByteReader(table, "x"), 3).longest == 2
    with pytest.raises(FormatError, match=r"no complete prefix code.*Where: section X, byte \d"):
        read_table(ByteReader(broken, "section X"), 3)


def test_symbol_outside_the_alphabet_is_refused():
    block = huffman.encode(np.array([0, 9], np.uint8))
    with pytest.raises(FormatError, match="outside the alphabet|out of range"):
        huffman.decode(ByteReader(block, "test"), 2, 9)


@pytest.mark.parametrize("engine", ["plain", "numba"])
@pytest.mark.parametrize("count", [1000, 40_000])
def test_truncated_and_padded_streams_are_noticed(engine, count):
    symbols = skewed(np.random.default_rng(3), count, 20)
    block = huffman.encode(symbols)
    for cut in (1, 2, 9, len(block) // 2):
        with pytest.raises(FormatError, match="ends too early|wrong place|too short|out of range"):
            huffman.decode(ByteReader(block[:-cut], "test"), count, 20, engine=engine)
    longer = ByteReader(block, "test")
    with pytest.raises(FormatError, match="wrong place|padding|too short|ends too early"):
        huffman.decode(longer, count - 5 if count >= huffman.STREAMS_FROM else count + 50, 20, engine=engine)


@pytest.mark.parametrize("engine", ["plain", "numba"])
def test_changed_bits_never_crash_a_decoder(engine):
    rng = np.random.default_rng(4)
    block = bytearray(huffman.encode(skewed(rng, 33_000, 30)))
    for _ in range(150):
        changed = bytearray(block)
        changed[rng.integers(len(block))] ^= 1 << rng.integers(8)
        source = ByteReader(changed, "test")
        with contextlib.suppress(FormatError):
            decoded, _ = huffman.decode(source, 33_000, 30, engine=engine)
            assert decoded.max() < 30


@given(st.lists(st.tuples(st.integers(0, 56), st.integers(0, 2**56 - 1)), max_size=50))
def test_bit_fields_round_trip(fields):
    widths = np.array([w for w, _ in fields], np.int64)
    values = np.array([v & ((1 << w) - 1) for w, v in fields], np.uint64)
    packed = pack_fields(values, widths)
    assert len(packed) == (widths.sum() + 7) // 8
    assert unpack_fields(packed, widths).tolist() == values.tolist()


@given(st.integers(0, 2**62))
def test_varints_round_trip(value):
    assert ByteReader(write_varint(value), "test").varint(2**62) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x00", "needless zero bits"),
        (b"\xff" * 10, "too long"),
        (b"\x05", "out of range"),
        (b"", "too early"),
    ],
)
def test_bad_varints_are_refused(data, message):
    with pytest.raises(FormatError, match=message):
        ByteReader(data, "test").varint(4)
