"""The processor is told, also where /proc is not there."""

from tersor import machine
from tersor.machine import cpu_features


def test_cpu_features_name_the_processor_and_its_flags():
    features = cpu_features()
    assert set(features) == {"model", "avx2", "avx512", "vnni"}
    assert features["model"]


def test_cpu_features_do_without_proc(monkeypatch):
    class Nowhere:
        def __init__(self, *_):
            pass

        def read_text(self):
            raise FileNotFoundError

    monkeypatch.setattr(machine, "Path", Nowhere)
    features = cpu_features()
    assert features["model"]
    assert features["vnni"] is None
