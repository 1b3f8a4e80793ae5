"""What a network answers before and after compression: a CSV of every test image, and a page to look at.

The page is one file: it holds its style and its pictures, runs no script and loads nothing. Made
from the same files and images it is the same, byte for byte.
"""

import base64
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tersor.errors import BadInput
from tersor.export.timing.parity import outputs
from tersor.export.timing.providers import open_session
from tersor.files import made_folder, write_whole
from tersor.pipeline.accuracy.confusion import confusion_matrix
from tersor.pipeline.data.load import Data, Split
from tersor.pipeline.shipping.opened import Finished
from tersor.pipeline.show import charts, units
from tersor.pipeline.show.html import template

BATCH = 256
DAMAGED = 24
"""Pictures of the most damaged test images on the page."""
CONFUSED = 12
PICTURE = 112
"""Side of a picture in pixels, at least; small images are enlarged by a whole factor, pixel by pixel."""
LISTED_CLASSES = 40


@dataclass(frozen=True, eq=False)
class Answers:
    """What two networks say to the same N images.

    labels: int64 (N,), the true classes.
    before, after: float32 (N, classes), probabilities, rows summing to 1.
    losses: float64 (2, N), cross-entropy in nats, before and after; from the logits, so that it
        stays finite where a probability rounds to 0.
    """

    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray
    losses: np.ndarray

    @property
    def said(self) -> tuple[np.ndarray, np.ndarray]:
        """The classes with the highest probability before and after, int64 (N,) each."""
        return self.before.argmax(1), self.after.argmax(1)

    @property
    def damage(self) -> np.ndarray:
        """Cross-entropy after minus before, float64 (N,) in nats: what the change cost each image."""
        return self.losses[1] - self.losses[0]


def write_predictions(run: Finished, data: Path | None, out: Path | None = None) -> Path:
    """Write predictions.csv and predictions.html of a finished run or a bundle; returns the page.

    Args:
        run: the finished run, or a bundle.
        data: where its data lie now; the test split is used.
        out: folder for the two files, made if missing; None: `predictions` among the run's results.

    Raises:
        BadInput: a file is missing or damaged, or the images or classes do not fit the network.
        Unavailable: onnxruntime is not installed, or the folder cannot be written.
    """
    images = run.data(data)
    predictions = answers(run.onnx(0), run.onnx(), images)
    content = {"name": run.name, **_page(predictions, images)}
    with run.results("predictions") if out is None else made_folder(out) as folder:
        write_csv(folder / "predictions.csv", predictions, images.classes)
        write_whole(folder / "predictions.html", template("predictions.html.j2").render(**content))
    return folder / "predictions.html"


def answers(baseline: Path, model: Path, data: Data) -> Answers:
    """Run both networks over the test split on the CPU.

    Raises:
        BadInput: a damaged model, or one with other inputs or classes than the data.
    """
    logits = [_logits(path, data) for path in (baseline, model)]
    shifted = [z - z.max(1, keepdims=True) for z in logits]
    logs = [z - np.log(np.exp(z).sum(1, keepdims=True)) for z in shifted]
    rows = np.arange(len(data.test))
    losses = np.stack([-log[rows, data.test.labels] for log in logs])
    before, after = (np.exp(log).astype(np.float32) for log in logs)
    return Answers(data.test.labels, before, after, losses)


def _logits(path: Path, data: Data) -> np.ndarray:
    session = open_session(path, "cpu")
    # A batch at a time: a large test split as float32 four times over would not fit everywhere.
    pixels = data.test.images
    batches = (pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))
    parts = [outputs(session, data.preprocessing.apply(batch)) for batch in batches]
    logits = np.concatenate(parts).astype(np.float64)
    if logits.shape != (len(data.test), len(data.classes)) or not np.isfinite(logits).all():
        raise BadInput(
            "the network's answers do not fit the data",
            got=f"shape {logits.shape}{'' if np.isfinite(logits).all() else ', not all finite'}",
            wanted=f"finite numbers of shape ({len(data.test)}, {len(data.classes)})",
            where=path,
        )
    return logits


def write_csv(path: Path, found: Answers, classes: Sequence[str]) -> None:
    """One line a test image, in the order of the split; probabilities to six decimals."""
    before, after = found.said
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(
        [
            "index",
            "true_class",
            "baseline_class",
            "model_class",
            "baseline_true_probability",
            "model_true_probability",
            "damage_nats",
        ]
    )
    for i, (true, first, last) in enumerate(zip(found.labels, before, after)):
        chances = (f"{p[i, true]:.6f}" for p in (found.before, found.after))
        names = (classes[k] for k in (true, first, last))
        writer.writerow([i, *names, *chances, f"{found.damage[i]:.6f}"])
    write_whole(path, text.getvalue())


