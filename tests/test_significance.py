import json
import math
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hzzray.statistics import significance as z
from hzzray.statistics.significance import poisson_interval

REFERENCE = Path(__file__).parents[1].parent / "shared" / "data" / "reference.json"

BACKGROUND = st.floats(1e-6, 1e6)
RATIO = st.floats(1e-12, 1e4)
S, B = 18.428, 10.301


def exact(s: float, b: float, sigma: float) -> float:
    """Asimov significance with background uncertainty as Cowan writes it, in 100 digits."""
    with localcontext(prec=100):
        s, b, v = Decimal(s), Decimal(b), Decimal(sigma) ** 2
        n = s + b
        first = n * (n * (b + v) / (b * b + n * v)).ln() if n else Decimal(0)
        return float((2 * (first - b * b / v * (1 + v * s / (b * (b + v))).ln())).sqrt())


def poisson_tail(n: int, mean: float) -> float:
    """P(N ≤ n)."""
    return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(n + 1))


@pytest.mark.parametrize(
    ("total", "b", "published"),
    [
        (43.102, 34.012, 2.208),
        (30.619, 21.529, 2.416),
        (28.729140024845144, 10.300928352079978, 4.425965281174207),
    ],
)
def test_published(total, b, published):
    digits = len(str(published).partition(".")[2])
    assert z.notebook(total, b) == pytest.approx(published, abs=0.51 * 10**-digits, rel=1e-15)


def test_published_as_shared():
    if not REFERENCE.is_file():
        pytest.skip("the published numbers are not beside this checkout")
    reference = json.loads(REFERENCE.read_text())
    rows = [row for release in ("2020", "2025") for row in reference[release]["published_significance"]]
    assert rows
    for row in rows:
        assert z.notebook(row["n_sig_as_published"], row["n_bg"]) == pytest.approx(
            row["significance_as_published"], abs=5e-4
        )


def test_reference_values():
    assert z.notebook(S + B, B) == pytest.approx(4.426, abs=5e-4)
    assert z.asimov(S, B) == pytest.approx(4.699, abs=5e-4)
    assert z.asimov_sigma(S, B, math.sqrt(0.3) * B) == pytest.approx(2.025, abs=5e-4)
    assert z.s_over_sqrt_b(S, B) == pytest.approx(S / math.sqrt(B))
    assert z.s_over_sqrt_b_sigma(3.0, 9.0, 4.0) == pytest.approx(3 / 5)


@example(b=100.0, ratio=0.0999, relative=1e-10)
@given(b=BACKGROUND, ratio=st.floats(1e-15, 1e6), relative=st.floats(1e-10, 1e3))
def test_asimov_keeps_its_digits(b, ratio, relative):
    s, sigma = b * ratio, b * relative
    assert z.asimov_sigma(s, b, sigma) == pytest.approx(exact(s, b, sigma), rel=1e-13)


@given(b=BACKGROUND, n=st.integers(0, 10**6), relative=st.floats(1e-10, 1e3))
def test_observed_is_the_same_ratio_with_a_sign(b, n, relative):
    sigma = b * relative
    expected = math.copysign(exact(n - b, b, sigma), n - b)
    assert z.observed_sigma(n, b, sigma) == pytest.approx(expected, rel=1e-11)


@given(b=BACKGROUND, ratio=RATIO)
def test_no_uncertainty_is_the_formula_without(b, ratio):
    s = b * ratio
    assert z.asimov_sigma(s, b, 0.0) == z.asimov(s, b)
    assert z.asimov_sigma(s, b, 1e-9 * math.sqrt(b) / (1 + ratio)) == pytest.approx(z.asimov(s, b), rel=1e-12)
    assert z.observed_sigma(s, b, 0.0) == z.observed(s, b)
    assert z.s_over_sqrt_b_sigma(s, b, 0.0) == z.s_over_sqrt_b(s, b)


@given(b=BACKGROUND, ratio=st.floats(1e-15, 1e-8), relative=st.floats(0, 10))
def test_small_signal_is_gaussian(b, ratio, relative):
    s, sigma = b * ratio, b * relative
    assert z.asimov_sigma(s, b, sigma) == pytest.approx(z.s_over_sqrt_b_sigma(s, b, sigma), rel=1e-7)


@given(b=BACKGROUND, ratio=RATIO, relative=st.floats(1e-3, 10), factor=st.floats(1.001, 100))
def test_monotonic(b, ratio, relative, factor):
    s, sigma = b * ratio, b * relative
    assert z.asimov_sigma(s * factor, b, sigma) > z.asimov_sigma(s, b, sigma)
    assert z.asimov_sigma(s, b, sigma * factor) < z.asimov_sigma(s, b, sigma)
    assert z.asimov(s, b) <= z.s_over_sqrt_b(s, b) * (1 + 1e-12)


