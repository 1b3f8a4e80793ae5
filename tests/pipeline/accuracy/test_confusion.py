"""The confusion matrix has a row for each true class and a column for each answer."""

import numpy as np

from tersor.pipeline.accuracy.confusion import confusion_matrix


def test_rows_are_true_classes_and_columns_answers() -> None:
    labels, said = np.array([0, 0, 0, 2, 2]), np.array([0, 1, 1, 2, 0])
    assert confusion_matrix(labels, said, 3).tolist() == [[1, 2, 0], [0, 0, 0], [1, 0, 1]]


def test_classes_that_nobody_has_or_answers_are_there() -> None:
    found = confusion_matrix(np.array([0]), np.array([0]), 4)
    assert found.shape == (4, 4)
    assert found.sum() == 1
