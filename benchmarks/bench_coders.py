"""Speeds of the coders beside zlib's and zstd's, interleaved on one core. Not collected by pytest.

python benchmarks/bench_coders.py [rounds]

10 million symbols: 5 bits (32 values, H = 4.42 bits) and 90 % one symbol. zstd cannot be told to do without
matches; level 1 finds next to none in these data. Medians of the rounds, in the thread's processor
time; symbols are bytes.
"""

import os
import sys
import time
import zlib
from collections.abc import Callable
from statistics import median

import numpy as np

from tersor.export.codec import adaptive, blocks, huffman
from tersor.export.codec.bits import ByteReader
from tersor.export.codec.prefix_codes import MAX_LENGTH, choose_table, code_lengths

COUNT = 10_000_000


def symbols_of(kind: str) -> np.ndarray:
    """uint8 (COUNT,)."""
    rng = np.random.default_rng(0)
    if kind == "5-bit":
        spread = np.exp(-0.5 * (np.arange(-15.5, 16) / 5.2) ** 2)
        return rng.choice(32, COUNT, p=spread / spread.sum()).astype(np.uint8)
    return np.where(rng.random(COUNT) < 0.9, 0, rng.integers(1, 17, COUNT)).astype(np.uint8)


def entropy(symbols: np.ndarray) -> float:
    """Bits a symbol."""
    share = np.bincount(symbols) / len(symbols)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def zlib_huffman(data: bytes) -> bytes:
    coder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def measure(kind: str, rounds: int) -> None:
    """Print millions of symbols a second and ratios for one kind of data."""
    import zstandard

    symbols = symbols_of(kind)
    data, wide = symbols.tobytes(), symbols.astype(np.uint16)
    pack, unpack = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    huff = huffman.encode(symbols)
    static = blocks.encode(symbols, with_static=True)
    deflated, zst = zlib_huffman(data), pack.compress(data)
    mixed = adaptive.encode(wide, 1000, 1, 5, most=COUNT, engine="numba")
    assert mixed is not None
    work: dict[str, Callable[[], object]] = {
        "huffman encode": lambda: huffman.encode(symbols),
        "static encode": lambda: blocks.encode(symbols, with_static=True),
        "zlib encode": lambda: zlib_huffman(data),
        "zstd encode": lambda: pack.compress(data),
        "adaptive encode": lambda: adaptive.encode(wide, 1000, 1, 5, most=COUNT),
        "huffman decode": lambda: huffman.decode(ByteReader(huff, "b"), COUNT, 256),
        "static decode": lambda: blocks.decode(ByteReader(static, "b"), COUNT, 256),
        "zlib decode": lambda: zlib.decompress(deflated, -15, COUNT),
        "zstd decode": lambda: unpack.decompress(zst),
        "adaptive decode": lambda: adaptive.decode(ByteReader(mixed, "b"), len(mixed), COUNT, 1000, 1, 5),
    }
    decoded, _ = huffman.decode(ByteReader(huff, "b"), COUNT, 256)
    assert np.array_equal(decoded, symbols)
    assert np.array_equal(blocks.decode(ByteReader(static, "b"), COUNT, 256), symbols)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            began = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - began)
    speed = {name: COUNT / median(times) / 1e6 for name, times in seconds.items()}
    counts = np.bincount(symbols)
    alive = counts[counts > 0]
    best = float((code_lengths(alive, MAX_LENGTH) * alive).sum() / alive.sum())
    table = choose_table(counts)
    used = float((np.asarray(table.lengths) * counts[np.asarray(table.symbols)]).sum() / counts.sum())
    print(f"{kind}: H = {entropy(symbols):.3f} bits, {len(data):,} bytes")
    bound = f"optimum of at most {MAX_LENGTH} bits {best:.4f} (+{100 * (used / best - 1):.3f} %)"
    print(f"  code length {used:.4f} bits, {bound}")
    sizes = {"huffman": huff, "static": static, "zlib": deflated, "zstd": zst, "adaptive": mixed}
    least = entropy(symbols) * COUNT / 8
    print("  bytes: " + ", ".join(f"{n} {len(b):,} ({len(b) / least:.3f} x H)" for n, b in sizes.items()))
    for name, value in speed.items():
        print(f"  {name:<16} {value:8.1f} M symbols/s")
    for direction in ("encode", "decode"):
        for name in ("huffman", "static"):
            ours = speed[f"{name} {direction}"]
            ratios = ", ".join(f"{ours / speed[f'{o} {direction}']:.2f}x {o}" for o in ("zlib", "zstd"))
            print(f"  {name} {direction}: {ratios}")


def main(rounds: int) -> None:
    """Both kinds of data, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for kind in ("5-bit", "90 % one symbol"):
        measure(kind, rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
