"""What a terminal would obey, taken out of text that others wrote (servers, models, libraries, files), or written out in it."""

from __future__ import annotations

import re

# What a terminal would obey: escape sequences (CSI; OSC, DCS and their kind up to their end or that of the line; the short
# ones), and what is left of control characters, C1 too, of marks that turn the direction of text, and of separators of lines.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
LONGEST_TEXT = 20_000  # characters of one message or argument that are shown; the record has it whole
_UNESCAPED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Text of a server, a model or a file without what a terminal would obey; lines and tabs stay.

    >>> clean("\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07a\\rb\\u202ec")
    'red a b c'
    """
    return _CONTROL.sub(lambda found: "" if found.group() < " " and found.group() != "\r" else " ", _SEQUENCES.sub("", text))


def visible(text: str, longest: int = LONGEST_TEXT) -> str:
    r"""Text of a model, a server or a file without anything that acts, which is written out; lines and tabs stay.

    >>> visible("a\x1b[2Jb\u202ec"), visible("abcdef", 4)
    ('a\\x1b[2Jb\\u202ec', 'abcd\n... 2 more characters')
    """
    more = f"\n... {len(text) - longest:,} more characters" if len(text) > longest else ""
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), text[:longest]) + more


def escape(text: str) -> str:
    """JSON text in which what it need not escape, and a terminal would obey, is escaped all the same.

    >>> escape('"a\u009b31m"')
    '"a\\\\u009b31m"'
    """
    return _UNESCAPED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