def most_confused(before: np.ndarray, after: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs (true class, answer) with the largest share of wrong answers after compression.

    Returns:
        {"true", "said", "before", "after"} with fractions of the true class's images, worst first.
    """
    totals = np.maximum(after.sum(1, keepdims=True), 1)
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, after) / totals
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED]
    pairs = [divmod(int(flat), len(classes)) for flat in order]
    return [
        {
            "true": classes[t],
            "said": classes[s],
            "before": float(before[t, s] / totals[t, 0]),
            "after": float(wrong[t, s]),
        }
        for t, s in pairs
        if wrong[t, s] > 0
    ]


def picture(image: np.ndarray, divisor: float) -> str:
    """An image as a PNG data URI, enlarged by a whole factor without smoothing.

    Args:
        image: uint8 (C, H, W), 1 channel (grey) or 3 (RGB); of any other number the first is shown.
        divisor: full scale of the stored pixels.
    """
    from PIL import Image

    pixels = np.clip(image.astype(np.float32) * (255.0 / divisor), 0, 255).round().astype(np.uint8)
    shown = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    factor = max(1, -(-PICTURE // max(shown.shape[:2])))
    memory = io.BytesIO()
    Image.fromarray(shown.repeat(factor, 0).repeat(factor, 1)).save(memory, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(memory.getvalue()).decode()


def _page(predictions: Answers, data: Data) -> dict[str, Any]:
    from markupsafe import Markup

    count = len(data.classes)
    first, last = (confusion_matrix(predictions.labels, said, count) for said in predictions.said)
    matrices = (first, last)
    right = [float(np.trace(m) / m.sum()) for m in matrices]
    broken, mended = _changed(predictions)
    return {
        "images": len(data.test),
        "accuracy": [units.share(r) for r in right],
        "change": units.points(right[1] - right[0]).replace(" points", ""),
        "broken": broken,
        "mended": mended,
        "differing": int((predictions.said[0] != predictions.said[1]).sum()),
        "matrices": [
            (title, Markup(charts.confusion(m.tolist(), data.classes, f"Confusion matrix, {title.lower()}")))
            for title, m in zip(("Before", "After"), matrices)
        ],
        "distribution": Markup(_distribution(matrices, data.classes)) if count <= LISTED_CLASSES else "",
        "classes": list(_per_class(first, last, data.classes)),
        "confused": most_confused(first, last, data.classes),
        "damaged": list(_damaged(predictions, data.test, data.classes, data.preprocessing.divisor)),
    }


def _percent(probability: float) -> str:
    """With one decimal: under a picture there is little room."""
    return f"{100 * probability:.1f} %"


def _changed(predictions: Answers) -> tuple[int, int]:
    """How many right answers became wrong, and how many wrong ones right."""
    before, after = (said == predictions.labels for said in predictions.said)
    return int((before & ~after).sum()), int((~before & after).sum())


def _distribution(matrices: Sequence[np.ndarray], classes: Sequence[str]) -> str:
    """How often each class is answered: before as a light bar, after as a dark one under it."""
    bars = []
    for k, name in enumerate(classes):
        true, before, after = (int(n) for n in (matrices[0][k].sum(), *(m[:, k].sum() for m in matrices)))
        bars.append(charts.Bar(name, before, f"{before} before", "soft"))
        bars.append(charts.Bar("", after, f"{after} after, {true} in truth"))
    return charts.both(charts.bars, bars, "Answers per class, before and after")


def _per_class(before: np.ndarray, after: np.ndarray, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Class by class: images, the share right before and after, and what it is most often taken for."""
    for k, name in enumerate(classes):
        total = int(after[k].sum())
        wrong = np.where(np.arange(len(classes)) == k, 0, after[k])
        worst = int(wrong.argmax())
        old, new = (float(m[k, k] / total) if total else None for m in (before, after))
        change = units.minus(new, old)
        yield {
            "name": name,
            "images": total,
            "before": "–" if old is None else units.share(old),
            "after": "–" if new is None else units.share(new),
            "change": "–" if change is None else units.points(change).removesuffix(" points"),
            "worse": (change or 0.0) < 0,
            "mistaken": f"{classes[worst]} ({units.share(wrong[worst] / total)})" if wrong.any() else "",
        }


def _damaged(
    predictions: Answers, test: Split, classes: Sequence[str], divisor: float
) -> Iterator[dict[str, Any]]:
    before, after = predictions.said
    for i in np.argsort(-predictions.damage, kind="stable")[:DAMAGED]:
        if predictions.damage[i] <= 0:
            return
        true = predictions.labels[i]
        yield {
            "index": int(i),
            "picture": picture(test.images[i], divisor),
            "true": classes[true],
            "before": classes[before[i]],
            "after": classes[after[i]],
            "before_right": bool(before[i] == true),
            "after_right": bool(after[i] == true),
            "before_true": _percent(float(predictions.before[i, true])),
            "after_true": _percent(float(predictions.after[i, true])),
            "before_said": _percent(float(predictions.before[i, before[i]])),
            "after_said": _percent(float(predictions.after[i, after[i]])),
            "damage": f"{predictions.damage[i]:.2f}",
        }
