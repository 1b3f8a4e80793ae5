"""The model card (README.md of a bundle), made from the manifest's measured numbers only."""

from collections.abc import Mapping, Sequence
from typing import Any

from tersor.export.bundle.manifest import Artifact, Int8, Manifest, Recommended, needed
from tersor.export.timing.benchmark import Conditions
from tersor.export.timing.latency import LatencyRow, ratio_told

_NO_VERSIONS = {"cpu", "model", "system", "device"}


def model_card(manifest: Manifest) -> str:
    """Markdown: what it is, its files, how to run it, how it was made, what was not measured.

    Args:
        manifest: the bundle's; parts that are missing are left out, never guessed.
    """
    parts = [
        _title(manifest),
        "## Files\n\n" + _files(manifest),
        _latency(manifest),
        _int8(manifest),
        "## Run it\n\n" + _usage(manifest),
        "## How it was made\n\n" + _made(manifest),
        "## Limits\n\n" + _limits(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(manifest: Manifest) -> str:
    classes = manifest.classes or ()
    shape = " x ".join(map(str, manifest.input.shape))
    ratio = manifest.compression_ratio
    lines = [
        f"# {manifest.name}",
        f"An image classifier with {len(classes)} classes ({', '.join(classes[:12])}"
        f"{', ...' if len(classes) > 12 else ''}) for inputs of {shape}.",
    ]
    lines += [_recommended(manifest, choice, target) for target, choice in _choices(manifest)]
    plain = next((a.file for a in manifest.artifacts if a.kind == "fp32"), None)
    packed = next((a for a in manifest.artifacts if a.kind == "packed"), None)
    if packed is not None:
        words = f"`{packed.file}` is the same network to store and send: {packed.bytes:,} bytes, "
        words += f"{ratio:.1f} times smaller than the uncompressed network's fp32 ONNX file"
        lines.append(words + (f"; it unpacks to `{plain}`." if plain else "."))
    return "\n\n".join(lines)


def _choices(manifest: Manifest) -> list[tuple[str, Recommended]]:
    """Target and choice for each batch size; bundles of old have one a target."""
    if manifest.recommendations:
        return [(choice.target or "", choice) for choice in manifest.recommendations]
    return list((manifest.recommended or {}).items())


def _recommended(manifest: Manifest, choice: Recommended, target: str) -> str:
    """Size, accuracy and speed of one file."""
    words = f"On **{target}** at batch {choice.batch} take `{choice.file}`: {choice.why}."
    entry = next((a for a in manifest.artifacts if a.file == choice.file), None)
    if entry is None:
        return words
    words += (
        f" {entry.bytes:,} bytes, {manifest.baseline.bytes / max(entry.bytes, 1):.2f} times smaller than "
    )
    words += f"`{manifest.baseline.file}`; test accuracy {_accuracy(entry)}"
    return words + (f" ({_points(manifest, entry)})." if _points(manifest, entry) else ".")


def _accuracy(entry: Artifact) -> str:
    accuracy = entry.accuracy_fraction
    return "not measured" if accuracy is None else f"{100 * accuracy:.2f} %"


def _points(manifest: Manifest, entry: Artifact) -> str:
    """Change of accuracy against the baseline; empty where either was not measured."""
    before, after = manifest.baseline.accuracy_fraction, entry.accuracy_fraction
    return "" if before is None or after is None else f"{100 * (after - before):+.2f} points"


def _files(manifest: Manifest) -> str:
    rows = []
    for entry in manifest.entries:
        difference = entry.max_abs_diff
        rows.append(
            [
                f"`{entry.file}`",
                entry.kind,
                f"{entry.bytes:,}",
                f"{manifest.baseline.bytes / max(entry.bytes, 1):.2f}",
                _accuracy(entry),
                _points(manifest, entry),
                "not measured" if difference is None else f"{difference:.2g}",
            ]
        )
    head = [
        "file",
        "kind",
        "bytes",
        "times smaller",
        "test accuracy",
        "change",
        "largest difference from torch (logits)",
    ]
    return _table(head, rows)


def _latency(manifest: Manifest) -> str:
    rows = [
        [
            f"`{entry.file}`",
            row.provider.removesuffix("ExecutionProvider"),
            str(row.batch),
            str(row.threads),
            f"{row.p50_ms:.4g} [{row.p50_low_ms:.4g}, {row.p50_high_ms:.4g}]",
            *(f"{milliseconds:.4g}" for milliseconds in (row.p90_ms, row.p99_ms)),
            _speedup(row),
            ratio_told(row.in_turn_speedup_low, row.in_turn_speedup, row.in_turn_speedup_high),
            _on_device(row),
        ]
        for entry in manifest.entries
        for row in entry.latency
    ]
    head = ["file", "provider", "batch", "threads", "p50 ms", "p90 ms", "p99 ms", "speed-up alone", "in turn"]
    head += ["on the device"]
    if not rows:
        return ""
    if all(row[-1] == "" for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    where = _processor(manifest.environment or {})
    note = f"Measured on {where}. " if where else ""
    note += "Speed-up is the ratio of p50 against `baseline.onnx`, alone (each file's runs follow each "
    note += "other) and in turn (one run of each file after the other), in brackets 95 % intervals."
    told = "".join(f"\n- {sentence[0].upper()}{sentence[1:]}." for sentence in manifest.advice or ())
    seen = "".join(f"\n- {_seen(conditions)}" for conditions in manifest.clock or ())
    return f"## Latency\n\n{note}\n\n{_table(head, rows)}" + "".join(f"\n{t}" for t in (seen, told) if t)


def _seen(seen: Conditions) -> str:
    """The state of the machine while one setting was timed."""
    place = f"{seen.provider.removesuffix('ExecutionProvider')}, batch {seen.batch}, {seen.threads} thread(s)"
    load = "not told" if seen.load is None else f"{seen.load:.2f} on {seen.processors} processors"
    thrown = f", {seen.busy_sittings} thrown away" if seen.busy_sittings else ""
    return (
        f"{place}: load {load}, governor {seen.governor}, noise floor {100 * seen.noise_fraction:.1f} %, "
        f"{seen.sittings} sittings{thrown}; fed {seen.fed}."
    )


def _processor(environment: Mapping[str, Any]) -> str:
    """Its name, system and the instructions that matter for speed; empty if nothing is known."""
    known = [str(environment[key]) for key in ("model", "system") if environment.get(key)]
    names = {"avx2": "AVX2", "avx512": "AVX512", "vnni": "VNNI"}
    known += [name for key, name in names.items() if environment.get(key)]
    return ", ".join(known)


def _int8(manifest: Manifest) -> str:
    """How the int8 file came about; empty without one."""
    info = manifest.int8
    if info is None:
        return ""
    tried = ", ".join(f"{name} {100 * value:.2f} %" for name, value in info.tried.items())
    before = 100 * info.fp32_validation_accuracy_fraction
    lines = [
        f"Calibration by {info.method} on {info.calibration_images} training images; validation "
        f"accuracy with each method: {tried} (fp32: {before:.2f} %). "
        f"{'7-bit weights, which no processor saturates' if info.reduce_range else '8-bit weights'}."
    ]
    lines += _operators(info)
    asked = [layer for layer in info.kept_float if layer not in info.helps]
    if asked:
        why = "the set or the recipe says so" if info.operators == "most" else "the recipe says so"
        lines.append(f"Left in float, because {why}: {', '.join(asked)}.")
    hurt = [layer for layer in info.kept_float if layer in info.helps]
    if hurt:
        helps = ", ".join(f"{layer} ({100 * info.helps[layer]:.2f} %)" for layer in hurt)
        lines.append(
            "Left in float, because int8 lost more than allowed (validation accuracy with that one alone in "
            f"float): {helps}."
        )
    if info.kept_integers:
        lines.append(f"Layers with the very integers they were trained with: {len(info.kept_integers)}.")
    return "## int8\n\n" + "\n\n".join(lines)


def _operators(info: Int8) -> list[str]:
    """Which operators are in integers, and which sets there were to choose from."""
    if not info.integer_operators:
        return []
    integer, floating = (
        ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"
        for counts in (info.integer_operators, info.float_operators)
    )
    sets = ", ".join(
        f"{name} {100 * found['validation_accuracy_fraction']:.2f} %"
        + (f" in {found['ms']:.4g} ms" if "ms" in found else "")
        for name, found in info.sets.items()
    )
    said = f"Operators `{info.operators}`, first layer `{info.layout}`. "
    said += f"In integers: {integer}; in float: {floating}."
    return [said + (f" Sets compared: {sets}." if len(info.sets) > 1 else "")]


def _on_device(row: LatencyRow) -> str:
    """Milliseconds and speed-up on a GPU, inputs and outputs staying there; empty where there is none."""
    if row.device_p50_ms is None:
        return ""
    ratio = ratio_told(row.device_speedup_low, row.device_speedup, row.device_speedup_high)
    graph = f"; no CUDA graph: {row.no_graph}" if row.no_graph else ""
    return f"{row.device_p50_ms:.4g} ms, {ratio}{_doubts(row)}{graph}"


def _speedup(row: LatencyRow) -> str:
    """The ratio alone; doubts are of the ratio that decides, so they stand here where no device was timed."""
    ratio = ratio_told(row.speedup_low, row.speedup, row.speedup_high)
    return ratio + (_doubts(row) if row.device_p50_ms is None else "")


def _doubts(row: LatencyRow) -> str:
    doubts = (
        ("not distinguishable", not row.distinguishable),
        ("wide", row.narrow is False),
        (f"machine busy: {row.busy}", row.busy is not None),
    )
    told = ", ".join(word for word, holds in doubts if holds)
    return f" ({told})" if told else ""


def _usage(manifest: Manifest) -> str:
    pre, entry = needed(manifest.preprocessing, "preprocessing"), manifest.input
    choices = manifest.recommended or {}
    file = choices["cpu"].file if "cpu" in choices else "model.onnx"
    shape = "x".join(map(str, entry.image_shape))
    return "\n".join(
        [
            "```python",
            "import numpy as np, onnxruntime",
            f'session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])',
            f"mean, std = np.float32({list(pre.mean)}), np.float32({list(pre.std)})"
            f"  # per channel; pixels: (N, {shape}) as stored",
            f"x = pixels / np.float32({pre.divisor})",
            "x = (x - mean.reshape(1, -1, 1, 1)) / std.reshape(1, -1, 1, 1)",
            f'classes = session.run(None, {{"{entry.name}": x.astype(np.float32)}})[0].argmax(1)',
            "```",
            "",
            *(
                f"`{a.file}` takes and gives {a.input_dtype}: feed it `x.astype(np.{a.input_dtype})`.\n"
                for a in manifest.artifacts
                if a.input_dtype is not None
            ),
            "`model.tsr` gives a session without unpacking: "
            '`from tersor.export.timing.packed import load; session = load("model.tsr")`. '
            "`tersor verify` on this folder re-checks every figure above but latency; accuracy where it is "
            "given the data.",
        ]
    )


def _made(manifest: Manifest) -> str:
    lines = [f"Made by tersor {manifest.tersor_version}."] if manifest.tersor_version is not None else []
    data = manifest.data
    if data is not None:
        splits = ", ".join(f"{name} {size:,}" for name, size in data.images.items())
        lines.append(f"Data: {data.name} (images: {splits}; split seed {data.seed}).")
    stages = (manifest.recipe or {}).get("stages", [])
    names = [s.get("stage") or s.get("kind") or s.get("name") for s in stages if isinstance(s, Mapping)]
    if any(names):
        lines.append(f"Stages: {' -> '.join(str(n) for n in names if n)}. Settings are in manifest.json.")
    if manifest.licence is not None:
        lines.append(f"Licence of the weights: {manifest.licence}.")
    environment = manifest.environment or {}
    versions = {k: v for k, v in environment.items() if isinstance(v, str) and k not in _NO_VERSIONS}
    if versions:
        lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".")
    return " ".join(lines) or "See manifest.json."


def _limits(manifest: Manifest) -> str:
    lines = [
        "- Accuracy holds for the test split named above, and for inputs preprocessed as shown.",
        "- Latency holds for the machine, threads and batch sizes listed.",
    ]
    for target, options in (manifest.environment or {}).get("provider_options", {}).items():
        told = ", ".join(f"{key}={value}" for key, value in options.items())
        lines.append(f"- {target}: {told} (TF32 on: fp32 files multiply with 10-bit mantissas there).")
    for item in manifest.not_measured or ():
        lines.append(f"- Not measured: {item.what}: {item.reason}.")
    if manifest.parity.bounds:
        told = ", ".join(f"{kind} {value:g}" for kind, value in manifest.parity.bounds.items())
        lines.append(
            f"- Parity bounds: {told} (int8 and fp16 as a fraction of the logits' range; others in logits, "
            "growing with a range above 30)."
        )
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
