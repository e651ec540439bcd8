"""Every word for people. stdout is data, stderr is talk; colors and bars only where a terminal shows them.

Whatever is written here passes `clean`: what servers, models and files say never reaches the terminal as a command to it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
import time
import traceback
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

from tau2rl.errors import UserError
from tau2rl.report.tables import clock, quantity
from tau2rl.runs.progress import Place, ProgressEvent
from tau2rl.terminal import clean, escape

if TYPE_CHECKING:
    from rich.console import Console

LOG_SECONDS = 60.0  # without a terminal: one progress line in so many seconds
WHOSE = {"agent": "the agent", "user": "the user simulator", "task": "the task", "infra": "servers or this machine"}  # by fault
WIDE = 100  # columns of a terminal from which on a bar has all that it knows
PIPE_WIDTH = 160  # of a table that goes to a file or a pipe: no cell is broken over lines


def say(text: str = "") -> None:
    """Talk: a line on stderr."""
    _write(sys.stderr, text)


def emit(text: str) -> None:
    """Data: text on stdout, without what a terminal would obey."""
    _write(sys.stdout, text)


def emit_words(text: str) -> None:
    """Data: a long line on stdout; on a terminal it is broken between words."""
    if sys.stdout.isatty():
        text = textwrap.fill(
            text, _rich(sys.stdout).width - 1, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    emit(text)


def emit_json(value: Any) -> None:
    """Data: indented JSON on stdout. A NaN is a bug of ours and raises."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)  # which escapes the control characters of ASCII
    emit(escape(text))


