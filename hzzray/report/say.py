"""A line of text as it is, on a terminal and elsewhere."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, text: object, style: str | None = None, *, is_prose: bool = False) -> None:
    """Print text that may hold names of the user's: no bracket in it is markup, and none of its lines is broken in two.

    But for prose, whose lines go on in the next one, between words, where the console is narrower.
    """
    console.print(text, style=style, highlight=False, soft_wrap=not is_prose, markup=False)
