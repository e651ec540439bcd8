"""A run folder that cannot be written or read; each is a sentence that names the file and a way out, and never "a bug":

- an output that is too long, lies behind a symbolic link that leads nowhere or to itself, below a file, or where nobody may write
- a folder with files that are not of a run is left alone; one where another process is making a run is that process's
- a folder behind a symbolic link is used, and given back without the link
- a disk that is full at the start, or later: what was written before is kept, and the run goes on when there is room
- a damaged training state (one bit is enough), curves, account of a session: each refuses to go on, and stays as it is
- a damaged `config.json`, `environment.json`, `report.json`, `selection.json` or file of a session
- a `report.json` with values of other types: the first one is named
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config import EvalConfig, build
from tau2rl.report import schema
from tau2rl.report.report import build_report
from tau2rl.report.schema import check_types
from tau2rl.runs.claim import claimed
from tau2rl.runs.reports import read_report
from tau2rl.settings import child_environment
from tau2rl.types import Attempt, TaskRef

runner = CliRunner()
SETTINGS = ["policy.kind=gold", "chat.protocol=transcript", "user.kind=scripted"]
GOLD = ["eval", "--domains", "mock", "--task-split", "synth-test", "--num-samples", "1", "--inline"]
GOLD += [word for setting in SETTINGS for word in ("--set", setting)]


def gold(*words: object, code: int = 0) -> Any:
    return invoke(*GOLD, "--limit", "1", *words, code=code)


def invoke(*words: object, code: int = 0) -> Any:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output and "this is a bug" not in result.output
    return result


def told(result: Any, *parts: str) -> None:
    assert all(part in result.stderr for part in parts), result.stderr
    assert "hint: " in result.stderr


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A finished evaluation."""
    gold("--output", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("length", [300, 5000])
def test_a_path_that_is_too_long(length: int, tmp_path: Path) -> None:
    result = gold("--output", tmp_path / ("x" * length), code=2)
    told(result, "cannot write `", "File name too long", "choose a shorter `--output`")
    assert len(result.stderr) < 2500


def test_a_name_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAU2RL_OUTPUTS", str(tmp_path))
    told(gold("--name", "x" * 300, code=2), "File name too long")


def test_a_link_that_leads_nowhere_or_to_itself(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("nowhere", "loop"):
        told(gold("--output", tmp_path / name, code=2), f"cannot write `{tmp_path / name}")
        assert (tmp_path / name).is_symlink()


def test_a_folder_behind_a_link_is_used_and_given_back(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    gold("--output", tmp_path / "link", "--set", "tasks.ids=[no-such-task]", code=2)
    assert list((tmp_path / "disk").iterdir()) == [] and (tmp_path / "link").is_symlink()
    gold("--output", tmp_path / "link")
    assert (tmp_path / "disk" / "report.json").exists()


def test_a_run_that_another_process_is_making_at_this_moment_is_its_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = build(EvalConfig, {"policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}})
    with claimed(run, config, resume=False):
        (run / "config.json").rename(run / ".config.json.77")  # as it is before `config.json` is there whole
        (run / "checkpoints").mkdir()
        told(gold("--output", run, code=2), f"process {os.getpid()} on ", f"has started the run in `{run}`")


def test_what_a_killed_start_left_holds_no_name(tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / ".config.json.77").write_text("{", "utf-8")
    gold("--output", tmp_path / "run")


def test_files_that_are_not_of_a_run_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "claim").touch()
    (tmp_path / "thesis.tex").write_text("mine", "utf-8")
    for words in ((), ("--resume",), ("--set", "tasks.ids=[no-such-task]")):
        told(gold("--output", tmp_path, *words, code=2), "holds files that are not of a run", "empty it")
    assert (tmp_path / "thesis.tex").read_text("utf-8") == "mine"


def test_a_place_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    told(gold("--output", tmp_path / "file" / "run", code=2), f"cannot write `{tmp_path / 'file' / 'run'}")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system that nobody can write to")
def test_a_place_where_nobody_may_write() -> None:
    told(gold("--output", "/proc/tau2rl-run", code=2), "cannot write `/proc/tau2rl-run")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder is a matter of being root")
@pytest.mark.parametrize("resume", [False, True], ids=["new", "resume"])
def test_a_folder_that_may_only_be_read(resume: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    gold("--output", run) if resume else run.mkdir()
    for folder in (run / "logs", run):
        if folder.exists():
            folder.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    words = [*GOLD, "--limit", "1", "--output", str(run), *(["--resume"] if resume else [])]
    code = (  # another user may not read this interpreter: a run before it has loaded everything
        "import os, sys; from typer.testing import CliRunner; from tau2rl.cli import app, main\n"
        "CliRunner().invoke(app, [*sys.argv[2:], '--output', sys.argv[1]]); del sys.argv[1]; os.setuid(65534); main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "before"), *words]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    assert asked.returncode == 2, asked.stderr
    assert f"cannot write `{run}" in asked.stderr and "Permission denied" in asked.stderr
    assert "hint: choose an `--output` that you can write to" in asked.stderr


def on_a_disk_of(size: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, where no file may grow beyond so many bytes: a write fails in the middle, as on a full disk."""
    script = (
        "import resource, signal; from tau2rl.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, -1)); main()"
    )
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())


def test_a_disk_that_is_full_at_the_start(tmp_path: Path) -> None:
    full = on_a_disk_of(100, *GOLD, "--limit", "1", "--output", str(tmp_path / "run"))
    assert full.returncode == 2, full.stderr
    assert f"cannot write `{tmp_path / 'run' / 'config.json'}`: File too large" in full.stderr and "hint: " in full.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_there_is(tmp_path: Path) -> None:
    words = [*GOLD, "--limit", "30", "--output", str(tmp_path / "run")]
    full = on_a_disk_of(30_000, *words)
    assert full.returncode == 1, full.stderr
    assert f"cannot write `{tmp_path / 'run' / 'episodes.jsonl'}`: File too large; what was written before is kept" in full.stderr
    assert full.stderr.count("continue") == 1 and "--resume" in full.stderr and "this is a bug" not in full.stderr
    kept = (tmp_path / "run" / "episodes.jsonl").read_bytes()
    assert 0 < len(kept) <= 30_000 and kept.endswith(b"\n")
    invoke(*words, "--resume")
    assert (tmp_path / "run" / "episodes.jsonl").read_bytes().startswith(kept)


DAMAGED = [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b'{"stage": "eval", "seed": "x"}', b'{"stage": "bake"}']


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content[:12]))
def test_a_damaged_config(content: bytes, done: Path) -> None:
    (done / "config.json").write_bytes(content)
    filtered = ["rft-filter", "--from", done, "--output", done.parent / "x", "--inline"]
    for words in (["compare", done, done], ["select-checkpoint", done], filtered):
        told(invoke(*words, code=2), f"`{done / 'config.json'}`")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 2}', b'{"schema": 9, "identity": {}}'])
def test_a_damaged_environment(content: bytes, done: Path) -> None:
    (done / "environment.json").write_bytes(content)
    for words in (["compare", done, done], ["rft-filter", "--from", done, "--output", done.parent / "x", "--inline"]):
        told(invoke(*words, code=2), f"`{done / 'environment.json'}`")
    told(gold("--output", done, "--resume", code=2), f"`{done / 'environment.json'}`")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"schema": 9, "incomplete": false, "stage": "eval"}'])
def test_a_damaged_report(content: bytes, done: Path) -> None:
    (done / "report.json").write_bytes(content)
    for words in (["report", done], ["compare", done, done]):
        told(invoke(*words, code=2), f"`{done / 'report.json'}`")
    gold("--output", done, "--resume")  # it is made anew
    invoke("report", done)


OTHER_TYPES: dict[str, Any] = {
    "overall": 5,
    "overall.pass@1": [],
    "overall.pass@1.value": "0.5",
    "overall.pass@1.ci95": [0.5],
    "by_domain.mock": None,
    "tasks": True,
    "attempts": "1",
    "by_task": [],
    "floor": {"do_nothing": {}},
    "episodes.completed": None,
    "failures": [{}],
    "cost.tokens": [1],
    "cost.wall": "an hour",
    "incomplete": None,
    "so_far": {"not_done": 5},
}


@pytest.mark.parametrize("place", OTHER_TYPES)
def test_a_report_with_values_of_other_types(place: str, done: Path) -> None:
    report = json.loads((done / "report.json").read_text("utf-8"))
    *above, last = place.split(".")
    inside = functools.reduce(lambda values, name: values[name], above, report)
    inside[last] = OTHER_TYPES[place]
    (done / "report.json").write_text(json.dumps(report))
    for words in (["report", done], ["report", done, "--cost"], ["compare", done, done], ["plan", "--effect", 5, "--like", done]):
        told(invoke(*words, code=2), f"`{done / 'report.json'}`: `{place}", "it is damaged")
    invoke("show", done)  # what was played is there


def test_every_report_of_this_version_has_the_types_of_the_table(tmp_path: Path) -> None:
    gold("--output", tmp_path / "whole")
    gold("--output", tmp_path / "greedy", "--set", "rollout.greedy=true")
    gold("--output", tmp_path / "repeated", "--set", "repetitions=2")
    invoke("seed", "--domains", "mock", "--limit", 2, "--output", tmp_path / "seed", "--inline")
    for run in ("whole", "greedy", "repeated", "seed"):
        read_report(tmp_path / run / "report.json")
    task = TaskRef(domain="mock", task_id="create_task_1", split="test")
    unfinished = build_report((), planned=[Attempt(task=task, index=0, seed=1)], floors={}, digest="d")
    check_types(unfinished, {**schema.REPORT, **schema.STAGES["eval"]})
    assert unfinished["incomplete"] and unfinished["so_far"]


@pytest.mark.parametrize(("content", "says"), [(b"{", "is not JSON"), (b"{}", "is not the account of a session")])
def test_a_damaged_account_of_a_session(content: bytes, says: str, done: Path) -> None:
    file = done / "logs" / "session_1" / "timing.json"
    file.write_bytes(content)
    told(gold("--output", done, "--resume", code=2), f"`{file}` {says}", "restore it from a copy")


SHAPE = {"hidden": 16, "layers": 1, "heads": 1, "head_dim": 16, "intermediate": 32}


def sft(run: Path, steps: int, *more: object, beside: Path | None = None) -> list[str]:
    """The command; its rows lie beside the run, or beside the one that it is a copy of."""
    rows = (beside or run).with_name("rows.jsonl")
    rows.write_text('{"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]}\n', "utf-8")
    settings = [f"data.files=[{rows}]", "data.val_fraction=0", f"train.steps={steps}", "train.batch_size=1"]
    settings += [f"local.shape.{name}={value}" for name, value in SHAPE.items()]
    words = [word for setting in settings for word in ("--set", setting)]
    return ["sft", "--inline", "--output", str(run), *words, *map(str, more)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of two steps."""
    run = tmp_path_factory.mktemp("trained") / "run"
    invoke(*sft(run, 2))
    return run


DAMAGES: dict[str, Any] = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "one bit": lambda whole: whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
    "zeros": lambda whole: bytes(len(whole)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_training_state(damage: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    file = tmp_path / "run" / "checkpoints" / "state" / "training_state.pt"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    told(
        invoke(*sft(tmp_path / "run", 3, "--resume", beside=trained), code=2),
        f"the training state `{file}`",
        "start again without it",
    )


@pytest.mark.parametrize(
    "line", [b"\xff\n", b"5\n", b"{}\n", b"[" * 100_000 + b"\n"], ids=["bytes", "a number", "no step", "deep"]
)
def test_damaged_curves(line: bytes, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_bytes(line + file.read_bytes())
    told(invoke(*sft(tmp_path / "run", 3, "--resume", beside=trained), code=2), f"`{file}` ", " 1 ", "restore it from a copy")
    assert file.read_bytes().startswith(line)


def test_something_else_in_the_place_of_a_file(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    file = tmp_path / "run" / "metrics.jsonl"
    file.unlink()
    file.symlink_to(file)
    told(
        invoke(*sft(tmp_path / "run", 3, "--resume", beside=trained), code=1),
        f"cannot read or write `{file}`",
        "leads back to itself",
    )


def test_a_disk_that_has_no_room_for_the_state(tmp_path: Path) -> None:
    full = on_a_disk_of(40_000, *sft(tmp_path / "run", 1))
    assert full.returncode == 1, full.stderr
    assert (
        "cannot write `" in full.stderr
        and "training_state.pt`" in full.stderr
        and "what was written before is kept" in full.stderr
    )
    assert "this is a bug" not in full.stderr and "Traceback" not in full.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_log_that_cannot_be_written_shows_no_traceback(tmp_path: Path) -> None:
    script = (
        "import tau2rl.launch.entry as entry; from tau2rl.cli import main; begin = entry._LogFile.__init__\n"
        "entry._LogFile.__init__ = lambda self, path, **more: begin(self, '/dev/full', **more); main()"
    )
    command = [sys.executable, "-c", script, *GOLD, "--limit", "1", "--output", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    assert ended.returncode == 0 and "Logging error" not in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
