"""Report R2's figures beside ours: pruning by standard deviation and by percentage, sharing with 2 to 5 bits.

R2's network after fine-tuning and ours are pruned differently, so the sharing rows compare how accuracy falls
with bits, not the networks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tersor.pipeline.show.markdown import markdown_table, number_or_dash
from tersor.pipeline.show.palette import NAVY, OTHER, SLATE
from tersor.pipeline.show.picture import PLAIN, png
from tersor.pipeline.study.trial import Trial

STD, PERCENT, SHARING = "studies/r2-std.yaml", "studies/r2-percent.yaml", "studies/r2-sharing.yaml"

R2_STD: Mapping[float, tuple[float, float]] = {0.75: (66.88, 83.14), 1.25: (84.24, 13.0)}
"""s -> (sparsity in %, accuracy in %), without retraining."""
R2_PERCENT: Mapping[float, float] = {0.6688: 68.16}
"""Fraction of every layer -> accuracy in %, without retraining."""
R2_SHARING: Mapping[int, float] = {5: 89.41, 4: 89.12, 3: 86.75, 2: 73.08}
"""Bits -> accuracy in %, k-means without retraining, on R2's network of 84 % sparsity (89.84 % before)."""
R2_BASELINE = 91.52


def make_table(data: Path | None, runs: Path, *, fast: bool, quiet: bool) -> tuple[list[dict[str, Any]], str]:
    """Run R2's three studies (their common stages once); returns the rows and them as Markdown.

    Args:
        data: folder with CIFAR-10 as torchvision lays it out.
        runs: folder of runs.
        fast: their small variants.
        quiet: no progress.
    """
    from tersor.pipeline.study.file import read_study
    from tersor.pipeline.study.run import run_study

    rows = []
    for path in (STD, PERCENT, SHARING):
        trials = run_study(read_study(Path(path), fast=fast), runs, data, quiet=quiet)[1]
        rows += [row_of(path, trial) for trial in trials if trial.finished]
    return rows, markdown(rows)


def row_of(study: str, trial: Trial) -> dict[str, Any]:
    """A trial beside R2's figure for the same setting; percentages, None where R2 has none."""
    metrics, settings = trial.metrics, trial.settings
    amount = settings["sharing.bits"] if study == SHARING else settings["sparsity.amount"]
    theirs: dict[str, dict[Any, float]] = {
        STD: {s: accuracy for s, (_, accuracy) in R2_STD.items()},
        PERCENT: dict(R2_PERCENT),
        SHARING: dict(R2_SHARING),
    }
    return {
        "study": {STD: "std", PERCENT: "percent", SHARING: "sharing"}[study],
        "amount": amount,
        "sparsity_percent": 100 * metrics["sparsity_fraction"],
        "accuracy_percent": 100 * metrics["test_accuracy_fraction"],
        "packed_bytes": metrics["packed_bytes"],
        "r2_sparsity_percent": R2_STD.get(amount, (None,))[0] if study == STD else None,
        "r2_accuracy_percent": theirs[study].get(amount),
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown tables, one a study."""
    titles = {
        "std": ("Weights below s x standard deviation of their layer, no retraining", "s"),
        "percent": ("The same fraction of every layer, no retraining", "fraction"),
        "sharing": (
            "k-means on the narrowed and pruned network (R2: 84 % zeros, 89.84 %), no tuning",
            "bits",
        ),
    }
    lines = []
    for study, (title, amount) in titles.items():
        own = [row for row in rows if row["study"] == study]
        cells = [
            [
                f"{row['amount']:g}",
                f"{row['sparsity_percent']:.2f}",
                f"{row['accuracy_percent']:.2f}",
                f"{row['packed_bytes']:,}",
                *(number_or_dash(row[key], ".2f") for key in ("r2_sparsity_percent", "r2_accuracy_percent")),
            ]
            for row in own
        ]
        columns = (amount, "sparsity %", "accuracy %", "packed bytes", "R2 sparsity %", "R2 accuracy %")
        lines += [f"### {title}", "", markdown_table(columns, cells, "r"), ""]
    return "\n".join(lines)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against sparsity and against shared bits as a PNG, R2's points beside them."""
    with png(path, (10.5, 4.4), style=PLAIN) as figure:
        panel, shared = figure.subplots(1, 2, width_ratios=(3, 2))
        for study, words, colour in (
            ("std", "by standard deviation", NAVY),
            ("percent", "by percentage", OTHER),
        ):
            own = sorted((r["sparsity_percent"], r["accuracy_percent"]) for r in rows if r["study"] == study)
            if own:
                panel.plot(*zip(*own, strict=True), marker="o", ms=4, color=colour, label=f"here, {words}")
        panel.plot(
            *zip(*R2_STD.values(), strict=True),
            ls="",
            marker="D",
            color=SLATE,
            label="R2, by standard deviation",
        )
        percent = [(100 * fraction, accuracy) for fraction, accuracy in R2_PERCENT.items()]
        panel.plot(*zip(*percent, strict=True), ls="", marker="s", color=SLATE, label="R2, by percentage")
        panel.axhline(10, color=SLATE, lw=0.8, ls=":")
        panel.text(99, 11.5, "chance", color=SLATE, fontsize=9, ha="right")
        panel.set(
            xlabel="zeros among all weights (%)", ylabel="test accuracy (%)", xlim=(0, 100), ylim=(0, 100)
        )
        panel.set_title("weights pruned, no retraining", loc="left", fontsize=11)
        panel.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.12))
        pruned = [row for row in rows if row["study"] == "sharing"]
        own = sorted((row["amount"], row["accuracy_percent"]) for row in pruned)
        if own:
            label = f"here, narrowed, then {pruned[0]['sparsity_percent']:.0f} % zeros"
            shared.plot(*zip(*own, strict=True), marker="o", ms=4, color=NAVY, label=label)
        theirs = sorted(R2_SHARING.items())
        shared.plot(*zip(*theirs, strict=True), ls="", marker="D", color=SLATE, label="R2, 84 % zeros")
        shared.set(xlabel="bits of an index", xticks=[bits for bits, _ in theirs], ylim=(60, 100))
        shared.set_title("pruned, retrained, shared by k-means", loc="left", fontsize=11)
        shared.legend(frameon=False, loc="lower right")
        figure.suptitle("VGG16-half on CIFAR-10, beside report R2", x=0.01, ha="left", fontsize=12)
        figure.tight_layout()
