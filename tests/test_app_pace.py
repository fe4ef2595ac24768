"""How often pages are drawn again: few viewers see all at once, and many cost no more than a bounded share."""

from dataclasses import replace

import pytest

from app import services as services_module
from app.pace import CORES, SELDOM_S, SHARE, Pace

OFTEN_S = 0.75


class Server:
    """Viewers of a pace, each drawn at the interval that it was given, by a clock of our own."""

    def __init__(self, cores: float, cost: float) -> None:
        self.now = self.spent = 0.0
        self.cost = cost
        self.pace = Pace(cores, clock=lambda: self.now, cpu=lambda: self.spent)
        self.due: dict[str, float] = {}
        self.intervals: dict[str, float] = {}

    def comes(self, viewer: str) -> None:
        self.intervals[viewer] = self.pace.interval(OFTEN_S)
        self.due[viewer] = self.now

    def go_on(self, seconds: float) -> float:
        """Draw whoever is due; returns the CPU that this took, of one core."""
        until, before = self.now + seconds, self.spent
        while self.due and min(self.due.values()) < until:
            viewer = min(self.due, key=self.due.__getitem__)
            self.now = self.due[viewer]
            with self.pace.drawing(viewer, self.intervals[viewer]):
                self.spent += self.cost
            self.intervals[viewer] = self.pace.interval(OFTEN_S, self.intervals[viewer])
            self.due[viewer] = self.now + self.intervals[viewer]
        self.now = until
        return (self.spent - before) / seconds


def test_a_few_viewers_see_all_at_once():
    server = Server(cores=2, cost=0.02)
    for viewer in "abc":
        server.comes(viewer)
    server.go_on(60)
    assert set(server.intervals.values()) == {OFTEN_S}


@pytest.mark.parametrize(("cores", "cost"), [(2, 0.02), (2, 0.05), (4, 0.02), (64, 0.02)])
def test_a_class_of_viewers_costs_no_more_than_its_share(cores, cost):
    server = Server(cores, cost)
    for viewer in range(30):
        server.comes(str(viewer))
    server.go_on(60)
    assert server.go_on(600) <= 1.5 * min(SHARE * cores, CORES)
    assert max(server.intervals.values()) <= SELDOM_S
    assert min(server.intervals.values()) >= 30 * cost / min(SHARE * cores, CORES) / 1.5 / 1.5


def test_who_stays_sees_more_when_others_have_gone():
    server = Server(cores=2, cost=0.02)
    for viewer in range(30):
        server.comes(str(viewer))
    server.go_on(60)
    slow = server.intervals["0"]
    assert slow > 3
    server.due = {"0": server.due["0"]}
    server.go_on(120)
    assert server.intervals["0"] == OFTEN_S


def test_an_interval_is_changed_for_a_reason_alone():
    server = Server(cores=2, cost=0.02)
    changes = 0
    for viewer in range(30):
        server.comes(str(viewer))
    server.go_on(60)
    for _ in range(100):
        before = dict(server.intervals)
        server.go_on(10)
        changes += sum(before[viewer] != interval for viewer, interval in server.intervals.items())
    assert changes == 0


def test_a_page_that_asks_for_less_gets_less():
    pace = Pace(2)
    assert pace.interval(3.0) == 3.0
    assert pace.interval(3.0, OFTEN_S) == 3.0
    assert pace.interval(OFTEN_S, 3.0) == OFTEN_S
    assert pace.interval(20.0) == 20.0


def test_pages_that_have_nothing_to_show_yet_are_followed_by_others():
    """Seen in a benchmark: thirty pages of no run cost nothing, were drawn often, and so was the run that came."""
    server = Server(cores=2, cost=0.0)
    for viewer in range(30):
        server.comes(str(viewer))
    server.go_on(60)
    server.cost = 0.04
    assert server.go_on(10) <= 3 * 2 * SHARE
    assert server.go_on(60) <= 1.5 * 2 * SHARE


def test_a_first_page_that_imports_is_no_measure():
    server = Server(cores=2, cost=2.0)
    server.comes("a")
    server.go_on(0.1)
    server.cost = 0.02
    server.go_on(60)
    assert server.intervals == {"a": OFTEN_S}


def test_what_ends_a_page_early_is_counted_too():
    server = Server(cores=2, cost=10.0)

    def fails():
        with server.pace.drawing("a", OFTEN_S):
            server.spent += server.cost
            raise LookupError

    for _ in range(100):
        with pytest.raises(LookupError):
            fails()
    assert server.pace.interval(OFTEN_S) > OFTEN_S


def test_a_container_without_a_limit_has_the_machines_cores(monkeypatch, tmp_path):
    """Found by a review: there ``cpus`` is 0, and so was the share of them that everything is divided by."""
    no_limit = replace(services_module.measure_host(), cpus=0.0)
    monkeypatch.setattr(services_module, "measure_host", lambda: no_limit)
    monkeypatch.setenv("HZZRAY_RUNS", str(tmp_path))
    assert services_module.services.__wrapped__().pace.interval(OFTEN_S) == OFTEN_S
