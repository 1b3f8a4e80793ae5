"""Time and peak memory of packing and unpacking, at several sizes. Not collected by pytest.

    python tests/export/bench_pack.py [FILE.onnx ...] [--coder huffman|adaptive|auto]

Without files: ResNet-18 and ResNet-50 and VGG16-half with random weights, the latter also pruned to 90 % and
shared with 4 bits. Each pack and unpack runs in a process of its own after a warm-up on a small file (numba
loads its compiled code once); memory is the growth of that process's peak above the warm state.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

MIB = 1 << 20


def measure(source: Path, coder: str, queue: "multiprocessing.Queue[dict[str, float]]") -> None:
    """Pack and unpack one file; puts seconds, bytes and peak memory into the queue."""
    from tersor.export.pack import pack, unpack

    with tempfile.TemporaryDirectory() as folder:
        small, packed, back = (Path(folder) / name for name in ("small.onnx", "a.tsr", "a.onnx"))
        small.write_bytes(_small_model())
        pack(small, packed, coder=coder)  # type: ignore[arg-type]
        unpack(packed, back)
        warm = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        began = time.perf_counter()
        pack(source, packed, coder=coder)  # type: ignore[arg-type]
        middle = time.perf_counter()
        unpack(packed, back)
        ended = time.perf_counter()
        assert back.read_bytes() == source.read_bytes()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        queue.put({"pack_s": middle - began, "unpack_s": ended - middle, "packed": packed.stat().st_size,
                   "peak": peak - warm})  # fmt: skip


def _small_model() -> bytes:
    from tersor.export.layer_timing import LayerShape, layer_model

    return layer_model(LayerShape(64, 64, linear=True))


def samples(folder: Path) -> list[Path]:
    """Files of three sizes, and one that is pruned and shared."""
    from nets import make

    from tersor.export.to_onnx import export_onnx
    from tersor.pipeline.recipe import Sharing, Sparsity
    from tersor.pipeline.sharing import share_weights
    from tersor.pipeline.sparsity import prune_weights

    vgg = make("vgg16_half", (3, 32, 32))
    pruned, _ = prune_weights(vgg, Sparsity(stage="sparsity", method="level", amount=0.9))
    shared, _ = share_weights(pruned, Sharing(stage="sharing", bits=4))
    nets = {"vgg16-half": vgg, "vgg16-half-shared": shared, "resnet18": make("resnet18", (3, 64, 64), 1000),
            "resnet50": make("resnet50", (3, 64, 64), 1000)}  # fmt: skip
    files = [folder / f"{name}.onnx" for name in nets]
    for file, net in zip(files, nets.values(), strict=True):
        export_onnx(net, file)
    return files


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--coder", default="huffman", choices=["huffman", "adaptive", "auto"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        print("file                       bytes       packed   pack s  unpack s  s per 100 MB  peak / file")
        for file in options.files or samples(Path(folder)):
            queue = spawn.Queue()
            process = spawn.Process(target=measure, args=(file, options.coder, queue))
            process.start()
            found, size = queue.get(timeout=600), file.stat().st_size
            process.join()
            both = found["pack_s"] + found["unpack_s"]
            print(
                f"{file.stem:20s} {size:12,d} {int(found['packed']):12,d} {found['pack_s']:8.2f} "
                f"{found['unpack_s']:9.2f} {both / size * 1e8:13.1f} {found['peak'] / size:12.2f}"
            )


if __name__ == "__main__":
    main()
