"""Where curves and conversations go.

- A line is on disk as soon as it is written; a torn last line of a killed run does not swallow the next.
- Numbers that JSON cannot hold become null.
- A tracker that is missing, refuses or breaks half-way is logged once and never stops a run.
- All sessions of a run are one run of its tracker; W&B's id is kept in the run folder.
- Conversations: half of them solved where there are so many; none, unless asked for, to a tracker that sends them on; nothing
  in them acts on a terminal or a page.
- With the real libraries, each where it is installed: config, curves, conversations, a group for a pipeline, and a lineage in
  which what one run made and another began with is one artifact.
"""

import hashlib
import importlib.util
import json
import logging
import struct
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from tau2rl.config import GrpoConfig, build
from tau2rl.rollouts.monitors import ConversationSample
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.trackers import Curves, JsonlSink, trackers_of
from tau2rl.types import Message
from tests.viewing import HOSTILE, failed, record


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def installed(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"the package {name} is not here")


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


def sample(count=None, records=(), **tracking):
    config = build(GrpoConfig, {"model": {"init": "/m"}, "tracking": {"wandb": "offline", "conversations": count, **tracking}})
    drawn = ConversationSample(config)
    for each in records:
        drawn.add(each)
    return drawn.take()


RECORDS = [record(0), record(1), record(2), record(3, solved=False), failed(4)]


def test_half_of_the_sample_is_solved_whoever_ends_first():
    assert [each.reward for each in sample(2, RECORDS)] == [1.0, 0.0]
    assert [each.reward for each in sample(4, RECORDS)] == [1.0, 0.0, 1.0, 1.0]  # there is one that was not solved
    assert sample(2, RECORDS) == sample(2, RECORDS[::-1])
    assert sample(2, RECORDS)[0] in sample(4, RECORDS)
    assert sample(0, RECORDS) == sample(9, [failed(1)]) == sample(None, RECORDS, wandb="off") == []


def test_a_sampled_conversation_has_no_key_in_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    (drawn,) = sample(1, [record(0, says="my key is sk-0123456789abcdef")])
    assert "sk-0123456789abcdef" not in json.dumps(drawn.messages)


def train(folder, steps, first=1, shown=(), parent=None, **tracking):
    """What a training writes in one session of its run: curves, conversations of each step, the report with its lineage."""
    config = build(GrpoConfig, {"name": "n", "model": {"init": "/m"}, "tracking": {"wandb": "offline", **tracking}})
    with RunFolder.open(RunFolder.create(folder, config, resume=True)) as opened:
        with Curves(config, opened) as curves:
            for step in range(first, steps + 1):
                curves.write(step, {"loss": 1.0 / step, "gap": None}, shown)
        final = folder / "checkpoints" / "final"
        final.mkdir(parents=True, exist_ok=True)
        (final / "model.safetensors").write_bytes(b"weights")
        made = {"path": str(final), "sha256": hashlib.sha256(folder.name.encode()).hexdigest()}
        data = [{"path": "pyproject.toml", "sha256": "d" * 64}]  # a relative path, as people type it
        report = {"inputs": {"data": data, "parent": parent}, "outputs": {"checkpoint": made}}
        trackers_of(opened, config).lineage(report)
    return made


# --- stand-ins for libraries ---


class StubRun:
    def __init__(self, broken_at=None):
        self.logged, self.finished, self.broken_at, self.artifacts = [], 0, broken_at, []
        self.config = {}

    def log(self, values, step):
        if step == self.broken_at:
            raise ConnectionError("no route to host")
        self.logged.append((step, values))

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)

    def finish(self):
        self.finished += 1


class StubArtifact:
    def __init__(self, name, type, metadata):
        self.name, self.uri = name, None

    def add_reference(self, uri, checksum):
        self.uri = uri


class StubConfig(dict):
    def update(self, values, allow_val_change):
        super().update(values)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the tracker's library."""
    module = types.ModuleType("wandb")
    module.run = StubRun()
    module.run.config = StubConfig()
    module.asked = []
    module.Artifact = StubArtifact
    module.Table = lambda columns, data: data
    module.Settings = lambda **settings: settings
    module.init = lambda **options: module.asked.append(options) or module.run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_config_numbers_conversations_and_lineage(wandb, tmp_path):
    train(tmp_path / "w", 1, shown=sample(2, RECORDS), conversations=2)
    (asked,) = wandb.asked
    assert asked.pop("id") and asked.pop("config")["tracking"]["wandb"] == "offline"
    assert asked == {
        "project": "tau2rl", "name": "n", "group": None, "job_type": "grpo", "dir": str(tmp_path / "w"), "mode": "offline",
        "resume": "allow", "allow_val_change": True,
        "settings": {"console": "off", "disable_git": True, "x_disable_meta": True, "disable_code": True},
    }  # fmt: skip
    assert wandb.run.logged[0] == (1, {"loss": 1.0})
    step, table = wandb.run.logged[1]
    assert (step, [row[3] for row in table["conversations"]]) == (1, [1.0, 0.0])
    assert [artifact.uri for artifact in wandb.run.artifacts] == [(tmp_path / "w" / "checkpoints" / "final").as_uri()]
    assert wandb.run.config == {"inputs": {"dataset": ["d" * 64]}}
    assert wandb.run.finished == 1