def test_observed_signs():
    assert z.observed(16, 9.0) == pytest.approx(math.sqrt(2 * (16 * math.log(16 / 9) - 7)))
    assert z.observed(4, 9.0) == pytest.approx(-math.sqrt(2 * (4 * math.log(4 / 9) + 5)))
    assert z.observed(9, 9.0) == 0.0
    assert z.observed(0, 8.0) == pytest.approx(-4.0)
    assert z.observed_sigma(0, 8.0, 2.0) == pytest.approx(-exact(-8.0, 8.0, 2.0))
    assert z.asimov(0.0, 9.0) == 0.0


@pytest.mark.parametrize("b", [0.0, -1.0, math.nan, math.inf])
def test_no_background_defines_nothing(b):
    for value in (
        z.notebook(5.0, b),
        z.s_over_sqrt_b(5.0, b),
        z.s_over_sqrt_b_sigma(5.0, b, 1.0),
        z.asimov(5.0, b),
        z.asimov_sigma(5.0, b, 1.0),
        z.observed(5.0, b),
        z.observed_sigma(5.0, b, 1.0),
    ):
        assert value is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_defines_nothing(bad):
    assert z.notebook(bad, 1.0) is None
    assert z.s_over_sqrt_b(bad, 1.0) is None
    assert z.asimov(bad, 1.0) is None
    assert z.observed(bad, 1.0) is None
    assert z.asimov_sigma(1.0, 1.0, bad) is None
    assert z.observed_sigma(1.0, 1.0, bad) is None


def test_negative_counts():
    assert z.asimov(-1.0, 5.0) is None
    assert z.observed(-1, 5.0) is None
    assert z.asimov_sigma(1.0, 5.0, -1.0) is None
    assert z.s_over_sqrt_b(-2.0, 4.0) == -1.0


@given(s=st.floats(min_value=0), b=st.floats(min_value=0, exclude_min=True), sigma=st.floats(min_value=0))
def test_never_raises_nor_returns_nan(s, b, sigma):
    for value in (
        z.notebook(s, b),
        z.s_over_sqrt_b_sigma(s, b, sigma),
        z.asimov_sigma(s, b, sigma),
        z.observed_sigma(s, b, sigma),
    ):
        assert value is None or not math.isnan(value)


def test_garwood_table():
    # chi2.ppf of scipy gives these.
    low, high = poisson_interval([0, 1, 2, 3, 4, 5, 10])
    np.testing.assert_allclose(low, [0, 0.173, 0.708, 1.367, 2.086, 2.840, 6.891], atol=6e-4)
    np.testing.assert_allclose(high, [1.841, 3.300, 4.638, 5.918, 7.163, 8.382, 14.267], atol=6e-4)


@given(n=st.lists(st.integers(0, 400), min_size=1, max_size=8), cl=st.floats(0.01, 0.9999))
def test_interval_covers_by_definition(n, cl):
    intervals = poisson_interval(n, cl)
    assert intervals.shape == (2, len(n))
    tail = (1 - cl) / 2
    for count, low, high in zip(n, *intervals, strict=True):
        assert poisson_tail(count, high) == pytest.approx(tail, rel=1e-8)
        if count:
            assert 1 - poisson_tail(count - 1, low) == pytest.approx(tail, rel=1e-8, abs=1e-11)
        else:
            assert low == 0.0


def test_large_counts_are_gaussian():
    n = np.array([10**4, 10**6])
    low, high = poisson_interval(n)
    np.testing.assert_allclose((high - low) / 2, np.sqrt(n), rtol=6e-3)


def test_the_approximation_joins_on():
    at = np.array([100_000, 100_001])
    for ends in poisson_interval(at):
        slope = np.diff(ends)[0]
        assert slope == pytest.approx(1, abs=0.002)


def test_interval_of_nothing():
    assert poisson_interval([]).shape == (2, 0)


@pytest.mark.parametrize("n", [[-1], [0.5], [math.nan], [math.inf]])
def test_interval_refuses_what_is_no_count(n):
    with pytest.raises(ValueError, match="counts"):
        poisson_interval(n)


@pytest.mark.parametrize("cl", [0.0, 1.0, math.nan])
def test_interval_refuses_what_is_no_level(cl):
    with pytest.raises(ValueError, match="confidence"):
        poisson_interval([1], cl)
