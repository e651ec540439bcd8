"""What a terminal shows, pinned here on a real pseudo-terminal and through the command line:

- a pipeline has a live line for the run, one for the whole with the time so far and left, and nothing stands below an error;
- what ended well leaves its last state as one line, and the cursor is back;
- escape sequences, C1, carriage returns and marks of direction that come from servers, models and files never reach a terminal:
  not in tables, lines, errors or progress; JSON escapes them and keeps the text;
- a path is printed so that it can be pasted.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tau2rl import console
from tau2rl.cli import app
from tau2rl.cli.printing import shown
from tau2rl.cli.stages import resume_command
from tau2rl.config import EvalConfig, PipelineConfig, build
from tau2rl.runs.progress import ProgressEvent

runner = CliRunner()
EVIL = "\x1b[2J\x1b]0;owned\x07\x1bP1;2q\x1b\\\x9b31mred\x9d0;x\x9c\x1b(B\x1b7\r\u202eabc\u2066\x07\x08\x7f\u2028end"
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
ENDED = re.compile(r"\d+/\d+ episodes")
LIVE = re.compile("[\u2800-\u28ff]")  # the spinner of a bar


class Screen:
    """As much of a terminal as rich's bars need: lines, a cursor, erasing. `frames` are the screens one after the other."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.frames: list[list[str]] = []
        self.hidden_cursor = False

    def feed(self, text: str) -> None:
        for found in re.finditer(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b.|[\r\n]|[^\x1b\r\n]+", text):
            if found.group() == "\r":  # before bars are drawn anew: however much is read at once, no state of them is missed
                self._keep()
            self._one(found.group(), found.group(1) or "", found.group(2))
        self._keep()

    def _keep(self) -> None:
        self.frames.append([line for line in self.lines if line.strip()])

    def _one(self, text: str, numbers: str, command: str | None) -> None:
        if command == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif command == "K":
            self.lines[self.row] = ""
        elif numbers == "?25":
            self.hidden_cursor = command == "l"
        elif text == "\r":
            self.column = 0
        elif text == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif text[0] != "\x1b":
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
            self.column += len(text)


def on_a_terminal(*words: str, folder: Path) -> tuple[int, Screen]:
    """The exit code of a command whose output is a terminal, and what that shows."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "60", "TAU2RL_OUTPUTS": str(folder)}
    command = [sys.executable, "-m", "tau2rl", *words]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment, close_fds=True)
    os.close(slave)
    screen, rest = Screen(), b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # Linux: nobody has the other end any more
            break
        if not data:
            break
        rest += data
        cut = max(rest.rfind(b"\n"), rest.rfind(b"m")) + 1  # never inside of a sequence or of a character
        screen.feed(rest[:cut].decode())
        rest = rest[cut:]
    screen.feed(rest.decode(errors="replace"))
    os.close(master)
    return process.wait(), screen


def pipeline(folder: Path, **second: Any) -> Path:
    """Two steps that are seconds of work; `second` takes the place of the second."""
    tasks = {"domains": ["mock"], "split": "synth-train", "limit": 3}
    steps = {
        "one": {"stage": "seed", "settings": {"tasks": tasks}},
        "two": second or {"stage": "seed", "settings": {"tasks": tasks}},
    }
    file = folder / "p.yaml"
    file.write_text(yaml.safe_dump({"stage": "pipeline", "steps": steps}))
    return file


def test_nothing_stands_below_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("no row\n")
    file = pipeline(tmp_path, stage="sft", settings={"data": {"files": [str(tmp_path / "rows.jsonl")]}})
    code, screen = on_a_terminal("run", "-c", str(file), "--inline", folder=tmp_path)
    last = screen.frames[-1]
    assert code == 2
    assert any(line.startswith("1 of 2: `one`") for line in last)
    assert not [line for line in last if LIVE.search(line)]
    error = next(number for number, line in enumerate(last) if line.startswith("error: "))
    assert all(not re.search(r"episodes|starting|tasks/s", line) for line in last[error:])
    assert not screen.hidden_cursor


def test_a_pipeline_has_two_live_lines_and_leaves_one_a_run(tmp_path: Path) -> None:
    code, screen = on_a_terminal("run", "-c", str(pipeline(tmp_path)), "--inline", folder=tmp_path)
    assert code == 0
    live = [sum(bool(LIVE.search(line)) for line in frame) for frame in screen.frames]
    assert max(live) == 2  # of the run, and of the whole
    whole = [line for frame in screen.frames for line in frame if LIVE.search(line) and "2 of 2: `two` (seed)" in line]
    assert whole and re.search(r"0:00:\d\d 2 of 2: `two` \(seed\)(, about \d:\d\d left)?", whole[-1])
    last = screen.frames[-1]
    assert not any(LIVE.search(line) for line in last)
    ended = [line for line in last if " of 2: " in line]
    assert [line.split(",")[0] for line in ended] == ["1 of 2: `one` (seed): 3/3 episodes", "2 of 2: `two` (seed): 3/3 episodes"]
    assert not [line for line in last if "?" in line]
    assert not screen.hidden_cursor


def test_a_run_leaves_its_last_state_and_a_failed_one_leaves_none(tmp_path: Path) -> None:
    words = ["seed", "--domains", "mock", "--limit", "2", "--inline", "--name"]
    code, screen = on_a_terminal(*words, "good", folder=tmp_path)
    assert code == 0
    assert [line.split(",")[0] for line in screen.frames[-1] if ENDED.match(line)] == ["2/2 episodes"]
    code, screen = on_a_terminal(*words, "bad", "--tasks.ids", "none", folder=tmp_path)
    assert code == 2
    assert not [line for line in screen.frames[-1] if ENDED.match(line) or LIVE.search(line)]
    assert any(line.startswith("error: ") for line in screen.frames[-1])


# --- what others say ---


def report(folder: Path) -> Path:
    """A training's report, with words of a stranger in each place that is printed."""
    values = {
        "stage": "sft", "incomplete": False, "training": {f"loss{EVIL}": EVIL, "steps": 1},
        "rows": {"used": 1, "held_out": 0, "dropped": 1, "reasons": {EVIL: 1}},
        "outputs": {"checkpoint": {"path": f"/models/{EVIL}", "sha256": "a" * 64}},
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(values))
    return folder


def test_no_escape_sequence_of_a_file_reaches_the_terminal(tmp_path: Path) -> None:
    result = runner.invoke(app, ["report", str(report(tmp_path))])
    assert result.exit_code == 0, result.output
    assert not FORBIDDEN.search(result.output)
    assert "owned" not in result.output  # the title that a terminal would have got
    assert result.output.count("red") >= 3  # and the words stay


def test_json_escapes_them_and_keeps_the_text(tmp_path: Path) -> None:
    result = runner.invoke(app, ["report", str(report(tmp_path)), "--json"])
    assert not FORBIDDEN.search(result.stdout)
    assert json.loads(result.stdout)["rows"]["reasons"] == {EVIL: 1}


def test_no_escape_sequence_reaches_the_terminal_by_an_error(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"chat": {"tokenizer": "bytes"}, "policy": {"kind": EVIL}}))
    result = runner.invoke(app, ["eval", "-c", str(tmp_path / "c.yaml"), "--dry-run"])
    assert result.exit_code == 2
    assert not FORBIDDEN.search(result.output)
    folder = tmp_path / "a\x1b[31mb"
    folder.mkdir()
    result = runner.invoke(app, ["report", str(folder)])
    assert not FORBIDDEN.search(result.output)