def test_conversations_leave_the_machine_only_where_that_is_asked_for(wandb, tmp_path):
    def shown(folder, **tracking):
        wandb.run.logged.clear()
        train(tmp_path / folder, 1, shown=sample(9, RECORDS), **tracking)
        return sum(len(values.get("conversations", ())) for _, values in wandb.run.logged)

    wandb.run.use_artifact = wandb.run.log_artifact
    assert shown("a") == 0  # `wandb sync` would send them
    assert shown("b", wandb="online") == 0
    assert shown("c", wandb="online", conversations=3) == 3
    assert shown("d", conversations=0) == 0


def test_a_run_of_a_pipeline_is_in_its_group(wandb, tmp_path):
    (tmp_path / "config.json").write_text('{"name": "laptop"}')
    train(tmp_path / "runs" / "02-sft", 1)
    assert wandb.asked[0]["group"] == "laptop"


def test_a_tracker_that_breaks_half_way_is_said_once_and_ends_nothing(wandb, tmp_path, caplog):
    wandb.run.broken_at = 2
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", 3)
    assert [step for step, _ in wandb.run.logged] == [1]
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    (said,) = [each.getMessage() for each in caplog.records if each.name == "tau2rl.runs.trackers"]
    assert said == "w&b is off for the rest of this run: ConnectionError: no route to host"


@pytest.mark.parametrize(
    ("module", "name", "asked"),
    [
        ("wandb", "w&b", {}),
        ("trackio", "trackio", {"wandb": "off", "trackers": ["trackio"]}),
        ("tensorboardX", "tensorboard", {"wandb": "off", "trackers": ["tensorboard"]}),
    ],
)
def test_a_tracker_whose_library_is_gone_does_not_stop_a_run(monkeypatch, tmp_path, caplog, module, name, asked):
    monkeypatch.setitem(sys.modules, module, None)  # import raises ImportError
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", 2, **asked)
    assert caplog.text.count(f"{name} is off for the rest of this run") == 1
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 2


def test_every_session_goes_on_with_the_same_wandb_run(wandb, tmp_path):
    train(tmp_path / "run", 2)
    train(tmp_path / "run", 4, first=3)
    train(tmp_path / "other", 1)
    first, again, other = wandb.asked
    assert (first["id"], first["resume"]) == (again["id"], "allow")
    assert first["id"] == json.loads((tmp_path / "run" / "wandb.json").read_text())["id"] != other["id"]


@pytest.mark.parametrize(("text", "said"), [("{", "wandb.json` is not JSON"), ("{}", "wandb.json` has no id")])
def test_a_run_whose_id_is_lost_goes_on_without_its_tracker(wandb, tmp_path, caplog, text, said):
    train(tmp_path / "run", 1)
    (tmp_path / "run" / "wandb.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", 2, first=2)
    assert "w&b is off" in caplog.text and said in caplog.text
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


# --- the real libraries ---


def hostile():
    """A conversation with everything that could act, and a call."""
    one = record(0)
    said = (Message(role="assistant", content=HOSTILE), *one.episode.messages)
    return sample(1, [replace(one, episode=replace(one.episode, messages=said))])


