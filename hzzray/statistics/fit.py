"""The profile-likelihood fit of a workspace: every figure with its definition. By pyhf (numpy, MINUIT), never by hand.

Importing this loads pyhf, a second or more: import it where a fit is made. Formulas: G. Cowan, K. Cranmer, E. Gross,
O. Vitells, arXiv:1007.1727; CLs: A. Read, J. Phys. G 28 (2002) 2693.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pyhf
from numpy.typing import NDArray
from pyhf.infer.calculators import AsymptoticCalculator
from scipy import optimize, stats

from hzzray.errors import HzzrayError
from hzzray.statistics.fit_result import BinResult, FitResult, ParameterResult, Quantity, YieldResult
from hzzray.statistics.progress import Progress, quiet
from hzzray.statistics.workspace import MU, Document, Workspace

#: How pyhf interpolates, as HistFactory does by default and cabinetry too.
INTERPOLATION = {"normsys": {"interpcode": "code4"}, "histosys": {"interpcode": "code4p"}}

#: MINUIT's tolerance: the estimated distance to the minimum is below 2·10⁻⁶ in −2 ln L. And its most calls.
TOLERANCE, MOST_CALLS = 1e-3, 200_000

#: Confidence level of limits, and how exactly a limit is found.
LEVEL, PRECISION = 0.95, 1e-5

# What µ̂ is below where it is at its bound of 0.
_AT_BOUND = 1e-6

#: Most pseudo-experiments of one fit.
MOST_TOYS = 100_000

Vector = NDArray[np.float64]


class FitError(HzzrayError):
    """A fit that does not converge, and why."""


class Fitted(NamedTuple):
    """Where −2 ln L is least, and the minimiser that found it."""

    parameters: Vector
    twice_nll: float
    minuit: Any

    @property
    def errors(self) -> Vector:
        """Errors by MINUIT's Hesse; 0 of what was held."""
        held = np.array(self.minuit.fixed)
        return np.where(held, 0.0, np.array(self.minuit.errors))

    @property
    def correlations(self) -> NDArray[np.float64]:
        """Correlations of all parameters; 0 with what was held."""
        found: NDArray[np.float64] = np.nan_to_num(np.asarray(self.minuit.covariance.correlation(), float))
        return found


class _Minuit(pyhf.optimize.minuit_optimizer):  # type: ignore[misc]
    """pyhf's MINUIT, which takes second derivatives (Hesse) after each fit: here where errors are asked for alone."""

    def _minimize(self, minimizer: Any, *_: object, options: dict[str, Any], **__: object) -> Any:  # noqa: ANN401
        minimizer.tol, minimizer.strategy = TOLERANCE, options.get("strategy", 0)
        minimizer.migrad(ncall=MOST_CALLS)
        if minimizer.valid and options.get("hesse"):
            minimizer.hesse()
        why = ""
        if not minimizer.valid:
            reasons = {
                "its limit of calls was reached": minimizer.fmin.has_reached_call_limit,
                "the minimum is still too far": minimizer.fmin.is_above_max_edm,
                "parameters are at their limits": minimizer.fmin.has_parameters_at_limit,
            }
            why = ", ".join(text for text, true in reasons.items() if true)
        return optimize.OptimizeResult(
            x=minimizer.values, fun=minimizer.fval, success=minimizer.valid, message=why, minuit=minimizer
        )


