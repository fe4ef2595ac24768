"""A line of text as it is, on a terminal and elsewhere."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: object, style: str | None = None, *, is_prose: bool = False) -> None:
    """Print text that may hold names of the user's: no bracket in it is markup, and none of its lines is broken in two.

    But for prose on a terminal, whose lines go on in the next one, between words.
    """
    whole = not (is_prose and console.is_terminal)
    console.print(text, style=style, highlight=False, soft_wrap=whole, markup=False)
