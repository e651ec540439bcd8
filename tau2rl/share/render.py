"""Pages and cards of templates: what a template prints of a run's text is escaped, whoever wrote the template.

HTML by Jinja's own autoescape; Markdown by `markdown`, which every printed value passes. What acts on a reader's screen (control
characters, marks that turn the direction of text) is written out in both.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tau2rl.report.tables import printable
from tau2rl.terminal import visible

LONGEST = 300  # characters of a name or a value in Markdown
_MARKUP = re.compile(r"[\\`*_\[\]<>|#~]")


def html(template: str, **values: Any) -> str:
    """A page: `html("report.html.jinja", title="...")`."""
    return _environment(markdown_page=False).get_template(template).render(**values)


def markdown_page(template: str, **values: Any) -> str:
    """A card or a report in Markdown."""
    return _environment(markdown_page=True).get_template(template).render(**values)


def markdown(value: Any) -> Any:
    r"""A value as Markdown shows it: no markup, no line of its own, nothing that a screen obeys.

    >>> markdown("a|b*<script>\n# x"), markdown(3)
    ('a\\|b\\*\\<script\\>\\\\n\\# x', 3)
    """
    if value is None or isinstance(value, (int, float, Markup)):
        return value
    text = printable(str(value))
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return _MARKUP.sub(lambda found: f"\\{found.group()}", cut)


def code(value: Any) -> Markup:
    r"""A value between backticks, without any of its own.

    >>> code("a`b")
    Markup("`a'b`")
    """
    return Markup(f"`{printable(str(value)).replace('`', chr(39))[:LONGEST]}`")  # noqa: S704 - of Markdown, in which this is text


@cache
def _environment(*, markdown_page: bool) -> Environment:
    made = Environment(
        loader=PackageLoader("tau2rl.share", "templates"),
        autoescape=not markdown_page,  # noqa: S701 - Markdown is no page, and `markdown` escapes it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=markdown if markdown_page else _visible,
    )
    cast("Any", made).filters.update(code=code, raw=Markup, shown=visible)  # its type is that of every filter there is
    return made


def _visible(value: Any) -> Any:
    """A value of a page; its text is whole, so who prints long ones has cut them."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value, len(value))