@dataclass(eq=False)
class Likelihood:
    """A model with data: fits of it, each begun where the last one of its kind ended."""

    model: Any
    data: list[float]
    _start: list[float] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, document: Document) -> Likelihood:
        """Make it of a workspace and its observations; raises FitError where pyhf finds that it is none."""
        use_pyhf()
        try:
            workspace = pyhf.Workspace(document)
            model = workspace.model(modifier_settings=INTERPOLATION)
            return cls(model, list(workspace.data(model)))
        except (pyhf.exceptions.InvalidSpecification, pyhf.exceptions.InvalidModel) as error:
            raise FitError(f"the workspace is none: {' '.join(str(error).split())[:300]}") from error

    def with_data(self, data: Sequence[float]) -> Likelihood:
        """Return the same model with other data."""
        return Likelihood(self.model, [float(value) for value in data], self._start)

    def asimov(self, mu: float, parameters: Vector | None = None) -> Likelihood:
        """Return the model with the data that it expects of a µ; parameters as they are known before the fit, or so."""
        point = np.array(self.model.config.suggested_init() if parameters is None else parameters, float)
        point[self.poi] = mu
        return self.with_data(np.asarray(self.model.expected_data(point)).tolist())

    @property
    def poi(self) -> int:
        """Where µ is among the parameters."""
        return int(self.model.config.poi_index)

    @cached_property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return list(self.model.config.par_names)

    @cached_property
    def held(self) -> list[bool]:
        """Which parameters can't move: bins whose statistics aren't in the model."""
        return [bool(fixed) for fixed in self.model.config.suggested_fixed()]

    def fit(
        self, fixed: dict[int, float] | None = None, *, errors: bool = False, start: Vector | None = None
    ) -> Fitted:
        """Fit, some parameters held at values; raises FitError with MINUIT's reason where it doesn't converge."""
        begin = start if start is not None else self._start
        initial = self.model.config.suggested_init() if begin is None else np.asarray(begin, float).tolist()
        held = [is_held or i in (fixed or {}) for i, is_held in enumerate(self.held)]
        why = ""
        for strategy, begun in ((int(errors), initial), (2, initial), (2, self.model.config.suggested_init())):
            at = [(fixed or {}).get(i, value) for i, value in enumerate(begun)]
            try:
                return self._minimised(at, held, errors=errors, strategy=strategy)
            except pyhf.exceptions.FailedMinimization as error:
                why = str(error)
        where = " and ".join(f"{self.names[i]} = {value:.3g}" for i, value in (fixed or {}).items())
        raise FitError(f"the fit{where and f' at {where}'} does not converge: {why or 'MINUIT finds no minimum'}")

    def _minimised(self, initial: list[float], held: list[bool], *, errors: bool, strategy: int) -> Fitted:
        use_pyhf()
        with np.errstate(all="ignore"):  # what isn't finite is MINUIT's to step back from
            found, twice_nll, result = pyhf.infer.mle.fit(
                self.data,
                self.model,
                initial,
                self.model.config.suggested_bounds(),
                held,
                return_fitted_val=True,
                return_result_obj=True,
                strategy=strategy,
                hesse=errors,
            )
        if not np.isfinite(twice_nll) or (errors and not result.minuit.accurate):
            result.message = "its error matrix is not accurate" if np.isfinite(twice_nll) else "−2 ln L is not finite"
            raise pyhf.exceptions.FailedMinimization(result)
        return Fitted(np.asarray(found, float), float(twice_nll), result.minuit)

    @cached_property
    def best(self) -> Fitted:
        """The fit with nothing held; what other fits begin with."""
        found = self.fit(errors=True)
        self._start = found.parameters.tolist()
        return found

    @property
    def is_bounded(self) -> bool:
        """Whether µ̂ is at its bound of 0, where a curvature says nothing."""
        return bool(self.best.parameters[self.poi] < _AT_BOUND)

    @cached_property
    def told(self) -> Fitted:
        """The fit whose errors are told: the best one, with µ held where it is at its bound."""
        return self.fit({self.poi: 0.0}, errors=True) if self.is_bounded else self.best

    def profile(self, mu: float) -> float:
        """Return −2 ln λ(µ) (eq. 7): how much worse the best fit with this µ is than the best of all."""
        best = self.best
        return max(self.fit({self.poi: mu}).twice_nll - best.twice_nll, 0.0)

    def q0(self) -> float:
        """Return the test statistic of discovery (eq. 12): 0 for a deficit."""
        return self.profile(0.0) if self.best.parameters[self.poi] > 0 else 0.0

    def q_tilde(self, mu: float) -> float:
        """Return the test statistic of upper limits (eq. 16); µ is never below 0 here."""
        return self.profile(mu) if self.best.parameters[self.poi] <= mu else 0.0

    def widths(self) -> Vector:
        """Tell how well each parameter is known before the fit: one standard deviation; 0 for µ and what is held."""
        found: list[float] = []
        for name in self.model.config.par_order:
            parameter = self.model.config.param_set(name)
            found += [float(w) for w in parameter.width()] if parameter.constrained else [0.0] * parameter.n_parameters
        return np.where(self.held, 0.0, found)

    def toy(self, parameters: Vector, rng: np.random.Generator) -> Likelihood:
        """Throw a pseudo-experiment: counts, and measurements of the nuisance parameters, around their true values."""
        config = self.model.config
        counts = rng.poisson(np.asarray(self.model.expected_actualdata(parameters)))
        widths = [w for name in config.auxdata_order for w in config.param_set(name).width()]
        auxiliary = rng.normal(np.asarray(self.model.expected_auxdata(parameters)), widths)
        return Likelihood(self.model, [*counts.astype(float).tolist(), *auxiliary.tolist()], self._start)


