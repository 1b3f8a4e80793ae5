"""`tersor look cost`: what a network costs, layer by layer, before and after; Markdown and JSON."""

from collections.abc import Callable, Sequence
from typing import Any

from tersor.errors import BadInput
from tersor.models.cost import Cost, LayerCost, cost
from tersor.pipeline.shipping.opened import Finished
from tersor.pipeline.show.markdown import markdown_table

Column = tuple[str, Callable[[LayerCost], int], Callable[[Cost], int]]
"""Heading, a layer's figure, and the network's."""


def run_costs(run: Finished, *, batch: int, bits: int) -> tuple[Cost, Cost]:
    """The trained network and the compressed one, counted.

    Args:
        run: the finished run, or a bundle.
        batch: images at once, for the memory figures.
        bits: bits per weight of the compressed network; the trained one's are counted at 32.

    Raises:
        BadInput: the run is not finished or damaged, or batch or bits are out of range.
    """
    if batch < 1 or not 1 <= bits <= 32:
        raise BadInput(
            "batch or bits are out of range",
            got=f"batch {batch}, bits {bits}",
            wanted="a batch of at least 1 and 1 to 32 bits",
            where="cost",
        )
    before, after = run.baseline(), run.network()
    return cost(before, batch=batch), cost(after, batch=batch, bits=bits)


def as_json(before: Cost, after: Cost) -> dict[str, Any]:
    """Both counts, totals and layers, as plain data."""
    return {"before": before.to_dict(), "after": after.to_dict()}


def cost_markdown(before: Cost, after: Cost) -> str:
    """Two tables, work and memory, with a line for each layer and `before → after` where they differ."""
    work: Sequence[Column] = (
        ("parameters", lambda r: r.parameters, lambda c: c.parameters),
        ("weights not zero", lambda r: r.nonzero_weights, lambda c: c.nonzero_weights),
        ("MACs", lambda r: r.macs, lambda c: c.macs),
        ("MACs not zero", lambda r: r.effective_macs, lambda c: c.effective_macs),
        ("FLOPs (R3)", lambda r: r.flops, lambda c: c.flops),
    )
    memory: Sequence[Column] = (
        ("weights", lambda r: r.weight_bytes, lambda c: c.weight_bytes),
        ("activations, elements an image", lambda r: r.activations, lambda c: c.activations),
        (
            "inference",
            lambda r: r.inference_memory_bytes(before.batch),
            lambda c: c.inference_memory_bytes,
        ),
        ("training (R1)", lambda r: r.training_memory_bytes(before.batch), lambda c: c.training_memory_bytes),
    )
    bits = f"weights at {_change(str(before.bits), str(after.bits))} bits"
    parts = [
        "## Work for one image",
        _table(before, after, work, shapes=True),
        f"## Memory in bytes, batch {before.batch}, {bits}",
        _table(before, after, memory, shapes=False),
    ]
    if after.uncounted:
        parts.append(f"Not counted, of layers of other types: {', '.join(after.uncounted)}.")
    return "\n\n".join(parts) + "\n"


def _table(before: Cost, after: Cost, columns: Sequence[Column], *, shapes: bool) -> str:
    names = ["layer", "type", *(["output"] if shapes else []), *(name for name, _, _ in columns)]
    rows: list[Sequence[str]] = []
    later = {row.name: row for row in after.layers}
    for row in before.layers:
        other = later.get(row.name)
        shape = [_change(_shape(row), _shape(other) if other else "gone")] if shapes else []
        cells = [_change(f"{of(row):,}", f"{of(other):,}" if other else "0") for _, of, _ in columns]
        rows.append([row.name, row.type, *shape, *cells])
    totals = [_change(f"{of(before):,}", f"{of(after):,}") for _, _, of in columns]
    rows.append(["all", "", *([""] if shapes else []), *totals])
    return markdown_table(names, rows, "lllr" if shapes else "llr")


def _shape(row: LayerCost) -> str:
    return "x".join(map(str, row.output_shape))


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"
