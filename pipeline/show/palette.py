"""The colours, each named once: those of the pages, in light and in dark, and those of the pictures."""

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "paper": "#fbfaf7",
    "card": "#f3f2ec",
    "ink": "#1f2723",
    "muted": "#66716b",
    "rule": "#dedcd2",
    "accent": "#0f6b5c",
    "soft": "#c5d5ce",
    "faint": "#d9d7cd",
    "bad": "#ad3f24",
    "cell": "#1f2723",
    "low": "#dfa23c",
    "high": "#123f66",
    "c0": "#0f6b5c",
    "c1": "#c4601d",
    "c2": "#3b62b8",
    "c3": "#a8387a",
    "c4": "#857409",
    "c5": "#6a4bb0",
    "c6": "#1f8fb3",
    "c7": "#7d4b2c",
    "c8": "#6f7874",
    "c9": "#b52f3e",
}
"""A page by day. low, high: the ends of a scale; c0 to c9: what has to be told apart."""

DARK: Mapping[str, str] = {
    "paper": "#151917",
    "card": "#1d2320",
    "ink": "#e7e9e4",
    "muted": "#98a39d",
    "rule": "#313833",
    "accent": "#57c2aa",
    "soft": "#38504a",
    "faint": "#343a36",
    "bad": "#ee8b6f",
    "cell": "#f3f5f1",
    "low": "#b8742a",
    "high": "#8fd6f2",
    "c0": "#57c2aa",
    "c1": "#f0995a",
    "c2": "#85a8f2",
    "c3": "#e583bb",
    "c4": "#d0bd4f",
    "c5": "#b39af0",
    "c6": "#6fcbe8",
    "c7": "#c99877",
    "c8": "#a3aca7",
    "c9": "#f0808a",
}
"""The same names by night."""

INK, MUTED, ACCENT = LIGHT["ink"], LIGHT["muted"], LIGHT["accent"]
PAPER, SOFT = "#ffffff", "#c9d8d1"
"""A picture stands on white, where the pages' soft green would be pale."""
OTHER, REFUSED = "#c2571a", "#9b1c1c"
"""What is set against ours, and what was not taken."""
NAVY, SLATE, ASH, SAGE = "#1f3b57", "#7a8793", "#9aa5b1", "#9aa5a0"
LINES = (ACCENT, OTHER, "#3b5b92", "#8a6d1f", "#7a3b6d", MUTED, "#2f9e44", "#b3261e")
"""Lines of one picture that have to be told apart."""