def use_pyhf() -> None:
    """Have pyhf compute with numpy and MINUIT: it keeps that for the whole process."""
    tensors, optimizer = pyhf.get_backend()
    if tensors.name != "numpy" or not isinstance(optimizer, _Minuit):
        pyhf.set_backend("numpy", _Minuit())


@dataclass(eq=False)
class _Limits:
    """CLs upper limits: the fits that each µ needs are made once, for the observed limit and the expected ones."""

    data: Likelihood | None
    background: Likelihood
    _roots: dict[float, float] = field(default_factory=dict)

    def _calculator(self, mu: float) -> AsymptoticCalculator:
        """Return pyhf's own p-values for a µ: √q_A of the data that are expected of the background alone."""
        if mu not in self._roots:
            self._roots[mu] = math.sqrt(self.background.q_tilde(mu))
        calculator = AsymptoticCalculator(self.background.data, self.background.model, test_stat="qtilde")
        calculator.sqrtqmuA_v = self._roots[mu]
        return calculator

    def observed(self, mu: float) -> float:
        """CLs of the data."""
        calculator = self._calculator(mu)
        root_a = calculator.sqrtqmuA_v
        root = math.sqrt(self.data.q_tilde(mu)) if self.data is not None else 0.0
        # eq. 66 of arXiv:1007.1727: the distribution has another form beyond √q_A.
        statistic = root - root_a if root <= root_a else (root**2 - root_a**2) / (2 * root_a)
        return float(calculator.pvalues(statistic, *calculator.distributions(mu))[2])

    def expected(self, mu: float, n: int) -> float:
        """CLs expected of the background alone, for data that are n standard deviations high (pyhf's order)."""
        calculator = self._calculator(mu)
        return float(calculator.expected_pvalues(*calculator.distributions(mu))[2][n + 2])

    def limit(self, cls: Callable[[float], float], guess: float, most: float) -> float | None:
        """Find where CLs is 5 %; None where that is nowhere up to the largest µ."""
        low, high = 1e-4, min(max(guess, 1e-2), most)
        while cls(high) > 1 - LEVEL:
            if high >= most:
                return None
            low, high = high, min(2 * high, most)
        while cls(low) < 1 - LEVEL:
            high, low = low, low / 4
            if low < 1e-9:
                return None
        found: float = optimize.brentq(
            lambda mu: math.log(max(cls(mu), 1e-300) / (1 - LEVEL)), low, high, xtol=PRECISION
        )
        return found


