"""Labels of channels: which of them are one, and which must stay."""

import numpy as np

Entry = np.ndarray | str
"""What is known of one dimension of a tensor: a label for each position, int64, or why no position can go
("" for dimensions that are no channels: images, pixels)."""


class Labels:
    """Disjoint sets of channel labels (union-find), with reasons why some are fixed."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.reasons: dict[int, str] = {}

    def fresh(self, count: int) -> np.ndarray:
        """`count` new labels."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, label: int) -> int:
        """The representative of a label's set."""
        while (parent := self.parent[label]) != label:
            self.parent[label] = label = self.parent[parent]
        return label

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """The representatives of many, in the shape of `labels`."""
        return np.array([self.root(label) for label in labels.ravel().tolist()], np.int64).reshape(
            labels.shape
        )

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Make the sets of two equally long lists one, element by element."""
        if one is other:
            return
        for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
            a, b = self.root(a), self.root(b)
            self.parent[max(a, b)] = min(a, b)

    def fix(self, labels: np.ndarray, why: str) -> None:
        """Say that these can never be removed."""
        for label in labels.ravel().tolist():
            self.reasons.setdefault(label, why)
