"""What is decided about tasks and workers, told as stories in virtual time: no Ray, no broker, no clock."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.stories import World, a_story

STORIES = 10_000


@pytest.fixture
def small(monkeypatch):
    """Let the bounds be so small that a story of some tasks reaches them."""
    monkeypatch.setattr("hzzray.engine.commits.UNCOMMITTED", 3)
    monkeypatch.setattr("hzzray.engine.commits.BATCH", 2)
    monkeypatch.setattr("hzzray.engine.dispatch.ASIDE", 3)
    monkeypatch.setattr("hzzray.engine.dispatch.TOGETHER", 4)


def play(chance: Random) -> World:
    world = World(a_story(chance), chance)
    world.play()
    return world


@pytest.mark.usefixtures("small")
def test_random_stories_end_well():
    """Whatever dies, hangs or is asked for: see the assertions of World."""
    for seed in range(STORIES):
        try:
            play(Random(seed))
        except Exception as error:
            raise AssertionError(f"story {seed}: {error!r}") from error


@pytest.mark.usefixtures("small")
@given(st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_stories_that_hypothesis_shrinks(chance):
    play(chance)
