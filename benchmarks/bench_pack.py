"""Time and peak memory of packing and unpacking, at several sizes. Not collected by pytest.

    python benchmarks/bench_pack.py [FILE.onnx ...] [--coder huffman|static|adaptive|auto]

Without files: ResNet-18 and ResNet-50 and VGG16-half with random weights, the latter also pruned to 90 % and
shared with 4 bits. Each file is packed and unpacked
twice in a process of its own, the second is shown (the first loads numba's compiled code), in the thread's
processor time; memory is that second time's peak above what the process held before.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def measure(source: Path, coder: str, queue: "multiprocessing.Queue[dict[str, float]]") -> None:
    """Pack and unpack one file; puts seconds, bytes and peak memory into the queue."""
    from tersor.export.codec.pack import pack, unpack

    with tempfile.TemporaryDirectory() as folder:
        packed, back = Path(folder) / "a.tsr", Path(folder) / "a.onnx"
        for turn in range(2):  # the first loads compiled code
            if turn == 1:
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux)
            before = _status("VmRSS")
            began = time.thread_time()
            pack(source, packed, coder=coder)  # type: ignore[arg-type]
            middle = time.thread_time()
            unpack(packed, back)
            ended = time.thread_time()
        assert back.read_bytes() == source.read_bytes()
        queue.put(
            {
                "pack_s": middle - began,
                "unpack_s": ended - middle,
                "packed": packed.stat().st_size,
                "peak": _status("VmHWM") - before,
            }
        )


def _status(entry: str) -> int:
    """Bytes of one entry of this process's status."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(entry))
    return int(line.split()[1]) * 1024


def samples(folder: Path) -> list[Path]:
    """Files of three sizes, and one that is pruned and shared."""
    from nets import make

    from tersor.export.forms.to_onnx import export_onnx
    from tersor.pipeline.recipe.recipe import Sharing, Sparsity
    from tersor.pipeline.weights.sharing import share_weights
    from tersor.pipeline.weights.sparsity import prune_weights

    vgg = make("vgg16_half", (3, 32, 32))
    pruned, _ = prune_weights(vgg, Sparsity(stage="sparsity", method="level", amount=0.9))
    shared, _ = share_weights(pruned, Sharing(stage="sharing", bits=4))
    nets = {
        "vgg16-half": vgg,
        "vgg16-half-shared": shared,
        "resnet18": make("resnet18", (3, 64, 64), 1000),
        "resnet50": make("resnet50", (3, 64, 64), 1000),
    }
    files = [folder / f"{name}.onnx" for name in nets]
    for file, net in zip(files, nets.values(), strict=True):
        export_onnx(net, file)
    return files


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--coder", default="huffman", choices=["huffman", "static", "adaptive", "auto"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        print("file                       bytes       packed   pack s  unpack s  s per 100 MB  peak / file")
        for file in options.files or samples(Path(folder)):
            queue = spawn.Queue()
            process = spawn.Process(target=measure, args=(file, options.coder, queue))
            process.start()
            measured, size = queue.get(timeout=600), file.stat().st_size
            process.join()
            both = measured["pack_s"] + measured["unpack_s"]
            print(
                f"{file.stem:20s} {size:12,d} {int(measured['packed']):12,d} {measured['pack_s']:8.2f} "
                f"{measured['unpack_s']:9.2f} {both / size * 1e8:13.1f} {measured['peak'] / size:12.2f}"
            )


if __name__ == "__main__":
    main()
