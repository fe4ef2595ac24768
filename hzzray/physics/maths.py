"""Elementary functions that the compiler can vectorise, and that give the same bits on every machine.

The C library's sin, cos and sinh are scalar and differ from one libc to the next in the last bit. These are Taylor
polynomials in float64 after argument reduction, without fused multiply-add (numba adds none unless told so): within
2 units in the last place of the true value over the range that angles and pseudorapidities have.
"""

from __future__ import annotations

import math

import numpy as np

from hzzray.physics.jit import inlined

_SIN = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(8))
_COS = tuple((-1) ** n / math.factorial(2 * n) for n in range(9))
_EXP = tuple(1 / math.factorial(n) for n in range(14))

# Adding and subtracting this rounds a double of modest size to the nearest integer.
_ROUND = 1.5 * 2.0**52

# An exponent's bias above that, and where a double has its exponent.
_BIASED, _MANTISSA = _ROUND + 1023.0, np.uint64(52)

# π/2 and ln 2 in parts with trailing zero bits, so that k times a part is exact (Cody and Waite 1980).
_PI_2_HIGH = 1.57079632673412561417e00
_PI_2_LOW = 6.07710050650619224932e-11
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_2_PI = 2.0 / math.pi
_LOG2_E = 1.0 / math.log(2.0)

# From here on the scale of the exponential is infinite, or zero on the negative side.
_LARGEST = 709.5

# An angle beyond is no angle; the reduction would lose its last bits, then all of them.
_LARGEST_ANGLE = 1e5


@inlined
def sincos(x: float) -> tuple[float, float]:
    """Sine and cosine of an angle in radians; nan for ``|x|`` beyond 1e5."""
    x = x if abs(x) <= _LARGEST_ANGLE else math.nan
    k = (x * _2_PI + _ROUND) - _ROUND
    r = (x - k * _PI_2_HIGH) - k * _PI_2_LOW
    z = r * r
    s7 = ((((((_SIN[7] * z + _SIN[6]) * z + _SIN[5]) * z + _SIN[4]) * z + _SIN[3]) * z + _SIN[2]) * z + _SIN[1]) * z
    sine = r + r * s7
    c8 = ((((((_COS[8] * z + _COS[7]) * z + _COS[6]) * z + _COS[5]) * z + _COS[4]) * z + _COS[3]) * z + _COS[2]) * z
    cosine = 1.0 + (c8 + _COS[1]) * z
    # The quadrant k mod 4, from the parities of k and of k/2, all in doubles.
    half = k * 0.5
    odd = half != ((half + _ROUND) - _ROUND)
    base = k - 1.0 if odd else k
    quarter = base * 0.25
    flipped = quarter != ((quarter + _ROUND) - _ROUND)
    sign = -1.0 if flipped else 1.0
    if odd:
        return sign * cosine, -sign * sine
    return sign * sine, sign * cosine


@inlined
def sinh(x: float) -> float:
    """Hyperbolic sine for ``|x|`` below 700; its error is absolute (1e-16) near zero, infinite results beyond 709."""
    # Beyond, the exponent of e would wrap round to that of a modest number.
    x = min(max(x, -_LARGEST), _LARGEST)
    k = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = _EXP[13]
    p = p * r + _EXP[12]
    p = p * r + _EXP[11]
    p = p * r + _EXP[10]
    p = p * r + _EXP[9]
    p = p * r + _EXP[8]
    p = p * r + _EXP[7]
    p = p * r + _EXP[6]
    p = p * r + _EXP[5]
    p = p * r + _EXP[4]
    p = p * r + _EXP[3]
    p = p * r + _EXP[2]
    p = p * r + _EXP[1]
    p = p * r + _EXP[0]
    # The exponent's bits are the last ones of a large double: processors convert to integers one by one.
    scale = np.uint64(np.float64(k + _BIASED).view(np.uint64) << _MANTISSA).view(np.float64)
    e = p * scale
    return 0.5 * (e - 1.0 / e)


_ATANH = tuple(2 / (2 * n + 1) for n in range(11))
_LN2 = math.log(2.0)
_TWO_52, _ONE = np.uint64(0x4330000000000000), np.uint64(1023 << 52)
_TO_EXPONENT = np.uint64((1023 << 52) - 0x3FE6A09E667F3BCD)


@inlined
def log(x: float) -> float:
    """Natural logarithm of a normal positive double; its error is absolute (2e-16) near one. Else it means nothing."""
    bits = np.float64(x).view(np.uint64)
    # The mantissa in [√½, √2), so that the series is short: as ln((1+s)/(1-s)) in s = (m-1)/(m+1). The exponent becomes
    # a double as the last bits of 2⁵²: neither a signed shift nor a conversion, which processors do one by one.
    biased = (bits + _TO_EXPONENT) >> _MANTISSA
    exponent = np.uint64(biased | _TWO_52).view(np.float64) - (2.0**52 + 1023.0)
    m = np.uint64(bits - (biased << _MANTISSA) + _ONE).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = _ATANH[10]
    p = p * z + _ATANH[9]
    p = p * z + _ATANH[8]
    p = p * z + _ATANH[7]
    p = p * z + _ATANH[6]
    p = p * z + _ATANH[5]
    p = p * z + _ATANH[4]
    p = p * z + _ATANH[3]
    p = p * z + _ATANH[2]
    p = p * z + _ATANH[1]
    p = p * z + _ATANH[0]
    return exponent * _LN2 + s * p
