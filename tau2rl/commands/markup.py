"""Text as Typer shows it in a help. Nothing is imported here: the list of all commands needs it."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """The epilog of a command: one example a line.

    >>> examples("tau2rl doctor", "tau2rl doctor --json")
    'Examples:\\n\\n  tau2rl doctor\\n\\n  tau2rl doctor --json'
    """
    return "\n\n".join(["Examples:", *(f"  {escape(line)}" for line in lines)])


def escape(text: str) -> str:
    """Square brackets as they are: Typer would read them as rich's markup.

    >>> escape("[a, b]")
    '\\\\[a, b]'
    """
    return text.replace("[", "\\[")
