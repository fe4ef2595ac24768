"""How significant a count is: the formulas of a counting experiment in one window, and Poisson intervals.

Counts are floats: expected signal s, expected background b, its uncertainty σ_b (an absolute number of
events), observed n. A significance is None where its counts define no number: anything not finite, b ≤ 0,
σ_b < 0, n < 0, and s < 0 for the Asimov significances, which are those of an excess. No significance raises.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: The notebooks' relative uncertainty of the background, made up: √0.3. It counts under their name alone.
NOTEBOOK = math.sqrt(0.3)

_LARGE = 1e5


def notebook(total: float, b: float) -> float | None:
    """N/√(b + 0.3·b²) as the ATLAS Open Data notebooks publish it, where N is signal *plus* background."""
    if not _defined(total, b):
        return None
    return total / math.sqrt(b * (1.0 + 0.3 * b))


def s_over_sqrt_b(s: float, b: float) -> float | None:
    """s/√b."""
    return s_over_sqrt_b_sigma(s, b, 0.0)


def s_over_sqrt_b_sigma(s: float, b: float, sigma_b: float) -> float | None:
    """s/√(b + σ_b²)."""
    if not _defined(s, b, sigma_b):
        return None
    return s / math.hypot(math.sqrt(b), sigma_b)


def asimov(s: float, b: float) -> float | None:
    """Median significance expected of a signal, √(2[(s+b)·ln(1+s/b) − s]) (arXiv:1007.1727, eq. 97)."""
    return asimov_sigma(s, b, 0.0)


def asimov_sigma(s: float, b: float, sigma_b: float) -> float | None:
    """Median significance expected of a signal over a background known to ±σ_b.

    The background estimate is a Poisson count of its own (G. Cowan, "Discovery sensitivity for a counting
    experiment with background uncertainty", 2012). σ_b → 0 gives ``asimov``; s ≪ b gives s/√(b + σ_b²).
    """
    return _signed_root(s, b, sigma_b) if s >= 0 else None


def observed(n: float, b: float) -> float | None:
    """Significance of an observed count, ±√(2[n·ln(n/b) − (n−b)]) (arXiv:1007.1727).

    Negative for a deficit.
    """
    return observed_sigma(n, b, 0.0)


def observed_sigma(n: float, b: float, sigma_b: float) -> float | None:
    """Significance of an observed count over a background known to ±σ_b: ``asimov_sigma`` with s = n − b.

    Negative for a deficit.
    """
    return _signed_root(n - b, b, sigma_b) if n >= 0 else None


def poisson_interval(n: ArrayLike, cl: float = 0.6827) -> NDArray[np.float64]:
    """Central interval for the mean of a Poisson count.

    Garwood's (Biometrika 28 (1936) 437): P(N ≥ n | low) = P(N ≤ n | high) = (1 − cl)/2; low is 0 for n = 0.
    Counts above 10⁵ take Wilson and Hilferty's approximation, by then good to 10⁻⁶ of the interval at common
    levels.

    Parameters
    ----------
    n
        Counts: integers, of any dtype, shape (bins,).
    cl
        Confidence level in (0, 1).

    Returns
    -------
    NDArray[np.float64]
        Lower and upper ends, shape (2, bins).

    Raises
    ------
    ValueError
        If a count is negative or no integer, or ``cl`` is no probability.
    """
    counts = np.asarray(n, np.float64)
    if not (np.isfinite(counts).all() and (counts >= 0).all() and (counts == np.floor(counts)).all()):
        raise ValueError("a Poisson interval needs counts: integers from 0 up")
    if not 0.0 < cl < 1.0:
        raise ValueError(f"a confidence level lies between 0 and 1, not at {cl}")
    unique, inverse = np.unique(counts, return_inverse=True)
    tail, sigmas = (1.0 - cl) / 2.0, NormalDist().inv_cdf((1.0 + cl) / 2.0)
    low, high = _wilson_hilferty(np.maximum(unique, 1.0), -sigmas), _wilson_hilferty(unique + 1.0, sigmas)
    some, small = unique > 0, unique <= _LARGE
    low[~some] = 0.0
    low[some & small] = _mean_at_tail(unique[some & small], tail, upper=False)
    high[small] = _mean_at_tail(unique[small], tail, upper=True)
    return np.stack((low, high))[:, inverse]


def _defined(count: float, b: float, sigma_b: float = 0.0) -> bool:
    return math.isfinite(count) and 0.0 < b < math.inf and 0.0 <= sigma_b < math.inf


def _signed_root(s: float, b: float, sigma_b: float) -> float | None:
    """±√q₀ of an excess s over b ± σ_b (s ≥ −b); the sign is that of s."""
    if not _defined(s, b, sigma_b):
        return None
    x, t = s / b, sigma_b * (sigma_b / b)
    if not (math.isfinite(x) and math.isfinite(t * (1.0 + abs(x)))):
        return None
    return math.copysign(math.sqrt(b) * math.sqrt(2.0 * _half_deviance(x, t)), s)


def _half_deviance(x: float, t: float) -> float:
    """q₀/2b as a function of x = s/b ≥ −1 and t = σ_b²/b: (1+x)·ln(1+u) − ln(1+v)/t.

    u = x/(1+t+xt) and v = xt/(1+t). For a small |x| the terms linear in x, which cancel, are taken out first:
    what is left goes as x²/2(1+t) and keeps its digits however small x is.
    """
    w, d = 1.0 + t, 1.0 + t * (1.0 + x)
    u, v = x / d, x * t / w
    if -0.5 <= x <= 1.0:
        rest = 1.0 / (w * d) - (1.0 + x) * _curvature(u) / (d * d) + t * _curvature(v) / (w * w)
        return x * x * rest
    first = (1.0 + x) * math.log1p(u) if x > -1.0 else 0.0
    if v == 0.0:
        return first - x / w
    # 1 + v is (1+t+xt)/(1+t), and may be too near to 0 for log1p.
    return first - (math.log1p(v) if v > -0.5 else math.log1p(t * (1.0 + x)) - math.log1p(t)) / t


def _curvature(y: float) -> float:
    """(y − ln(1+y))/y², which is ½ at 0, for y > −1."""
    if abs(y) > 0.1:
        return (y - math.log1p(y)) / (y * y)
    return sum((-y) ** k / (k + 2) for k in range(17))


def _wilson_hilferty(shape: NDArray[np.float64], sigmas: float) -> NDArray[np.float64]:
    """Approximate a gamma quantile, given in σ of a normal one (Proc. Natl. Acad. Sci. 17 (1931) 684)."""
    return shape * (1.0 - 1.0 / (9.0 * shape) + sigmas / (3.0 * np.sqrt(shape))) ** 3


def _mean_at_tail(n: NDArray[np.float64], tail: float, *, upper: bool) -> NDArray[np.float64]:
    """Find the Poisson means at which N ≤ n (``upper``), or N ≥ n for n ≥ 1, has the probability ``tail``.

    Newton's method on ln P as a function of ln μ. A gamma variable's logarithm has a log-concave density, so
    ln P is concave: from the second step on, the steps approach the root from one side, whatever the start.
    """
    log_factorial = np.array([math.lgamma(count + 1.0) for count in n.tolist()])
    x = np.log(n + 1.0 if upper else n)
    for _ in range(100):
        series = _tail_series(n, np.exp(x), upper=upper)
        log_p = n * x - np.exp(x) - log_factorial + np.log(series)
        # d ln P / d ln μ, since dP/dμ is ∓ one Poisson probability.
        slope = -np.exp(x) / series if upper else n / series
        step = (math.log(tail) - log_p) / slope
        x = x + step
        if not (np.abs(step) > 1e-12).any():
            break
    return np.exp(x)


def _tail_series(n: NDArray[np.float64], mean: NDArray[np.float64], *, upper: bool) -> NDArray[np.float64]:
    """P(N ≤ n) or P(N ≥ n) of a Poisson count in units of P(N = n)."""
    term, total = np.ones_like(n), np.ones_like(n)
    j = 0
    while (term > 1e-17 * total).any():
        j += 1
        term = term * (np.maximum(n - j + 1.0, 0.0) / mean if upper else mean / (n + j))
        total += term
    return total
