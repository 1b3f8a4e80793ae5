"""Numbers as people read them: bytes, counts, shares, times and ratios, with their units; and any JSON value.

Every function of a number takes None (and NaN) and answers `NOT_MEASURED`, so that a missing figure is said
to be missing wherever it would have stood.
"""

import math
from collections.abc import Mapping
from typing import Any

NOT_MEASURED = "not measured"
LISTED = 24
"""A longer list is counted, not printed; the JSON it comes from has it whole."""


def size(size_bytes: float | None) -> str:
    """Bytes with decimal prefixes: 950 B, 12.3 kB, 4.80 MB."""
    return _scaled(size_bytes, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")), "B")


def count(number: float | None) -> str:
    """A count: 950, 12.3 k, 4.80 M."""
    return _scaled(number, ((1e9, "G"), (1e6, "M"), (1e3, "k")), "")


def share(fraction: float | None) -> str:
    """A fraction of 1 in percent with two decimals."""
    return NOT_MEASURED if _missing(fraction) else f"{100 * _number(fraction):.2f} %"


def points(fraction: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return NOT_MEASURED if _missing(fraction) else _minus(f"{100 * _number(fraction):+.2f} points")


def time(milliseconds: float | None, *, like_ms: float | None = None) -> str:
    """Milliseconds to three figures; microseconds below a tenth, seconds from a thousand.

    like_ms: another time whose unit is to be used, for numbers that stand side by side.
    """
    if _missing(milliseconds):
        return NOT_MEASURED
    value = _number(milliseconds)
    scale = value if _missing(like_ms) else _number(like_ms)
    if scale < 0.1:
        return f"{_three(1000 * value)} µs"
    return f"{_three(value)} ms" if scale < 1000 else f"{_three(value / 1000)} s"


def seconds(value: float | None) -> str:
    """Seconds to three figures, milliseconds below one, minutes from 120 s."""
    if _missing(value):
        return NOT_MEASURED
    number = _number(value)
    if number < 1:
        return time(1000 * number)
    return f"{_three(number)} s" if number < 120 else f"{number / 60:.1f} min"


def times(ratio: float | None) -> str:
    """A ratio: 4.12×, 53.9×, 142×."""
    return NOT_MEASURED if _missing(ratio) else f"{_three(_number(ratio))}×"


def interval(low: float | None, high: float | None) -> str:
    """A ratio's 95 % interval: [1.46, 1.55]; empty where an end is missing."""
    return "" if _missing(low) or _missing(high) else f"[{_number(low):.2f}, {_number(high):.2f}]"


def time_interval(low_ms: float | None, high_ms: float | None, *, like_ms: float | None) -> str:
    """The interval of a time, in the unit that `like_ms` has: [12.1, 16.9]; empty where an end is missing."""
    if _missing(low_ms) or _missing(high_ms):
        return ""
    ends = (time(ms, like_ms=like_ms).split(" ")[0] for ms in (low_ms, high_ms))
    return f"[{', '.join(ends)}]"


def rate(per_second: float | None) -> str:
    """Images per second."""
    text = count(per_second)
    return text if text == NOT_MEASURED else f"{text.strip()}/s"


def small(value: float | None) -> str:
    """A tiny difference, such as 3.1e-07."""
    return NOT_MEASURED if _missing(value) else f"{_number(value):.2g}"


def plain(value: Any) -> str:
    """Any value of a JSON file as words; a number has no unit."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        if len(value) > LISTED or any(isinstance(v, Mapping) for v in value):
            return f"{len(value)} entries"
        return ", ".join(plain(v) for v in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def over(before: float | None, after: float | None) -> float | None:
    """before / after; None where either is missing or `after` is 0."""
    return None if _missing(before) or _missing(after) or not after else _number(before) / after


def minus(after: float | None, before: float | None) -> float | None:
    """after - before; None where either is missing."""
    return None if _missing(before) or _missing(after) else _number(after) - _number(before)


def known(value: object) -> float | None:
    """The value if it is a finite number, else None; for figures read from a JSON file."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _missing(value: float | None) -> bool:
    return known(value) is None


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _scaled(value: float | None, steps: tuple[tuple[float, str], ...], unit: str) -> str:
    if _missing(value):
        return NOT_MEASURED
    number = _number(value)
    for step, name in steps:
        if abs(number) >= step:
            return f"{_three(number / step)} {name}"
    return f"{number:.0f} {unit}".rstrip()


def _three(value: float) -> str:
    """Three figures, without an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
