"""Windows, shares of resampled medians, and the beginning of lasting states."""

from __future__ import annotations

import numpy as np
import pytest

from gradlens.diagnosis.recorded_rows import late_windows, share_beyond, since


def test_the_beginning_of_a_lasting_state() -> None:
    assert since(np.array([True, True, True])) == 0
    assert since(np.array([True, False, True, True])) == 2
    assert since(np.array([False] * 10 + [True] * 8 + [False] + [True] * 21)) == 10
    assert since(np.array([False, False])) == 1


def test_windows_and_shares() -> None:
    assert [window for window, _ in late_windows(40)] == [slice(20, 40)]
    assert [window for window, _ in late_windows(100)] == [slice(50, 100), slice(80, 100)]
    series = np.random.default_rng(0).normal(size=200)
    assert share_beyond(series, -1, below=True) == pytest.approx(1 / 502)
    assert share_beyond(series, 1, below=True) == pytest.approx(501 / 502)
    assert 0.02 < share_beyond(series, float(np.median(series)), below=True) < 0.98
