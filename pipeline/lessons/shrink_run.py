"""`tersor lesson shrink`: R3's channel-by-channel pruning of a run's network, its table beside R3's."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tersor.errors import BadInput
from tersor.files import write_json
from tersor.models.cost import cost
from tersor.pipeline.lessons.shrink import Bench, Shrinking, Shrunk, Step, check_widths, rows, shrink
from tersor.pipeline.lessons.shrink_picture import draw_shrinking
from tersor.pipeline.recipe.recipe import Tune
from tersor.pipeline.show.markdown import markdown_table
from tersor.pipeline.stages.environment import check_device
from tersor.pipeline.stages.run_folder import Run
from tersor.pipeline.stages.store import Store
from tersor.progress import Reporter

R3: Mapping[str, Mapping[int, tuple[float, float]]] = {
    "conv1": {
        7: (88.16, 90.63),
        6: (86.89, 90.84),
        5: (89.34, 90.74),
        4: (84.09, 90.37),
        3: (83.64, 89.67),
        2: (79.57, 89.54),
        1: (29.50, 88.10),
    },
    "conv2": {
        7: (88.10, 88.09),
        6: (73.37, 88.22),
        5: (84.61, 88.15),
        4: (75.88, 87.91),
        3: (87.84, 88.27),
        2: (64.79, 86.45),
    },
    "fc1": {99: (10.06, 85.62), 98: (8.79, 87.51), 97: (12.89, 86.10)},
}
"""Report R3, Fashion-MNIST: layer -> width -> test accuracy in % after the removal and after 5 epochs."""


def run_shrink(
    run: Run,
    data: Path | None,
    *,
    layers: list[str],
    widths: Sequence[str],
    settings: Mapping[str, Any],
    tuning: Mapping[str, Any],
    quiet: bool,
) -> tuple[Shrunk, Path]:
    """Shrink the first stage's network; write shrink.json, shrink.png, network and ONNX into RUN/shrink.

    Args:
        run: the finished run; the steps go into the stage cache beside it.
        data: where its data lie now.
        layers: names or patterns, in order; empty: all that can be shrunk.
        widths: `layer=99,98,97` each.
        settings: `max_drop`, `against` and `by` of Shrinking.
        tuning: settings of the `tune` stage that follows every removal.
        quiet: no progress.

    Returns:
        The steps, and the picture's path.

    Raises:
        BadInput: no such run or layer, or widths that cannot be visited.
        Unavailable: the run was trained on a GPU, which is not there.
    """
    check_device(run.recipe)
    network = run.baseline()
    plan = check_widths(network, layers, dict(map(parse_widths, widths)))
    recipe, dataset = run.recipe, run.data(data)
    how = Shrinking(plan, Tune(stage="tune", **tuning), **settings)
    bench = Bench(recipe, dataset, Store(run.folder.parent))
    with Reporter([("shrink", 1.0)], quiet=quiet) as reporter, reporter.step() as tell:
        shrunk = shrink(network, how, bench, tell, lambda step: reporter.line(line_of(step)))
    with run.results("shrink") as folder:
        write_json(folder / "shrink.json", as_json(shrunk))
        shrunk.network.save(folder / "network.safetensors")
        draw_shrinking(shrunk, R3 if recipe.data.kind == "fashion_mnist" else {}, folder / "shrink.png")
    return shrunk, folder / "shrink.png"


def parse_widths(text: str) -> tuple[str, tuple[int, ...]]:
    """`fc1=99,98` as ("fc1", (99, 98)).

    Raises:
        BadInput: anything else.
    """
    layer, sign, numbers = text.partition("=")
    try:
        if not sign or not layer:
            raise ValueError("no `=`")
        return layer, tuple(int(number) for number in numbers.split(","))
    except ValueError as error:
        raise BadInput(
            "widths cannot be read",
            got=text,
            wanted="LAYER=WIDTH,WIDTH,..., such as fc1=99,98,97",
            where="--widths",
        ) from error


def as_json(shrunk: Shrunk) -> dict[str, Any]:
    """Everything found, as plain data; pairs are (validation, test), fractions of 1."""
    counted = cost(shrunk.network)
    end = next((s.after_tuning for s in reversed(shrunk.steps) if s.kept), shrunk.start)
    final = {"accuracy": end, "macs": counted.macs, "flops": counted.flops, "parameters": counted.parameters}
    return {"start": shrunk.start, "final": final, "steps": list(rows(shrunk))}


def line_of(step: Step) -> str:
    """One step in a line, for the terminal; validation accuracy."""
    before, removed, tuned = (100 * s[0] for s in (step.before, step.after_removal, step.after_tuning))
    end = "" if step.kept else "   too much: not kept"
    return f"{step.layer} at {step.width}: {before:.2f} -> {removed:.2f} -> {tuned:.2f} %{end}"


def shrink_markdown(shrunk: Shrunk) -> str:
    """The triplets beside R3's; a removal of several channels is one line."""
    lines = []
    for s in shrunk.steps:
        theirs = R3.get(s.layer, {}).get(s.width)
        cells = [*_percents(s.before[0], s.after_removal[0], s.after_tuning[0])]
        cells += _percents(s.after_removal[1], s.after_tuning[1])
        cells += [f"{v:.2f}" for v in theirs] if theirs else ["", ""]
        width = f"{s.width}" if s.kept else f"{s.width}, not kept"
        lines.append([s.layer, width, *cells, f"{s.macs:,}"])
    validation = ("validation: before", "removed", "tuned")
    test = ("test: removed", "tuned", "R3: removed", "tuned")
    table = markdown_table(("layer", "width", *validation, *test, "MACs"), lines, "lr")
    return f"{table}\n\n{last_line(shrunk)}\n"


def last_line(shrunk: Shrunk) -> str:
    """What the shrinking started from and ended with."""
    end = as_json(shrunk)["final"]
    start, final = (f"{a[0]:.2%} validation, {a[1]:.2%} test" for a in (shrunk.start, end["accuracy"]))
    return f"From {start} to {final}; {end['macs']:,} MACs, {end['flops']:,} FLOPs (R3's count)."


def _percents(*fractions: float) -> Iterable[str]:
    return [f"{100 * f:.2f}" for f in fractions]
