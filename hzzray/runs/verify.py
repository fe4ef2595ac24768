"""A run done again, elsewhere or anew, and compared to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from hzzray import analyses
from hzzray.data.catalogue import release
from hzzray.errors import UsageError
from hzzray.messages import Counts
from hzzray.runs.record import Record
from hzzray.runs.request import Engine
from hzzray.runs.result import Result, SampleResult
from hzzray.runs.run import execute, make_settings

#: What a computation decides of a sample; the rest is how much of it was planned, or named after it.
_COMPARED = ("entries", "n_out", "invalid", "cutflow", "sumw", "sumw2", "underflow", "overflow", "channels")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a second computation says of the first.

    Attributes
    ----------
    digest, again
        SHA-256 of the bins, recorded and computed now.
    differing
        By sample, what of it is another: numbers in words. And of ``variations``, where their bins are.
    result
        The second computation's result.
    """

    digest: str
    again: str
    differing: dict[str, str]
    result: Result

    @property
    def equal(self) -> bool:
        """Whether both are the same to the last bit: the bins, and what is told of each sample."""
        return self.digest == self.again and not self.differing


def verify(
    record: Record,
    folder: Path,
    *,
    sources: tuple[str, ...] = (),
    engine: Engine = "serial",
    progress: Callable[[Counts], None] = lambda _: None,
) -> Verdict:
    """Compute a run again from its recorded spec, into ``folder``, and compare.

    It is read from ``sources``, else from where the record says, else from the release's own addresses. Raises
    UsageError where nobody says from where, where the run isn't finished, or where the analysis isn't at hand.
    """
    was = record.result
    if was.status == "running":
        raise UsageError(f"run {was.run_id} isn't finished: there is nothing to compare with yet")
    spec = was.spec
    analyses.resolve(spec.analysis, (*record.analyses, *analyses.allowed()))  # refuses one that isn't at hand
    places = sources or record.sources or release(spec.release.name).sources
    if not places:
        raise UsageError(f"{was.run_id}: nobody says where its files are: give --source")
    settings = make_settings(
        runs=folder, run_id="again", sources=places, engine=engine, chunk=record.chunk, analyses=record.analyses
    )
    now = execute(spec, settings, planned=lambda _: None, progress=progress)
    return Verdict(was.digest, now.digest, dict(_differing(was, now)), now)


def _differing(was: Result, now: Result) -> Iterable[tuple[str, str]]:
    for name in dict.fromkeys((*was.samples, *now.samples)):
        sample, other = was.samples.get(name), now.samples.get(name)
        if sample is None or other is None:
            yield name, "only one of both results has it"
        elif any(getattr(sample, field) != getattr(other, field) for field in _COMPARED):
            yield name, _difference(sample, other)
    if was.variations_digest != now.variations_digest:
        yield "variations", f"recorded {was.variations_digest[:16]}, computed {now.variations_digest[:16]}"


def _difference(was: SampleResult, now: SampleResult) -> str:
    """Say the first thing that is another, in the order in which one causes the next.

    Whatever somebody wrote into a record: it may have more or fewer cuts and bins.
    """
    if was.entries != now.entries:
        return f"{was.entries} entries read, now {now.entries}"
    for before, after in zip(was.cutflow, now.cutflow, strict=False):
        if before.n != after.n:
            return f"{before.n} events left after {before.cut!r}, now {after.n}"
    bins = [i for i, pair in enumerate(zip(was.sumw, now.sumw, strict=False)) if pair[0] != pair[1]]
    if bins:
        return (
            f"{len(bins)} bins differ, the first is number {bins[0]}: {was.sumw[bins[0]]!r}, now {now.sumw[bins[0]]!r}"
        )
    return "other sums"
