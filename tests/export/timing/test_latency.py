"""From the medians of sittings to ratios whose intervals are never narrower than the clock itself."""

import numpy as np
import pytest

from tersor.export.timing import latency
from tersor.export.timing.latency import LEAST_NOISE, LatencyRow, figure, noise_of


def test_the_ratio_is_the_ratio_of_the_medians_shown():
    base, own = [10.0, 11.0, 10.5, 10.2], [2.0, 2.1, 2.2, 2.0]
    shown = figure(base, own, 0.0)
    assert shown.speedup[1] == pytest.approx(figure(base, base, 0.0).p50_ms[1] / shown.p50_ms[1])


def test_the_interval_is_students_t_over_the_sittings():
    """Four sittings whose log ratios are -a, a, -a, a: s = a sqrt(4/3), t of 3 degrees of freedom 3.182."""
    a = 0.01
    shown = figure([1.0] * 4, np.exp([-a, a, -a, a]), 0.0)
    reach = 3.182 * a * np.sqrt(4 / 3) / 2
    assert np.log(shown.speedup) == pytest.approx([-reach, 0.0, reach])
    assert shown.half_width == pytest.approx(np.expm1(reach))


def test_intervals_hold_the_true_ratio_nineteen_times_in_twenty():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        base, own = np.exp(0.02 * rng.standard_normal((2, 4)))
        low, _, high = figure(base, own, 0.0).speedup
        hits += low <= 1.0 <= high
    assert 0.935 <= hits / 2000 <= 0.965


def test_no_interval_is_narrower_than_the_noise_however_steady_the_sittings():
    shown = figure([4.0] * 4, [2.0] * 4, 0.03)
    assert shown.speedup == pytest.approx((2 / 1.03, 2.0, 2 * 1.03))


def test_the_baseline_is_one_against_itself():
    base = [1.0, 1.2, 0.9, 1.1]
    assert figure(base, base, 0.05).speedup == (1.0, 1.0, 1.0)


def test_the_noise_floor_is_the_far_end_of_the_baselines_ratio_to_itself():
    base, again = [1.0, 1.0, 1.0, 1.0], [1.01, 1.03, 1.02, 1.02]
    low, _, high = figure(base, again, 0.0).speedup
    assert noise_of(base, again) == pytest.approx(1 / low - 1)
    assert noise_of(again, base) == pytest.approx(noise_of(base, again))
    assert high < 1


def test_sittings_that_agree_by_chance_do_not_make_the_clock_finer():
    assert noise_of([1.0] * 4, [1.0] * 4) == LEAST_NOISE


def test_the_points_of_the_t_distribution_reach_as_far_as_there_are_sittings():
    assert len(latency.STUDENT_T) > latency.MOST_SITTINGS - 1
    assert list(latency.STUDENT_T) == sorted(latency.STUDENT_T, reverse=True)


def row(**changes):
    """A row with given figures."""
    times = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "p50_low_ms", "p50_high_ms"), 1.0)
    ratios = {"speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1, "distinguishable": True}
    plain = {"provider": "CPU", "batch": 1, "threads": 1, "throughput_per_s": 1.0, "rounds": 9}
    return LatencyRow(**{**times, **ratios, **plain, **changes})


def test_the_device_decides_where_it_was_timed():
    assert row().decisive == (1.9, 2.0, 2.1)
    on_device = row(device_p50_ms=0.1, device_speedup=3.0, device_speedup_low=2.9, device_speedup_high=3.1)
    assert on_device.decisive == (2.9, 3.0, 3.1)


def test_a_row_of_an_older_bundle_is_read_and_a_newer_ones_keys_are_kept():
    told = {k: v for k, v in row().to_json().items() if k not in ("noise_fraction", "file")}
    read = LatencyRow.of({**told, "later": 1}, "a row")
    assert read.noise_fraction is None
    assert read.to_json()["later"] == 1
