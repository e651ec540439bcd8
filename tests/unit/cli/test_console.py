"""How the command line speaks, pinned here:

- in a log: the first event and the last are shown, and of those between one a minute; every line of the run is passed on;
- on a terminal: a bar that redraws itself, with no colours under NO_COLOR and no bar under TERM=dumb;
- what a resumed run had already does not make it look fast; the success so far claims no precision;
- data is exact: JSON without NaN, text that looks like markup unchanged, tables in a pipe without broken cells.
"""

from __future__ import annotations

import io
import re

import pytest

from tau2rl import console
from tau2rl.runs.progress import Place, ProgressEvent


def event(done: int, *, total: int | None = 10, seconds: float = 0.0) -> ProgressEvent:
    return ProgressEvent(done=done, total=total, successes=done, valid=done, seconds=seconds)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_the_first_event_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stream = io.StringIO()
    with console.Follower(stream) as follower:
        for done in range(10):
            follower.on_progress(event(done))
    lines = stream.getvalue().splitlines()
    assert [line.split(" ")[0] for line in lines] == ["0/10", "9/10"]


def test_a_log_gets_one_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with console.Follower(stream) as follower:
        for second in range(121):
            now[0] = 1000.0 + second
            follower.on_progress(event(second, total=500))
    assert [line.split(" ")[0] for line in stream.getvalue().splitlines()] == ["0/500", "60/500", "120/500"]


def test_in_a_log_nothing_stands_below_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    stream = io.StringIO()
    with console.Follower(stream) as follower, follower.next_run(None):
        for done in range(3):
            follower.on_progress(event(done))
        follower.on_line("error: it broke")
    assert [line.split(" ")[0] for line in stream.getvalue().splitlines()] == ["0/10", "2/10", "error:"]


def test_lines_of_the_run_are_passed_on_as_they_are() -> None:
    stream = io.StringIO()
    with console.Follower(stream) as follower:
        follower.on_line("[bold]not markup[/bold]\n")
    assert stream.getvalue() == "[bold]not markup[/bold]\n"


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with console.Follower(stream) as follower:
        follower.on_progress(event(3))
        follower.on_line("[bold]not markup[/bold]")
    assert "3/10 episodes" in stream.getvalue()
    assert "[bold]not markup[/bold]" in stream.getvalue()
    assert "\x1b[2K" in stream.getvalue()  # the bar is erased and drawn again
    assert "\x1b[?25h" in stream.getvalue()  # the cursor comes back


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = re.compile(r"\x1b\[[\d;]*3\dm|\x1b\[[\d;]*9\dm")
    shown: list[bool] = []
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        stream = Terminal()
        with console.Follower(stream) as follower:
            follower.on_progress(event(3))
        shown.append(bool(coloured.search(stream.getvalue())))
    assert shown == [True, False]


def test_in_a_pipeline_a_run_that_failed_is_not_told_as_one_that_ended() -> None:
    stream = Terminal()
    with console.Follower(stream) as follower:
        for number, well in ((1, True), (2, False)):
            with follower.next_run(Place(words=f"`{number}`", number=number, total=3, left=0.0, all_known=True)) as watcher:
                watcher.on_progress(event(10))
                watcher.ended_well = well
    said = stream.getvalue()
    assert "1 of 3: `1`: 10/10" in said and "2 of 3: `2` did not end well" in said and "2 of 3: `2`: 10/10" not in said


def test_nothing_is_said_of_the_time_left_when_it_has_passed() -> None:
    stream = io.StringIO()
    for left in (0.5, 90.0):
        with (
            console.Follower(stream) as follower,
            follower.next_run(Place(words="`a`", number=1, total=3, left=left, all_known=False)),
        ):
            pass
    assert [line for line in stream.getvalue().splitlines() if "`a`" in line] == [
        "1 of 3: `a`", "1 of 3: `a`, more than 1:30 left",
    ]  # fmt: skip


def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with console.Follower(stream) as follower:
        follower.on_progress(event(3))
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith("3/10 episodes")


def test_what_a_resumed_run_had_takes_no_time() -> None:
    first, now = event(90, total=100), event(95, total=100, seconds=50.0)
    assert console.progress_words(now, first).endswith("0:50 left")


def test_success_so_far_is_a_count() -> None:
    now = ProgressEvent(done=5, total=10, successes=3, valid=4, failed=1)
    assert console.progress_words(now) == "5/10 episodes, success 0.750 (3/4), 1 failed, 0:00 left"


def test_an_unknown_total_has_no_time_left() -> None:
    assert console.progress_words(ProgressEvent(done=0, total=None, note="loading tasks")) == "loading tasks"


def test_json_with_a_nan_is_never_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.emit_json({"value": float("nan")})
    assert capsys.readouterr().out == ""


def test_a_table_in_a_pipe_keeps_each_row_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit_table([["task", "why", "n"], ["[a]", "x" * 100, "1"], ["b", "", "12"]])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    row = next(line for line in out.splitlines() if "[a]" in line)
    assert row.split() == ["[a]", "x" * 100, "1"]
    assert row.rstrip().endswith(" 1")  # numbers stand to the right: below them the 12 ends in the same column
    assert len(row.rstrip()) == len(next(line for line in out.splitlines() if line.strip().startswith("b")).rstrip())
