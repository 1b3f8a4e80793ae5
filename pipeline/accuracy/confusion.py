"""Which classes a network takes for which."""

import numpy as np


def confusion_matrix(labels: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 (classes, classes): rows are the true classes, columns the answers.

    Args:
        labels: true classes, int64 (N,), 0 to classes - 1.
        said: what the network answers, likewise.
        classes: how many there are.
    """
    return np.bincount(labels * classes + said, minlength=classes**2).reshape(classes, classes)
