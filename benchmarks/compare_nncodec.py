r"""Our file against NNCodec's for the same trained and pruned network. Not collected by pytest.

NNCodec needs numpy below 2 and therefore an environment of its own:
    uv venv other && uv pip install --python other/bin/python nncodec==2.1.3 'numpy<2' torch==2.13.0
    python benchmarks/compare_nncodec.py RUN/03-recover --recipe RECIPE --data DATA \
        --other other/bin/python

NNCodec's size is its bit stream, which holds tensors and no graph. Of ours both are told: the whole packed
ONNX file, and its tensors without header and graph. Neither is tuned afterwards, but with --teacher
RUN/01-train ours is tried again with the recipe's stage `tune-sharing`, which trains the shared values while
the baseline teaches. All are swept over their step size and judged on the validation split; test accuracy is
shown.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TUNED = 2.0**-7.5, 2.0**-6.5
"""Rates that are tried again with tuned values: below there is little to win back, above too much is lost."""


def encode_theirs(source: Path, target: Path) -> None:
    """Runs in the other environment: every setting's bit stream size and decoded tensors."""
    from nncodec.nn import decode, encode

    tensors = dict(np.load(source))
    out: dict[str, np.ndarray] = {}
    for dq in (True, False):
        for qp in range(-36, -9, 2):
            name = f"qp {qp}{', dq' if dq else ''}"
            args = {"qp": qp, "nonweight_qp": -40, "use_dq": dq, "opt_qp": True, "verbose": False}
            with tempfile.TemporaryDirectory() as folder:
                stream = encode({k: v.copy() for k, v in tensors.items()}, {**args, "results": folder})
            out[f"{name}|size"] = np.array(len(stream))
            out.update({f"{name}|{k}": v for k, v in decode(stream).items()})
    np.savez(target, **out)


Row = tuple[str, int, int, float, float]
"""Name, bytes of the file, bytes of its tensors, validation and test accuracy in per cent."""


def tell(rows: list[Row], start: list[float]) -> None:
    """Print all rows, and each side's smallest within some drops from the accuracies `start`."""
    print(f"{'':<36}{'file':>9}{'tensors':>9}{'validation':>11}{'test':>11}")
    print(f"{'uncompressed':<36}{'':>18}{start[0]:>9.2f} %{start[1]:>9.2f} %")
    for row in sorted(rows, key=lambda r: (r[0][:4], r[1])):
        name, size, alone, *accuracies = row
        print(f"{name:<36}{size:>9,}{alone:>9,}{accuracies[0]:>9.2f} %{accuracies[1]:>9.2f} %")
    for drop in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0):
        best = {}
        for who in ("ours", "tuned", "NNCodec"):
            within = [r for r in rows if r[0].startswith(who) and r[3] >= start[0] - drop - 1e-9]
            best[who] = min(within, key=lambda r: r[1]) if within else None
        smallest = [
            f"{w}: {r[1]:,} bytes at {r[4]:.2f} % test" if r else f"{w}: none" for w, r in best.items()
        ]
        print(f"at most {drop:.2f} points of validation accuracy: {'; '.join(smallest)}")


def main() -> None:
    """Print a line for every setting of both, and the smallest within each drop of validation accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", type=Path)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--teacher", type=Path)
    chosen = parser.parse_args()
    import torch

    from tersor.export.codec.ledger import inspect
    from tersor.export.codec.pack import pack
    from tersor.export.forms.to_onnx import export_onnx
    from tersor.models.network import Network, load
    from tersor.pipeline.accuracy.evaluate import Images, evaluate
    from tersor.pipeline.data.load import load_data
    from tersor.pipeline.recipe.read import read_recipe
    from tersor.pipeline.recipe.recipe import Sharing, Vectors
    from tersor.pipeline.training.fit import fit
    from tersor.pipeline.weights.sharing_price import share_at_a_price
    from tersor.pipeline.weights.vectors import round_vectors

    recipe = read_recipe(chosen.recipe, (), chosen.data)
    torch.set_num_threads(recipe.threads)
    data = load_data(**recipe.data.model_dump(), seed=recipe.seed)
    splits = [Images.of(s, data.preprocessing) for s in (data.validation, data.test)]
    network = load(chosen.stage / "network.safetensors")

    def measured(candidate: Network) -> list[float]:
        module = candidate.module()
        return [100 * evaluate(module, split).accuracy_fraction for split in splits]

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def row(name: str, shared: Network) -> Row:
            rounded, _ = round_vectors(shared, Vectors(stage="vectors", bits=8))
            export_onnx(rounded, folder / "m.onnx")
            pack(folder / "m.onnx", folder / "m.tsr", coder="auto")
            size = (folder / "m.tsr").stat().st_size
            tensors = sum(r.packed_bytes for r in inspect(folder / "m.tsr") if not r.name.startswith("("))
            print(name, size, tensors, flush=True)
            return name, size, tensors, *measured(rounded)

        for rate in 2.0 ** np.arange(-12, -5.9, 0.5):
            settings = Sharing(stage="sharing", bits=5, values=31, rate=float(rate), pays="network")
            shared, _ = share_at_a_price(network, settings, data, seed=0)
            rows.append(row(f"ours, rate {rate:.4f}", shared))
            if chosen.teacher and TUNED[0] <= rate <= TUNED[1]:
                tune = next(stage for stage in recipe.stages if stage.name == "tune-sharing")
                teacher = load(chosen.teacher / "network.safetensors")
                tuned, _ = fit(shared, tune, data, seed=recipe.seed, teacher=teacher)
                rows.append(row(f"tuned, rate {rate:.4f}", tuned))
        floats = {k: v.numpy() for k, v in network.tensors.items() if v.is_floating_point()}
        np.savez(folder / "in.npz", **floats)
        command = [str(chosen.other), __file__, "--encode", str(folder / "in.npz"), str(folder / "out.npz")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        arrays = dict(np.load(folder / "out.npz"))
        for name in sorted({key.split("|")[0] for key in arrays}):
            tensors = {k: torch.from_numpy(arrays[f"{name}|{k}"].astype(np.float32)) for k in floats}
            decoded = network.with_tensors({**network.tensors, **tensors}, {})
            size = int(arrays[f"{name}|size"])
            rows.append((f"NNCodec, {name}", size, size, *measured(decoded)))
    tell(rows, measured(network))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--encode"]:
        encode_theirs(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