def wandb_records(folder):
    """The records of an offline folder: LevelDB's log, blocks of 32 KiB of pieces with a head of 7 bytes, behind 7 of W&B's."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    data, at, record = file.read_bytes(), 7, b""
    while at < len(data):
        if 2**15 - at % 2**15 < 7:  # no head fits: the rest of the block is padding
            at += 2**15 - at % 2**15
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            yield Record.FromString(record)
            record = b""


@installed("wandb")
def test_wandb_itself_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "config.json").write_text('{"name": "laptop"}')
    monkeypatch.setattr(sys, "argv", ["tau2rl", "--told", "argv-canary"])
    made = train(tmp_path / "runs" / "a", 1, shown=hostile(), conversations=4)
    train(tmp_path / "runs" / "a", 2, first=2)
    train(tmp_path / "runs" / "b", 1, parent=made)
    run_id = json.loads((tmp_path / "runs" / "a" / "wandb.json").read_text())["id"]
    folders = sorted((tmp_path / "runs" / "a" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(run_id in folder.name for folder in folders)

    written = b"".join(file.read_bytes() for file in folders[0].rglob("*") if file.is_file())
    assert b"canary" not in written  # the command line does not go along

    found = list(wandb_records(folders[0]))
    logged = {"/".join(item.nested_key or [item.key]): item.value_json
              for each in found if each.HasField("history") for item in each.history.item}  # fmt: skip
    assert (float(logged["loss"]), logged["conversations/_type"]) == (1.0, '"table-file"')
    (table,) = folders[0].rglob("*.table.json")
    row = json.loads(table.read_text())["data"][0]
    assert row[:5] == [1, "mock/create_task_1#0", "completed", 1.0, 1.0]
    assert "create_task(" in row[-1] and "\x1b" not in row[-1] and "\\x1b]0;owned" in row[-1]
    (begun,) = [each.run for each in found if each.HasField("run")]
    assert (begun.project, begun.run_group, begun.display_name, begun.run_id) == ("tau2rl", "laptop", "n", run_id)
    artifacts = [each.artifact for each in found if each.HasField("artifact")]
    artifacts += [each.request.log_artifact.artifact for each in found if each.request.HasField("log_artifact")]
    assert {each.name for each in artifacts if each.type == "model"} == {f"model-{made['sha256'][:16]}"}
    (last,) = (tmp_path / "runs" / "b" / "wandb").glob("offline-run-*")
    assert made["sha256"] in "".join(str(each) for each in wandb_records(last))  # what b began with


def trackio_in(folder, monkeypatch):
    """trackio with its projects there: it reads the variable when it is imported."""
    monkeypatch.setenv("TRACKIO_DIR", str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)


@installed("trackio")
def test_trackio_itself(tmp_path, monkeypatch, capsys):
    trackio_in(tmp_path / "trackio", monkeypatch)
    (tmp_path / "config.json").write_text('{"name": "laptop"}')
    asked = {"wandb": "off", "trackers": ["trackio"]}
    made = train(tmp_path / "runs" / "a", 2, shown=hostile(), **asked)
    train(tmp_path / "runs" / "a", 2, first=2, **asked)  # goes on from an older state
    train(tmp_path / "runs" / "b", 1, parent=made, **asked)
    assert capsys.readouterr().out == ""  # stdout is for data
    from trackio.sqlite_storage import SQLiteStorage

    a, b = (f"n-{hashlib.sha256(str(tmp_path / 'runs' / name).encode()).hexdigest()[:6]}" for name in "ab")
    assert sorted(SQLiteStorage.get_runs("tau2rl")) == sorted([a, b])
    steps = SQLiteStorage.get_logs("tau2rl", a)
    assert [(each["step"], each["loss"]) for each in steps if "loss" in each] == [(1, 1.0), (2, 0.5), (2, 0.5)]
    assert SQLiteStorage.get_run_config("tau2rl", a)["_Group"] == "laptop"
    traces = SQLiteStorage.get_traces("tau2rl", a)
    assert len(traces) == 2
    told = json.dumps(traces)
    assert "create_task" in told and "u001b" not in told and "\\\\x1b]0;owned" in told
    name = f"model-{made['sha256'][:16]}"
    assert SQLiteStorage.get_artifact_manifest("tau2rl", name, None)["version"] == 0  # one, that a made and b used


@installed("trackio")
def test_trackio_without_its_folder_is_said_once(tmp_path, monkeypatch, capsys, caplog):
    (tmp_path / "trackio").touch()
    trackio_in(tmp_path / "trackio", monkeypatch)
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "a", 2, wandb="off", trackers=["trackio"])
    assert caplog.text.count("is off for the rest of this run: FileExistsError") == 1
    assert capsys.readouterr().out == ""
    assert len(lines(tmp_path / "a" / "metrics.jsonl")) == 2


def events(folder):
    """The events of a folder as TensorBoard reads them: of its files, in order."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(Path(folder).glob("events.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16


@installed("tensorboardX")
def test_tensorboard_itself(tmp_path):
    asked = {"wandb": "off", "trackers": ["tensorboard"]}
    made = train(tmp_path / "a", 3, shown=hostile(), **asked)
    train(tmp_path / "a", 3, first=2, **asked)  # goes on from an older state
    found = list(events(tmp_path / "a" / "tensorboard"))
    values = [(each.step, value) for each in found for value in each.summary.value]
    assert [step for step, value in values if value.tag == "loss"] == [1, 2, 3, 2, 3]
    begun = [each.step for each in found if each.session_log.status == each.session_log.START]
    assert begun == [2]  # TensorBoard forgets what earlier files say of this step and later ones
    texts = {value.tag.partition("/")[0]: value.tensor.string_val[0].decode() for _, value in values if value.tag != "loss"}
    assert set(texts) == {"config", "conversations", "lineage"}
    assert made["sha256"] in texts["lineage"] and '"init": "/m"' in texts["config"]
    assert "\x1b" not in texts["conversations"]
    assert all(line.startswith("    ") for line in texts["conversations"].splitlines())  # a block that no line ends
