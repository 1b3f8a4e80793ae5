"""What a command says to do next can be typed as it stands."""

from pathlib import Path

from tersor.pipeline.cli.main import _next


def test_the_next_command_repeats_data_settings_and_runs() -> None:
    told = _next(
        "deploy", Path("r.yaml"), ["tune.epochs=3", "data.mean=[0.5, 0.5]"], Path("my data"), Path("x")
    )
    assert told == (
        "tersor deploy r.yaml --data 'my data' --set tune.epochs=3 --set 'data.mean=[0.5, 0.5]' --runs x"
    )


def test_defaults_are_left_out() -> None:
    assert _next("deploy", Path("r.yaml"), None, None, Path("runs")) == "tersor deploy r.yaml"