def upper_limits(data: Likelihood | None, expected: Likelihood) -> tuple[float | None, list[float | None]]:
    """Return 95 % CLs upper limits on µ: of the data, and expected of the background for −2 to 2 σ.

    As in pyhf, the background's nuisance parameters are those that the data, or else ``expected``, prefer without
    signal.
    """
    observed = data or expected
    background = observed.asimov(0.0, observed.fit({observed.poi: 0.0}).parameters)
    limits = _Limits(data, background)
    most = float(observed.model.config.suggested_bounds()[observed.poi][1])
    sigma = max(background.best.errors[background.poi], 0.05)
    bands: list[float | None] = [
        limits.limit(partial(limits.expected, n=n), sigma * (1.9 + 0.7 * n), most) for n in range(-2, 3)
    ]
    guess = max(observed.best.parameters[observed.poi], 0.0) + 1.7 * sigma
    return (limits.limit(limits.observed, guess, most) if data is not None else None), bands


def significance(likelihood: Likelihood) -> float:
    """Return the significance of the signal, Z = √q₀ (eq. 52)."""
    return math.sqrt(likelihood.q0())


def toy_significance(
    likelihood: Likelihood, toys: int, seed: int, progress: Progress = quiet
) -> tuple[float | None, float, int]:
    """Return Z by pseudo-experiments without signal, the p-value, and how many had a q₀ as large.

    p = (k + 1)/(n + 1), which is never 0. Z is None where none of them was as large: then it is a lower bound only.
    """
    observed = likelihood.q0()
    without = likelihood.fit({likelihood.poi: 0.0}).parameters
    rng = np.random.default_rng(seed)
    larger = 0
    for i in range(toys):
        larger += likelihood.toy(without, rng).q0() >= observed
        progress("pseudo-experiments", i + 1, toys)
    p = (larger + 1) / (toys + 1)
    return (float(stats.norm.isf(p)) if larger else None), p, int(larger)


def goodness(likelihood: Likelihood) -> tuple[float, int, float]:
    """Return 2 ln of the saturated model's likelihood over the best fit's, degrees of freedom, and the p-value.

    Each bin's expectation is its data in the saturated model; nuisance parameters are where they were measured.
    """
    model = likelihood.model
    main, auxiliary = np.split(np.asarray(likelihood.data), [len(likelihood.data) - model.config.nauxdata])
    poisson = float(np.sum(np.where(main > 0, stats.poisson.logpmf(main, np.maximum(main, 1e-300)), 0.0)))
    widths = [w for name in model.config.auxdata_order for w in model.config.param_set(name).width()]
    constraint = float(np.sum(stats.norm.logpdf(auxiliary, auxiliary, widths))) if len(auxiliary) else 0.0
    q = max(likelihood.best.twice_nll + 2 * (poisson + constraint), 0.0)
    freedom = len(main) - 1
    return q, freedom, float(stats.chi2.sf(q, freedom)) if freedom > 0 else math.nan


class _Spread(NamedTuple):
    """What a point of the parameters predicts: events by sample and bin, and how they move with each parameter."""

    samples: NDArray[np.float64]  # (samples, bins)
    moved: NDArray[np.float64]  # (parameters, samples, bins), for one standard deviation


def _spread(likelihood: Likelihood, point: Vector, widths: Vector) -> _Spread:
    def expected(at: Vector) -> NDArray[np.float64]:
        return np.asarray(likelihood.model.main_model.expected_data(at, return_by_sample=True))

    moved = []
    for i, width in enumerate(widths):
        if not width:
            moved.append(np.zeros_like(expected(point)))
            continue
        up, down = point.copy(), point.copy()
        up[i] += width
        down[i] -= width
        moved.append((expected(up) - expected(down)) / 2)
    return _Spread(expected(point), np.array(moved))


