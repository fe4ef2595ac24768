"""How a pool of workers behaves: its size, its patience, its bounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How a pool behaves. Times in seconds.

    Attributes
    ----------
    min_actors, max_actors
        Bounds of the number of workers; between them the backlog decides.
    timeout_s
        Longest time that a worker may take for one task. Then it is killed, and the task cut in two.
    attempts
        How often a task is tried when input fails in a way that may pass.
    crashes
        How often a worker may die over a task before it is set aside as poison.
    back_off_s
        First and longest wait before a task or an actor is tried again; it doubles in between, with jitter.
    worth_s
        Work of the backlog, in seconds, that one more actor is started for.
    patience_s
        How long fewer actors must suffice before one is let go.
    drain_s
        How long a drained run waits for what is in flight.
    reducer_s
        How long the reducer may be away, or silent, before it is replaced or the run gives up.
    idle_s
        How long there may be nothing to do before all actors are let go; the next task brings them back. None: never.
    """

    min_actors: int = 1
    max_actors: int = 1
    timeout_s: float = 600.0
    attempts: int = 5
    crashes: int = 8
    back_off_s: tuple[float, float] = (0.1, 5.0)
    worth_s: float = 5.0
    patience_s: float = 5.0
    drain_s: float = 30.0
    reducer_s: float = 120.0
    idle_s: float | None = None
