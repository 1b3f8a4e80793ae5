"""Bytes of kept results before and after packing anew with this version's packer. Not run by pytest.

python benchmarks/bench_results.py RESULT_FOLDER ... [--before REVISION] [--coder auto]

A result is a folder with model.tsr. Without --before, "before" is that file; with it, the file in that
revision of the repository. Exits 1 if one is larger after, or does not come back byte for byte.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tersor.export.codec.pack import pack_bytes, unpack_bytes


def earlier(file: Path, revision: str | None) -> bytes:
    """Return the file's bytes, or those it had in a revision."""
    if revision is None:
        return file.read_bytes()
    show = ["git", "-C", str(file.parent), "show", f"{revision}:./{file.name}"]
    return subprocess.run(show, check=True, capture_output=True).stdout


def main() -> int:
    """Print a line for each result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--before")
    parser.add_argument("--coder", default="auto", choices=["huffman", "static", "adaptive", "auto"])
    options = parser.parse_args()
    worse = 0
    print(f"{'result':<24}{'before':>10}{'after':>10}{'change':>9}")
    for folder in options.folders:
        if not (folder / "model.tsr").is_file():
            print(f"{folder.name:<24} keeps no packed file")
            continue
        before = earlier(folder / "model.tsr", options.before)
        original = unpack_bytes(before)
        after = pack_bytes(original, coder=options.coder)
        worse += len(after) > len(before) or unpack_bytes(after) != original
        change = 100 * (len(after) / len(before) - 1)
        print(f"{folder.name:<24}{len(before):>10,}{len(after):>10,}{change:>+8.1f}%", flush=True)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