def _error(moved: NDArray[np.float64], correlations: NDArray[np.float64]) -> Vector:
    """Propagate: √(Σ dᵢ ρᵢⱼ dⱼ) of shifts of one standard deviation each, shape (parameters, …)."""
    variance: Vector = np.einsum("i...,ij,j...->...", moved, correlations, moved)
    return np.sqrt(np.maximum(variance, 0.0))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a fit takes longer: pseudo-experiments for Z, limits, impacts of each nuisance parameter."""

    toys: int = 0
    seed: int = 1
    limits: bool = True
    impacts: bool = True


def run_fit(
    workspace: Workspace,
    *,
    has_data: bool,
    no_data: str = "",
    wanted: Wanted = Wanted(),
    progress: Progress = quiet,
) -> FitResult:
    """Fit a workspace and say all that follows; raises FitError where it doesn't converge.

    Without data (``no_data`` says why) the fit is that of the data that are expected of µ = 1, and what only data can
    tell is withheld.
    """
    expected = Likelihood.of(workspace.document)
    observed = expected if has_data else None
    expected = expected.asimov(1.0)
    likelihood = observed or expected
    progress("fit", 0, 1)
    best = likelihood.best
    progress("fit", 1, 1)
    figures = _strength(likelihood, no_data)
    progress("significance", 0, 1)
    figures |= _significances(observed, expected, no_data)
    progress("significance", 1, 1)
    if wanted.toys and observed is not None:
        figures["z_toys"], figures["p_toys"] = _by_toys(observed, wanted, progress)
    if wanted.limits:
        progress("limit", 0, 1)
        figures |= _limits(observed, expected, no_data)
        progress("limit", 1, 1)
    figures |= _goodness(observed, no_data)
    parameters = _parameters(likelihood, progress) if wanted.impacts else _pulls(likelihood)
    after, before = _spread(likelihood, best.parameters, likelihood.told.errors), _before(likelihood)
    return FitResult(
        observed=has_data,
        no_data=no_data,
        figures=figures,
        parameters=tuple(parameters),
        names=tuple(likelihood.names),
        correlations=tuple(tuple(float(value) for value in row) for row in likelihood.told.correlations),
        yields=tuple(_yields(workspace, likelihood, before, after, has_data=has_data)),
        bins=tuple(_bins(workspace, likelihood, before, after, has_data=has_data)),
        notes=workspace.notes,
        versions={"pyhf": pyhf.__version__},
    )


def _before(likelihood: Likelihood) -> _Spread:
    point = np.array(likelihood.model.config.suggested_init(), float)
    point[likelihood.poi] = 1.0
    return _spread(likelihood, point, likelihood.widths())


def _strength(likelihood: Likelihood, no_data: str) -> dict[str, Quantity]:
    """Return µ̂ with its errors, and what of them is the data's own statistics; at its bound it has MINOS' alone."""
    best, poi = likelihood.best, likelihood.poi
    down, up = _minos(best.minuit)
    of = "the data" if not no_data else "the events expected of µ = 1"
    error = alone = rest = bound = None
    if likelihood.is_bounded:
        bound = "µ̂ is at its bound of 0, where the curvature says nothing"
    else:
        held = {i: value for i, value in enumerate(best.parameters.tolist()) if i != poi}
        error, alone = float(best.errors[poi]), float(likelihood.fit(held, errors=True).errors[poi])
        rest = math.sqrt(max(error**2 - alone**2, 0.0))
    figure = partial(Quantity.of, absent=bound or "")
    return {
        "mu": Quantity(
            value=float(best.parameters[poi]), definition=f"signal strength that fits {of} best, 1 as simulated"
        ),
        "mu_error": figure(error, "standard deviation of µ̂, from the curvature of −2 ln L there"),
        "mu_up": Quantity.of(up, "MINOS: to where −2 ln λ(µ) is 1 above µ̂", "MINOS finds no such µ"),
        "mu_down": Quantity.of(down, "MINOS: to where −2 ln λ(µ) is 1 below µ̂", "µ is not below 0: no such µ"),
        "mu_stat": figure(alone, "of mu_error, the data's statistics: nuisance parameters held at their best"),
        "mu_syst": figure(rest, "of mu_error, the rest in quadrature: systematics and the simulation's statistics"),
    }


def _minos(minuit: Any) -> tuple[float | None, float | None]:  # noqa: ANN401
    """Return how far down and up µ may go for −2 ln λ = 1; None where MINOS finds no such µ, or a bound."""
    try:
        minuit.minos(MU)
    except RuntimeError:
        return None, None
    found = minuit.merrors[MU]
    down = -found.lower if found.lower_valid and not found.at_lower_limit else None
    up = found.upper if found.upper_valid and not found.at_upper_limit else None
    return down, up


def _significances(observed: Likelihood | None, expected: Likelihood, no_data: str) -> dict[str, Quantity]:
    what = "significance of the signal, √q₀, q₀ = −2 ln λ(0) (arXiv:1007.1727, eq. 12, 52)"
    return {
        "z_expected": Quantity(
            value=significance(expected), unit="σ", definition=f"{what}, of the events expected of µ = 1"
        ),
        "z_observed": Quantity(
            value=None if observed is None else significance(observed),
            unit="σ",
            definition=f"{what}, of the data; 0 for a deficit",
            withheld=no_data,
        ),
    }


def _by_toys(observed: Likelihood, wanted: Wanted, progress: Progress) -> tuple[Quantity, Quantity]:
    z, p, larger = toy_significance(observed, wanted.toys, wanted.seed, progress)
    how = f"{wanted.toys} pseudo-experiments without signal, seed {wanted.seed}, {larger} of them with a q₀ as large"
    bound = "" if larger else f"none as large: Z is above {stats.norm.isf(1 / (wanted.toys + 1)):.2f} σ, or unlucky"
    return (
        Quantity(value=z, unit="σ", definition=f"significance of the signal by {how}", withheld=bound),
        Quantity(value=p, definition=f"(k + 1)/(n + 1) of {how}"),
    )


def _limits(observed: Likelihood | None, expected: Likelihood, no_data: str) -> dict[str, Quantity]:
    limit, bands = upper_limits(observed, expected)
    what = "upper limit on µ at 95 % confidence, CLs with q̃ (arXiv:1007.1727, eq. 16)"
    beyond = "CLs is above 5 % up to the largest µ of the model"
    figures = {"limit_observed": Quantity.of(limit, f"{what}, of the data", no_data or beyond)}
    for n, value in zip(("−2 σ", "−1 σ", "median", "+1 σ", "+2 σ"), bands, strict=True):
        key = {"median": "limit_expected"}.get(n, f"limit_expected_{n.replace('−', 'minus_').replace('+', 'plus_')}")
        figures[key.replace(" σ", "")] = Quantity.of(value, f"{what}, expected without signal: {n}", beyond)
    return figures


def _goodness(observed: Likelihood | None, no_data: str) -> dict[str, Quantity]:
    what = "2 ln of the likelihood in which each bin expects its data over that of the fit"
    if observed is None:
        return {name: Quantity(value=None, definition=what, withheld=no_data) for name in ("gof_q", "gof_p")}
    q, freedom, p = goodness(observed)
    return {
        "gof_q": Quantity(value=q, definition=f"{what}; {freedom} degrees of freedom"),
        "gof_p": Quantity(
            value=p if math.isfinite(p) else None,
            definition=f"how often χ² of {freedom} degrees of freedom is as large as gof_q: small is a bad fit",
            withheld="" if math.isfinite(p) else "there is one bin only",
        ),
    }


def _pulls(likelihood: Likelihood) -> list[ParameterResult]:
    """Say where each nuisance parameter went, in units of what it was known to."""
    best, errors, widths = likelihood.best, likelihood.told.errors, likelihood.widths()
    before = np.array(likelihood.model.config.suggested_init(), float)
    found = []
    for i, (name, width) in enumerate(zip(likelihood.names, widths, strict=True)):
        if i != likelihood.poi and width:
            pull, constraint = (best.parameters[i] - before[i]) / width, errors[i] / width
            found.append(
                ParameterResult(
                    name=name,
                    value=best.parameters[i],
                    error=errors[i],
                    known=width,
                    pull=pull,
                    constraint=constraint,
                )
            )
    return found


def _parameters(likelihood: Likelihood, progress: Progress) -> list[ParameterResult]:
    """Say besides how much each moves µ̂: held at ± what it was known to, and at ± what it is known to now."""
    best, poi = likelihood.best, likelihood.poi
    index = {name: i for i, name in enumerate(likelihood.names)}
    low, high = np.array(likelihood.model.config.suggested_bounds(), float).T
    found = []
    pulls = _pulls(likelihood)
    for number, row in enumerate(pulls):
        i = index[row.name]

        def moved(by: float, i: int = i) -> float:
            at = float(np.clip(best.parameters[i] + by, low[i], high[i]))
            return float(likelihood.fit({i: at}).parameters[poi] - best.parameters[poi])

        found.append(
            row.model_copy(
                update={
                    "impact_up": moved(row.error),
                    "impact_down": moved(-row.error),
                    "impact_up_before": moved(row.known),
                    "impact_down_before": moved(-row.known),
                }
            )
        )
        progress("impacts", number + 1, len(pulls))
    return sorted(found, key=lambda row: -max(abs(row.impact_up or 0.0), abs(row.impact_down or 0.0)))


def _yields(
    workspace: Workspace, likelihood: Likelihood, before: _Spread, after: _Spread, *, has_data: bool
) -> list[YieldResult]:
    """Lay out events by region and process, before the fit and after it; ``total`` is all of a region."""
    rows = []
    names = list(likelihood.model.config.samples)
    identity, correlations = np.eye(len(likelihood.names)), likelihood.told.correlations
    for region in workspace.edges:
        inside = likelihood.model.config.channel_slices[region]
        chosen: list[tuple[str, list[int]]] = [(name, [i]) for i, name in enumerate(names)]
        chosen.append(("total", list(range(len(names)))))
        for name, which in chosen:
            parts = [
                (spread.samples[which][:, inside].sum(), spread.moved[:, which][:, :, inside].sum(axis=(1, 2)))
                for spread in (before, after)
            ]
            if not parts[0][0] and not parts[1][0]:
                continue  # a process that has no part in this region
            rows.append(
                YieldResult(
                    region=region,
                    process=name,
                    group=workspace.groups.get(name, ""),
                    before=float(parts[0][0]),
                    before_error=float(_error(parts[0][1], identity)),
                    after=float(parts[1][0]),
                    after_error=float(_error(parts[1][1], correlations)),
                    data=float(np.sum(likelihood.data[inside])) if has_data and name == "total" else None,
                )
            )
    return rows


def _bins(
    workspace: Workspace, likelihood: Likelihood, before: _Spread, after: _Spread, *, has_data: bool
) -> list[BinResult]:
    """Lay out what the pictures show: each region's bins by group, before the fit and after it."""
    rows = []
    names = list(likelihood.model.config.samples)
    identity, correlations = np.eye(len(likelihood.names)), likelihood.told.correlations
    groups = dict.fromkeys(workspace.groups[name] for name in names)
    for region, edges in workspace.edges.items():
        inside = likelihood.model.config.channel_slices[region]
        by_group = {
            group: [
                spread.samples[[i for i, name in enumerate(names) if workspace.groups[name] == group]][:, inside]
                .sum(axis=0)
                .tolist()
                for spread in (before, after)
            ]
            for group in groups
        }
        rows.append(
            BinResult(
                region=region,
                edges=edges,
                before={group: tuple(values[0]) for group, values in by_group.items()},
                after={group: tuple(values[1]) for group, values in by_group.items()},
                before_error=tuple(_error(before.moved[:, :, inside].sum(axis=1), identity).tolist()),
                after_error=tuple(_error(after.moved[:, :, inside].sum(axis=1), correlations).tolist()),
                data=tuple(likelihood.data[inside]) if has_data else None,
            )
        )
    return rows
