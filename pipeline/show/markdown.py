"""Tables in Markdown, for docs/ and the terminal."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]], align: str = "l") -> str:
    """A table; no line break after its last line.

    Args:
        header: names of the columns; one may be empty.
        rows: a cell a column, shown by its `str`; bars are escaped, line breaks become spaces.
        align: `l` (left) or `r` (right) for each column, the last one for all columns that follow.
    """
    sides = align.ljust(len(header), align[-1])
    lines = ["|" + "".join(f" {_escaped(name)} |" if name else " |" for name in header)]
    lines.append("|" + "".join("---:|" if side == "r" else "---|" for side in sides))
    lines += ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows]
    return "\n".join(lines)


def number_or_dash(value: float | None, form: str) -> str:
    """A cell's number in a format such as `.2f`; a dash where there is none."""
    return "-" if value is None else format(value, form)


def _escaped(cell: object) -> str:
    return " ".join(str(cell).replace("|", "\\|").splitlines())