@pytest.mark.parametrize("where", ["line", "note", "emit", "say", "table", "title"])
def test_everything_that_is_written_is_clean(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    with console.Follower(sys.stderr) as follower:
        match where:
            case "line":
                follower.on_line(f"{EVIL}\r\n")
            case "note":
                follower.on_progress(ProgressEvent(done=0, total=1, note=EVIL))
            case "emit":
                console.emit(EVIL)
            case "say":
                console.say(EVIL)
            case "table":
                console.emit_table([[EVIL, "n"], [EVIL, "1"]])
            case _:
                console.emit_table([["a"], ["b"]], title=EVIL)
    written = "".join(capfd.readouterr())
    assert "end" in written
    assert not FORBIDDEN.search(written)


def test_lines_and_tabs_stay() -> None:
    assert console.clean("a\tb\nc\u00e9\u4e2d\U0001f600") == "a\tb\nc\u00e9\u4e2d\U0001f600"
    assert console.clean("50%\rdone") == "50% done"
    assert console.clean("\x1b]0;no end\nnext") == "\nnext"


def test_a_path_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs" / "it's"
    assert shown(folder) == shlex.quote("my runs/it's")
    for kind, words in ((EvalConfig, {"chat": {"tokenizer": "bytes"}}), (PipelineConfig, {})):
        command = shlex.split(resume_command(build(kind, {**words, "output": str(folder)})))
        assert command[2:6] == ["-c", "my runs/it's/config.json", "--output", "my runs/it's"]
