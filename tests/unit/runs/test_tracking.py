"""Where curves go.

- A line is on disk as soon as it is written; a torn last line of a killed run does not swallow the next.
- Numbers that JSON cannot hold become null.
- W&B that is missing, refuses or breaks half-way is logged once and never stops a run.
- All sessions of a run are one W&B run: its id is kept in the run folder.
"""

import importlib.util
import json
import logging
import re
import sys
import types

import pytest

from tau2rl.config import SftConfig, build
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.tracking import Curves, JsonlSink, Sinks, WandbSink


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_on_disk_before_the_sink_is_closed(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(1, {"reward/mean": 0.25})
    assert lines(path) == [{"step": 1, "reward/mean": 0.25}]
    sink.close()
    sink.close()


def test_a_resumed_run_appends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        sink = JsonlSink(path)
        sink.write(step, {"x": step})
        sink.close()
    assert [line["step"] for line in lines(path)] == [1, 2]


def test_a_torn_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1}\n{"step": 2, "x"')
    sink = JsonlSink(path)
    sink.write(2, {"x": 2})
    sink.close()
    assert path.read_text().splitlines() == ['{"step": 1, "x": 1}', '{"step": 2, "x"', '{"step": 2, "x": 2}']


def test_what_json_cannot_hold_becomes_null(tmp_path):
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.write(1, {"a": float("nan"), "b": float("inf"), "c": None, "d": 0})
    assert lines(tmp_path / "m.jsonl") == [{"step": 1, "a": None, "b": None, "c": None, "d": 0}]
    sink.close()


class StubRun:
    def __init__(self, broken_at=None):
        self.logged, self.finished, self.broken_at = [], 0, broken_at

    def log(self, values, step):
        if step == self.broken_at:
            raise ConnectionError("no route to host")
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the tracker's library."""
    module = types.ModuleType("wandb")
    module.run = StubRun()
    module.asked = []
    module.init = lambda **options: module.asked.append(options) or module.run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def sink_at(folder):
    return WandbSink(project="p", name="n", folder=folder, config={"seed": 1})


def test_wandb_gets_numbers_offline_by_default(wandb, tmp_path):
    sink = sink_at(tmp_path / "w")
    sink.write(3, {"x": 1.0, "gap": None})
    sink.close()
    sink.close()
    (asked,) = wandb.asked
    assert asked.pop("id")
    assert asked == {
        "project": "p", "name": "n", "dir": str(tmp_path / "w"), "config": {"seed": 1}, "mode": "offline",
        "resume": "allow", "allow_val_change": True,
    }  # fmt: skip
    assert wandb.run.logged == [(3, {"x": 1.0})]
    assert wandb.run.finished == 1


def test_a_tracker_that_breaks_half_way_is_logged_once(wandb, tmp_path, caplog):
    wandb.run.broken_at = 2
    sinks = Sinks([sink_at(tmp_path), JsonlSink(tmp_path / "m.jsonl")])
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            sinks.write(step, {"x": step})
        sinks.close()
    assert [step for step, _ in wandb.run.logged] == [1]
    assert [line["step"] for line in lines(tmp_path / "m.jsonl")] == [1, 2, 3]
    assert caplog.text.count("w&b is off") == 1
    assert "no route to host" in caplog.text


def test_a_missing_tracker_does_not_stop_a_run(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import raises ImportError
    with caplog.at_level(logging.WARNING):
        sink = sink_at(tmp_path)
        sink.write(1, {"x": 1.0})
        sink.close()
    assert "w&b is off" in caplog.text


def train(folder, steps, first=1, **tracking):
    """What a training writes in one session of its run."""
    values = {"name": "n", "tracking": {"wandb": "offline", "project": "p", **tracking}}
    config = build(SftConfig, values)
    with RunFolder.open(RunFolder.create(folder, config, resume=True)) as opened:
        with Curves(config, config.tracking, opened) as curves:
            for step in range(first, steps + 1):
                curves.write(step, {"loss": 1.0 / step})


def test_every_session_goes_on_with_the_same_wandb_run(wandb, tmp_path):
    train(tmp_path / "run", 2)
    train(tmp_path / "run", 4, first=3)
    train(tmp_path / "other", 1)
    first, again, other = wandb.asked
    assert (first["id"], first["resume"]) == (again["id"], "allow")
    assert first["id"] == json.loads((tmp_path / "run" / "wandb.json").read_text())["id"] != other["id"]
    assert re.fullmatch(r"[0-9a-f]{8}", first["id"])


def test_a_run_whose_id_is_lost_goes_on_without_its_tracker(wandb, tmp_path, caplog):
    train(tmp_path / "run", 1)
    (tmp_path / "run" / "wandb.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", 2, first=2)
    assert "w&b is off" in caplog.text and "wandb.json` is not JSON" in caplog.text
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the package wandb is not here")
def test_the_real_library_takes_the_id_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tmp_path / "run", 1)
    train(tmp_path / "run", 2, first=2)
    run_id = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    offline = [folder.name for folder in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert len(offline) == 2 and all(run_id in name for name in offline)
