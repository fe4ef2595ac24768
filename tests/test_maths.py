"""The vectorised sine, cosine and hyperbolic sine against numpy's."""

import math

import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hzzray.physics.maths import sincos, sinh

PROFILE = settings(deadline=None, derandomize=True, database=None)

# Half a unit in the last place is what numpy's reference may be off by itself.
ULP = 2.5


@nb.njit(error_model="numpy")
def sincos_of(x):
    sine, cosine = np.empty(x.size), np.empty(x.size)
    for i in range(x.size):
        sine[i], cosine[i] = sincos(x[i])
    return sine, cosine


@nb.njit(error_model="numpy")
def sinh_of(x):
    out = np.empty(x.size)
    for i in range(x.size):
        out[i] = sinh(x[i])
    return out


def angles(bound):
    """Angles as a file has them, float32, evenly and near the borders of quadrants."""
    rng = np.random.default_rng(5)
    borders = np.arange(-int(bound / (math.pi / 4)), int(bound / (math.pi / 4))) * math.pi / 4
    nearby = borders[:, np.newaxis] + np.array([-1e-6, 0.0, 1e-6])
    return np.concatenate([rng.uniform(-bound, bound, 200_000), nearby.ravel(), [0.0]]).astype(np.float32).astype(float)


def exactly(function, x):
    """NumPy's function beyond double precision: its own of doubles is off by more than one place on some processors."""
    return function(x.astype(np.longdouble))


def in_ulp(got, true, least=0.0):
    """Distance in units of the last place of the true value, or of ``least`` where that is greater."""
    return np.abs(got - true) / np.spacing(np.maximum(np.abs(true), least).astype(float))


@pytest.mark.parametrize("bound", [math.pi, 1e3])
def test_sincos_is_within_two_units_in_the_last_place_of_every_angle_a_file_can_hold(bound):
    x = angles(bound)
    sine, cosine = sincos_of(x)
    assert in_ulp(sine, exactly(np.sin, x)).max() <= ULP
    assert in_ulp(cosine, exactly(np.cos, x)).max() <= ULP


def test_sincos_anywhere_below_1e5_errs_by_less_than_the_precision_of_one():
    zeros = np.arange(-60_000, 60_000) * (math.pi / 2)
    x = np.concatenate([zeros, np.random.default_rng(8).uniform(-1e5, 1e5, 200_000)])
    sine, cosine = sincos_of(x)
    assert np.abs(sine - exactly(np.sin, x)).max() < 2.0**-52
    assert np.abs(cosine - exactly(np.cos, x)).max() < 2.0**-52


def test_what_is_no_angle_has_no_sine():
    assert np.isnan(sincos_of(np.array([1.1e5, -1e9, np.inf, np.nan]))).all()
    assert np.isfinite(sincos_of(np.array([1e5, -1e5]))).all()


def test_sincos_at_the_simplest_angles():
    assert sincos(0.0) == (0.0, 1.0)
    assert sincos(math.pi / 6) == pytest.approx((0.5, math.sqrt(0.75)), rel=1e-15)
    assert sincos(math.pi / 2) == pytest.approx((1.0, 0.0), abs=1e-15)
    assert sincos(math.pi) == pytest.approx((0.0, -1.0), abs=1e-15)
    assert sincos(-math.pi / 2) == pytest.approx((-1.0, 0.0), abs=1e-15)


@PROFILE
@given(st.floats(-1e3, 1e3))
def test_sine_is_odd_and_cosine_even_to_the_last_bit_and_their_squares_make_one(x):
    sine, cosine = sincos(x)
    assert sincos(-x) == (-sine, cosine)
    assert sine * sine + cosine * cosine == pytest.approx(1.0, rel=1e-15)


@PROFILE
@given(st.floats(-1e3, 1e3, width=32))
def test_sincos_agrees_with_the_c_library(x):
    sine, cosine = sincos(x)
    assert abs(sine - math.sin(x)) <= ULP * math.ulp(math.sin(x))
    assert abs(cosine - math.cos(x)) <= ULP * math.ulp(math.cos(x))


@pytest.mark.parametrize("bound", [1e-3, 1.0, 5.0, 20.0, 100.0, 700.0])
def test_sinh_is_within_two_units_in_the_last_place_of_one_or_of_itself(bound):
    x = np.concatenate([np.random.default_rng(6).uniform(-bound, bound, 200_000), [0.0, bound, -bound]])
    assert in_ulp(sinh_of(x), exactly(np.sinh, x), least=1.0).max() <= ULP


@PROFILE
@given(st.floats(-700.0, 700.0))
def test_sinh_is_odd_to_rounding_and_rises(x):
    value = sinh(x)
    assert sinh(-x) == pytest.approx(-value, rel=1e-15, abs=2e-16)
    assert sinh(x + 1e-9 * max(1.0, abs(x))) > value


def test_sinh_is_infinite_where_a_double_ends_and_never_comes_back():
    beyond = np.array([709.5, 710.0, 711.0, 999.0, 1024.0, 1420.0, 1e4, 3e38])
    assert (sinh_of(beyond) == np.inf).all()
    assert (sinh_of(-beyond) == -np.inf).all()
    assert np.isfinite(sinh_of(np.array([-700.0, 700.0]))).all()


def test_one_value_and_a_vectorised_loop_give_the_same_bits():
    x = np.random.default_rng(7).uniform(-20, 20, 1001)
    sine, cosine = sincos_of(x)
    assert [(s, c) for s, c in zip(sine, cosine, strict=True)] == [sincos(value) for value in x]
    assert sinh_of(x).tolist() == [sinh(value) for value in x]
