"""`tersor look weights` draws a finished run and tells what it cannot draw."""

import json
from pathlib import Path

from story.harness import Server


def test_the_picture_is_written(server: Server, copy: Path) -> None:
    drawn = server.run("look", "weights", "runs/tiny", cwd=copy)
    assert drawn.code == 0, drawn.stderr
    assert drawn.stdout.strip() == "runs/tiny/weights.png"
    assert (copy / "runs/tiny/weights.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_shared_weights_is_told(server: Server, copy: Path) -> None:
    path = copy / "runs/tiny/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["stages"] = metrics["stages"][:1]
    path.write_text(json.dumps(metrics))
    drawn = server.run("look", "weights", "runs/tiny", cwd=copy)
    assert drawn.code == 2
    assert "no stage of this run shares or rounds weights. Got stages train." in drawn.message
    assert not (copy / "runs/tiny/weights.png").exists()