def emit_table(rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Data: a header and rows as a table on stdout; columns of numbers stand to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    head, *body = rows
    table = Table(title=clean(title) or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(head):
        numeric = bool(body) and all(row[column][:1].isdigit() or row[column] in ("-", "") for row in body)
        table.add_column(Text(clean(name)), justify="right" if numeric else "left", overflow="fold")
    for row in body:
        table.add_row(*(Text(clean(cell)) for cell in row))
    _rich(sys.stdout).print(table)


def emit_styled(pieces: Sequence[tuple[str, str]]) -> None:
    """Data: text on stdout, each piece in a style of rich's; without a terminal as plain text."""
    from rich.text import Text

    text = Text.assemble(*((clean(part), style) for part, style in pieces))
    _rich(sys.stdout).print(text, soft_wrap=True, end="")


def fail(error: UserError) -> None:
    """A person's mistake: the message, a blank line, the hint."""
    say(f"error: {error}")


def crash(error: BaseException, *, debug: bool) -> None:
    """A bug of ours: one line and the file that has the traceback, without secrets; with `debug` the traceback itself."""
    from tau2rl.runs.secrets import Redactor  # loads the settings, which a list of commands does without

    redactor = Redactor()
    story = redactor.text("".join(traceback.format_exception(error)))
    if debug:
        say(story.rstrip())
        return
    with tempfile.NamedTemporaryFile("w", prefix="tau2rl-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(story)
    first = _first_line(redactor.text(str(error)))
    say(f"error: this is a bug in tau2rl: {type(error).__name__}{': ' + first if first else ''}")
    say(f"\nhint: the traceback is in `{file.name}`; `tau2rl --debug ...` shows it here")


@contextmanager
def plain_warnings() -> Generator[None]:
    """Show warnings of this package as lines on stderr, those of libraries as Python does."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if category.__module__.startswith("tau2rl."):
                say(f"warning: {message}")
            else:
                others(message, category, *where, **more)

        warnings.showwarning = show
        yield


def progress_words(event: ProgressEvent, first: ProgressEvent | None = None, *, ended: bool = False) -> str:
    """Where a run stands, in a line; one that has `ended`, done or not, has no time left.

    What a resumed run had already took no time: it is `event.before`, or else what the first event of this start had.

    >>> progress_words(ProgressEvent(done=20, total=100, successes=9, valid=18, failed=2, tokens=3000, seconds=30.0))
    '20/100 episodes, success 0.500 (9/18), 2 failed, 100 tokens/s, 2:00 left'
    """
    if event.total is None and not event.done:  # nothing to count yet
        return event.note or "starting"
    words = [
        quantity(event.done, event.unit.removesuffix("s")) if event.total is None else f"{event.done}/{event.total} {event.unit}"
    ]
    if event.valid:
        # No interval: attempts at one task are no independent evidence, and an event does not say how many tasks there are.
        words.append(f"success {event.successes / event.valid:.3f} ({event.successes}/{event.valid})")
    if event.failed:
        words.append(f"{event.failed} failed")
    if event.tokens and event.seconds > 0:
        words.append(f"{event.tokens / event.seconds:.0f} tokens/s")
    done_here = event.done - (event.before if event.before is not None else first.done if first else 0)
    if not ended and event.total is not None and done_here > 0 and event.done < event.total:
        words.append(f"{clock(event.seconds * (event.total - event.done) / done_here)} left")
    return ", ".join(words) + (f" ({event.note})" if event.note else "")


def failure_words(failures: Sequence[Mapping[str, Any]], *, tries: int) -> list[str]:
    """Why tries at episodes failed, the most frequent reason first; `failures` and `failed_tries` of a report.

    >>> failure_words([{"fault": "user", "message": "HTTP 500", "count": 3}], tries=4)
    ['failed tries: 4, most often', '  3 times, the user simulator: HTTP 500']
    """
    if not failures:
        return []
    lines = [
        f"  {quantity(each['count'], 'time')}, {WHOSE.get(each['fault'], each['fault'])}: {_first_line(each['message'])}"
        for each in failures
    ]
    return [f"failed tries: {tries}, most often", *lines]


class Follower:
    """Shows runs while they go: bars that redraw themselves on a terminal, plain lines, one a minute, elsewhere.

    A context manager; `on_progress` and `on_line` may be called from any one thread at a time. A run has one bar; in a pipeline
    its runs have the bar one behind the other (`next_run`), and there is one for the whole, with the time so far and the time
    left. Each run that ended well leaves a line. When all ends, the bars go, so that nothing stands below an error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._console = _rich(self._stream)
        self._bars: Any = None
        self._task: Any = None
        self._pipeline: Any = None
        self.ended_well = True
        self._begin(None)

    def _begin(self, place: Place | None) -> None:
        self._place = place
        self._began = time.monotonic()
        self._said_at = -LOG_SECONDS  # so that the first event shows
        self._first: ProgressEvent | None = None
        self._event: ProgressEvent | None = None
        self._shown: ProgressEvent | None = None

    def __enter__(self) -> Follower:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.table import Column

            self._bars = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=24 if self._wide else 8),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._task = self._bars.add_task("starting", total=None)
            self._bars.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        on_terminal = self._bars is not None
        if on_terminal:
            self._bars.stop()
        if self._place is None and (not on_terminal or (self.ended_well and kind is None)):
            self._last_line()
        self._bars = None

    @contextmanager
    def next_run(self, place: Place | None) -> Generator[Follower]:
        """Follow another run, in the place of the one before it; None: what comes before the first run of a pipeline."""
        self._begin(place)
        if self._bars is not None:
            self._bars.reset(self._task, description="starting", total=None)
        if place is not None:
            self._begin_in_pipeline(place)
        try:
            yield self
        except BaseException:
            self.ended_well = False
            raise
        if self._bars is None:
            self._last_line()
        elif place is not None and not self.ended_well:
            self.on_line(f"{_numbered(place)} did not end well, {clock(time.monotonic() - self._began)}")
        elif place is not None:
            ended = f": {progress_words(self._fitting(self._event), self._first)}" if self._event and self._event.total else ""
            self.on_line(f"{_numbered(place)}{ended}, {clock(time.monotonic() - self._began)}")

    def _begin_in_pipeline(self, place: Place) -> None:
        if self._bars is None:
            _write(self._stream, f"{_numbered(place)}{_left(place)}")
            return
        if self._pipeline is None:
            self._pipeline = self._bars.add_task("", total=place.total)
        self._bars.update(self._pipeline, completed=place.number - 1)
        self._show_pipeline()

    def _show_pipeline(self) -> None:
        if self._place is not None and self._pipeline is not None:
            words = f"{_numbered(self._place)}{_left(self._place, time.monotonic() - self._began)}"
            self._bars.update(self._pipeline, description=clean(words))

    @property
    def _wide(self) -> bool:
        return self._console.width >= WIDE

    def _fitting(self, event: ProgressEvent) -> ProgressEvent:
        """What of an event a narrow terminal has room for."""
        return event if self._wide else replace(event, tokens=0)

    def on_progress(self, event: ProgressEvent) -> None:
        """Take note of an event."""
        if self._first is None and event.total is not None:
            self._first = event
        self._event = event
        if self._bars is not None:
            words = clean(progress_words(self._fitting(event), self._first))
            self._bars.update(self._task, description=words, completed=event.done, total=event.total)
            self._show_pipeline()
        elif time.monotonic() - self._said_at >= LOG_SECONDS:
            self._line(event)

    def on_line(self, line: str) -> None:
        """A line of the run's log, above the bars; where there are none, how far it was is said before an error, not after it."""
        if self._bars is not None:
            self._console.print(clean(line.rstrip("\r\n")), markup=False, highlight=False, soft_wrap=True)
        else:
            if line.startswith("error: "):
                self._last_line()
            _write(self._stream, line.rstrip("\r\n"))

    def _last_line(self) -> None:
        if self._event is not None and self._event is not self._shown and self._event.total is not None:
            self._line(self._event, ended=True)

    def _line(self, event: ProgressEvent, *, ended: bool = False) -> None:
        self._said_at = time.monotonic()
        self._shown = event
        _write(self._stream, progress_words(event, self._first, ended=ended))


def _left(place: Place, passed: float = 0.0) -> str:
    """What the pipeline takes still, so many seconds after its run began; nothing while nobody knows."""
    if not place.left:
        return ""
    left = place.left - passed
    if left < 1:  # it takes longer than was thought, and nobody knows how much
        return ""
    return f", {'about' if place.all_known else 'more than'} {clock(left)} left"


def _numbered(place: Place) -> str:
    return f"{place.number} of {place.total}: {place.words}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _write(stream: TextIO, text: str) -> None:
    stream.write(f"{clean(text)}\n")
    stream.flush()


def _rich(stream: TextIO) -> Console:
    """A rich console; it respects NO_COLOR and TERM=dumb by itself."""
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False, legacy_windows=False)
