"""Mutate packed files and decode them: only FormatError or the right bytes may come out.

python benchmarks/fuzz_pack.py --executions 1000000 [--seed 0]

Half of the files get a digest that matches again, so that the parser behind it is reached; of these, half
have one section changed and the lengths around it made to fit. Prints counts, the slowest decode, the
process's peak of memory and, for every crash, the seed that makes it again; exits 1 after a crash.
"""

import argparse
import hashlib
import json
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "export" / "codec"))

from test_pack import conv_net, every_kind, every_new_form  # noqa: E402

from tersor.errors import FormatError  # noqa: E402
from tersor.export.codec.bits import ByteReader, write_varint  # noqa: E402
from tersor.export.codec.byte_coding import decompress  # noqa: E402
from tersor.export.codec.container import SKELETON, read_container, write_container  # noqa: E402
from tersor.export.codec.pack import pack_bytes, unpack_bytes  # noqa: E402

MAX_BYTES = 1 << 20
SLOW_S = 5.0


def seeds() -> list[tuple[bytes, bytes]]:
    """Return (original, packed) pairs that reach every part of the decoder."""
    originals = [
        conv_net(width=8).SerializeToString(),
        every_kind().SerializeToString(),
        every_new_form().SerializeToString(),
        bytes(range(256)) * 4,
        b"The same words, the same words again. " * 40,
        np.random.default_rng(0).integers(0, 7, 40_000, np.uint8).tobytes(),
    ]
    pairs = [(data, pack_bytes(data)) for data in originals]
    return pairs + [
        (data, pack_bytes(data, coder=c)) for data in originals[:3] for c in ("adaptive", "static")
    ]


def mutate(rng: np.random.Generator, packed: bytes, other: bytes) -> bytearray:
    """Return the file with 1 to 4 changes: bits, bytes, numbers, cuts, repeats, parts of another file."""
    out = bytearray(packed)
    for _ in range(rng.integers(1, 5)):
        position = int(rng.integers(4, max(len(out), 5)))
        size = int(rng.geometric(0.15))
        kind = rng.integers(7)
        if kind == 0 and position < len(out):
            out[position] ^= 1 << rng.integers(8)
        elif kind == 1 and position < len(out):
            out[position] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        elif kind == 2:
            out[position : position + size] = write_varint(int(2 ** rng.uniform(0, 62)))
        elif kind == 3:
            del out[position : position + size]
        elif kind == 4:
            out[position:position] = out[position : position + size]
        elif kind == 5:
            start = int(rng.integers(36, len(other)))
            out[position : position + size] = other[start : start + size]
        else:
            del out[position:]
    return out


def repair(packed: bytearray) -> bytes:
    """Return the file with its SHA-256 computed again."""
    head, rest = bytes(packed[:4]), bytes(packed[36:])
    return head + hashlib.sha256(head + rest).digest() + rest


def mutate_section(rng: np.random.Generator, packed: bytes, other: bytes) -> bytes:
    """Return the file with one section changed and everything around it made to fit again."""
    container = read_container(packed)
    sections = dict(container.sections)
    number = int(rng.choice(list(sections)))
    payload = bytes(sections[number])
    if number == SKELETON and rng.random() < 0.7:
        source = ByteReader(payload, "seed")
        size = source.varint(MAX_BYTES)
        plain = mutate(rng, decompress(source.take(source.remaining), size, "seed"), other)
        payload = write_varint(len(plain)) + b"\x00" + bytes(plain)
    else:
        payload = bytes(mutate(rng, b"\x00" * 4 + payload, other)[4:])
    parts = {n: [bytes(s)] for n, s in sections.items()} | {number: [payload]}
    return write_container(container.original_bytes, container.crc32, parts, container.version)


def execute(seed: int, corpus: list[tuple[bytes, bytes]]) -> str:
    """Decode one mutated file; return what happened, "crash" for anything but the two right answers."""
    rng = np.random.default_rng(seed)
    original, packed = corpus[rng.integers(len(corpus))]
    other = corpus[rng.integers(len(corpus))][1]
    name = "repaired" if seed % 2 == 0 else "as changed"
    if seed % 4 == 0:
        changed = mutate_section(rng, packed, other)
    else:
        changed = mutate(rng, packed, other)
        changed = repair(changed) if seed % 2 == 0 else bytes(changed)
    try:
        data = unpack_bytes(changed, max_bytes=MAX_BYTES)
    except FormatError:
        return f"{name}: FormatError"
    except BaseException:
        traceback.print_exc()
        return "crash"
    return f"{name}: exact" if data == original else "crash"


def main() -> int:
    """Run the executions and print a line of JSON with the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--executions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    corpus, counts, slowest = seeds(), Counter[str](), 0.0
    for seed in range(arguments.seed, arguments.seed + arguments.executions):
        start = time.perf_counter()
        outcome = execute(seed, corpus)
        slowest = max(slowest, time.perf_counter() - start)
        counts[outcome] += 1
        if outcome == "crash":
            print(f"crash with --seed {seed} --executions 1", file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        json.dumps(
            {"executions": arguments.executions, **counts, "slowest_s": round(slowest, 3), "peak_mib": peak}
        )
    )
    return 1 if counts["crash"] or slowest > SLOW_S else 0


if __name__ == "__main__":
    sys.exit(main())
