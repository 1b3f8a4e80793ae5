"""The reports' tables: trials of their studies land in the right rows."""

from trials import trial

from tersor.pipeline.reports import r1 as table_r1
from tersor.pipeline.reports import r3 as table_r3
from tersor.pipeline.study.trial import Trial


def network(widths: list[int], hidden: int, accuracy: float, seconds: float) -> Trial:
    settings = {"arguments.widths": widths, "arguments.kernels": [3, 3], "arguments.hidden": hidden}
    metrics = {
        "test_accuracy_fraction": accuracy,
        "train_accuracy_fraction": 0.9,
        "training_cpu_seconds": seconds,
        "epochs": 5,
        "parameters": 1000,
        "macs": 2000,
    }
    return trial(settings=settings, metrics=metrics)


def test_r3_table_sorts_ours_and_stands_beside_the_report() -> None:
    trials = [network([8, 8], 64, 0.88, 70), network([8, 8], 100, 0.87, 60), network([32, 32], 64, 0.89, 200)]
    rows = [table_r3.row_of(t) for t in trials]
    text = table_r3.markdown(rows, 72)
    assert text.startswith("3 of 72 networks")
    best, quick = (text.split(f"best three by {word}")[1] for word in ("test accuracy", "time"))
    assert best.index("32 k3, 32 k3, 64") < best.index("8 k3, 8 k3, 64") < best.index("8 k3, 8 k3, 100")
    assert quick.index("8 k3, 8 k3, 100") < quick.index("8 k3, 8 k3, 64") < quick.index("32 k3, 32 k3, 64")
    assert "| 8 k3, 8 k3, 100 | 88.57 | 87.00 | 305.5 | 60 |" in text
    assert "| 16 k5, 32 k5, 100 | 89.14 | - | 570.8 | - |" in text
    assert "| conv1 filters | 8 | 87.50 | 65 |" in text


def test_r1_trials_are_points_of_their_layer() -> None:
    metrics = {
        "test_accuracy_fraction": 0.5,
        "test_top5_accuracy_fraction": 0.9,
        "test_loss": 1.5,
        "nonzero_weights": 10,
        "effective_macs": 100,
    }
    one = trial(settings={"sparsity.layers": ["conv2"], "sparsity.amount": 0.3}, metrics=metrics)
    every = trial(settings={"sparsity.amount": 0.3}, metrics=metrics)
    rows = table_r1.r1_table([table_r1.point_of(one), table_r1.point_of(every)])
    found = {row["layer"]: row for row in rows if row["top5_percent"] is not None}
    assert {row["level"] for row in found.values()} == {0.3}
    assert found["conv2"]["top5_percent"] == 90.0
    assert found[table_r1.ALL_LAYERS]["r1_top5_percent"] == 22.28
