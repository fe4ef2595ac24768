"""Stub until the monitor lands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    actor: str
    node: str
    pid: int
