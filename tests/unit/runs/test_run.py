"""The run folder.

- a new run is made, opened and filled; FAILED episodes are kept apart and are not "done"
- a folder that holds a run is refused without `resume`; one that holds other files is refused always
- a resume with other settings, or on another benchmark, is refused and names every key with both values;
  where a server is and how patiently it is asked may change
- a process that is killed while it writes loses that line and no other; the next start glues nothing to it
- two processes never write one run; the lock goes with its holder, however it dies
- two starts never have the same run: the second one is told who has it; a claim goes with its holder, and one that was left to
  a job stays until that job has opened the folder
- no secret gets into the folder
- the folder of a run that was refused goes away again, unless it holds a result or a process has it open
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tau2rl.config import EvalConfig, build
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.runs import files, provenance, records
from tau2rl.runs.claim import claimed, withdraw
from tau2rl.runs.folder import RunFolder, read_config, run_path
from tau2rl.types import Attempt, Episode, EpisodeRecord, Failure, Fault, Grade, Status, StopReason, TaskRef


def config(**changes: object) -> EvalConfig:
    gold = {"policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}, "user": {"kind": "scripted"}}
    return build(EvalConfig, {**gold, **changes})


def record(index: int, *, status: Status = Status.COMPLETED, message: str = "HTTP 500") -> EpisodeRecord:
    task = TaskRef(domain="mock", task_id="a", split="base")
    failed = status is Status.FAILED
    episode = Episode(
        task=task,
        seed=index,
        status=status,
        stop_reason=StopReason.FAILED if failed else StopReason.USER_STOP,
        token_ids=(),
        turns=(),
        messages=(),
        grade=None if failed else Grade(reward=1.0, checks=None, reward_basis=("DB",)),
        failure=Failure(fault=Fault.INFRA, kind="PolicyFailure", message=message) if failed else None,
    )
    attempt = Attempt(task=task, index=index, seed=index)
    return EpisodeRecord(schema=records.SCHEMA, run="default", attempt=attempt, tries=1, episode=episode, score=None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return RunFolder.create(tmp_path / "run", config(), resume=False)


def fill(path: Path, *indices: int) -> None:
    with RunFolder.open(path) as folder:
        for index in indices:
            folder.append(record(index))


def done(folder: RunFolder) -> set[str]:
    return {record.attempt.key for record in folder.records()}


def test_a_new_run_is_made_opened_and_filled(path: Path) -> None:
    with RunFolder.open(path) as folder:
        assert (folder.config, folder.session, folder.torn_bytes) == (config(), 1, 0)
        folder.append(record(0))
        folder.append(record(1, status=Status.FAILED))
        folder.append(record(2))
        assert [r.attempt.index for r in folder.records()] == [0, 2]
        assert [r.attempt.index for r in folder.failed_records()] == [1]
        assert done(folder) == {"mock/a#0", "mock/a#2"}


def test_a_record_is_on_disk_before_append_returns(path: Path) -> None:
    with RunFolder.open(path) as folder:
        folder.append(record(0))
        assert (path / "episodes.jsonl").read_bytes() == records.encode(record(0))


def test_the_latest_log_folder_is_the_last_session(path: Path) -> None:
    for _ in range(11):
        with RunFolder.open(path) as folder:
            folder.job_log.write_text(f"session {folder.session}")
    assert (path / "logs" / "latest" / "job.log").read_text() == "session 11"


def test_a_run_is_not_overwritten(path: Path) -> None:
    fill(path, 0)
    with pytest.raises(UserError, match="holds a run already") as caught:
        RunFolder.create(path, config(), resume=False)
    assert "--resume" in caught.value.hint


def test_a_run_that_never_began_may_be_made_again_with_other_settings(path: Path) -> None:
    RunFolder.create(path, config(seed=1), resume=False)
    assert read_config(path).seed == 1


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not of a run"):
        RunFolder.create(tmp_path, config(), resume=True)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(UserError, match="not a directory"):
        RunFolder.create(tmp_path / "run", config(), resume=False)
    with pytest.raises(UserError, match="cannot write"):
        RunFolder.create(tmp_path / "run" / "deeper", config(), resume=False)


def test_resume_continues_and_may_change_the_route(path: Path) -> None:
    fill(path, 0)
    moved = config(launch={"inline": True}, rollout={"concurrency": 2})
    RunFolder.create(path, moved, resume=True)
    with RunFolder.open(path) as folder:
        assert done(folder) == {"mock/a#0"}
        assert folder.config.launch.inline


def test_resume_with_other_settings_names_each_with_both_values(path: Path) -> None:
    fill(path, 0)
    with pytest.raises(UserError) as caught:
        RunFolder.create(path, config(seed=7, limits={"max_steps": 30}), resume=True)
    assert "limits.max_steps: was 100, now 30" in caught.value.message
    assert "seed: was 300, now 7" in caught.value.message
    assert read_config(path).seed == 300


def test_resume_on_another_benchmark_is_refused(path: Path) -> None:
    before = provenance.environment(config(), {"tau2": {"version": "26.3"}}, recorded={"engine": "a"})
    with RunFolder.open(path) as folder:
        folder.write_environment(before)
        folder.append(record(0))
    with RunFolder.open(path) as folder:
        folder.write_environment(provenance.environment(config(), {"tau2": {"version": "26.3"}}, recorded={"engine": "b"}))
        after = provenance.environment(config(), {"tau2": {"version": "26.4"}})
        with pytest.raises(UserError, match=r"bench\.tau2\.version: was '26\.3', now '26\.4'"):
            folder.write_environment(after)
    assert files.read_json(path / "environment.json")["recorded"]["engine"] == "b"


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_line_is_cut_off_before_the_next_is_written(path: Path, cut: int) -> None:
    torn = records.encode(record(1))[:-cut]
    fill(path, 0)
    with (path / "episodes.jsonl").open("ab") as file:
        file.write(torn)
    with RunFolder.open(path) as folder:
        assert folder.torn_bytes == len(torn)
        assert done(folder) == {"mock/a#0"}
        folder.append(record(1))
        assert [r.attempt.index for r in folder.records()] == [0, 1]


def test_a_file_that_is_one_torn_line_longer_than_a_block_is_emptied(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"x" * 200_000)
    assert files.repair_tail(file) == 200_000
    assert file.read_bytes() == b""


def test_two_handles_never_write_one_run(path: Path) -> None:
    with RunFolder.open(path):
        for attempt in (lambda: RunFolder.open(path, patience_seconds=0), lambda: again(path)):
            with pytest.raises(UserError, match=rf"process {os.getpid()} on \S+ is writing the run in `{path}`"):
                attempt()
    RunFolder.open(path, patience_seconds=0).close()


def again(path: Path) -> Path:
    return RunFolder.create(path, config(), resume=True, patience_seconds=0)


WRITER = """
import sys
from pathlib import Path
from tau2rl.runs.folder import RunFolder
from tests.unit.runs.test_run import record
folder = RunFolder.open(Path(sys.argv[1]))
for index in range(10_000_000):
    folder.append(record(index))
    if index == 50:
        sys.stdout.write("going\\n"); sys.stdout.flush()
"""


def test_kill_9_while_writing_loses_at_most_the_line_in_flight(path: Path) -> None:
    root = Path(__file__).parents[3]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=root, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == b"going\n"
        with pytest.raises(UserError, match=rf"process {writer.pid} on \S+ is writing"):
            RunFolder.open(path, patience_seconds=0)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    with RunFolder.open(path) as folder:
        indices = [r.attempt.index for r in folder.records()]
        assert len(indices) > 50
        assert indices == list(range(len(indices)))


def test_the_report_is_whole_or_absent(path: Path) -> None:
    with RunFolder.open(path) as folder:
        folder.write_report({"digest": "ab"})
        with pytest.raises(ValueError):
            folder.write_report({"digest": "cd", "value": float("nan")})
        assert files.read_json(folder.report) == {"schema": 2, "digest": "ab"}
    assert [item.name for item in path.iterdir() if item.name.startswith(".")] == []


def test_the_stored_config_describes_the_run_and_not_this_session(tmp_path: Path) -> None:
    path = RunFolder.create(tmp_path / "new", config(resume=True, name="new"), resume=True)
    assert read_config(path) == config(name="new")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_a_name_is_not_a_path(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a run"):
        run_path(config(name=name))


def test_output_says_where_the_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAU2RL_OUTPUTS", str(tmp_path))
    assert run_path(config(name="x")) == tmp_path / "eval" / "x"
    assert run_path(config(output=tmp_path / "there")) == tmp_path / "there"


def test_a_config_of_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.open(tmp_path)
    files.write_json(tmp_path / "config.json", {"stage": "bake"})
    with pytest.raises(UserError, match="unknown stage `bake`"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        RunFolder.open(tmp_path)


def test_no_secret_gets_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-1")
    monkeypatch.setenv("MY_KEY", "sk-planted-2")
    user = {"kind": "llm", "api_key_env": "MY_KEY"}
    path = RunFolder.create(tmp_path / "run", config(user=user), resume=False)
    with RunFolder.open(path) as folder:
        folder.append(record(0, status=Status.FAILED, message="401 for sk-planted-1, then for sk-planted-2"))
        folder.write_environment(provenance.environment(folder.config, {}))
        (failure,) = (r.episode.failure for r in folder.failed_records())
    assert failure is not None
    assert failure.message == "401 for [OPENAI_API_KEY], then for [MY_KEY]"
    assert [file for file in path.rglob("*") if file.is_file() and b"planted" in file.read_bytes()] == []


def test_a_setting_that_holds_a_secret_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-1")
    with pytest.raises(UserError, match=r"`user\.api_base` holds the value of a secret") as caught:
        RunFolder.create(tmp_path / "run", config(user={"api_base": "http://host/sk-planted-1"}), resume=False)
    assert "planted" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_append_that_finds_the_disk_full_leaves_no_half_line(path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    line = records.encode(record(0))
    try:
        with RunFolder.open(path) as folder:
            folder.append(record(0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 10, limits[1]))
            with pytest.raises(
                RunIncomplete, match=r"cannot write `.*episodes\.jsonl`: File too large; what was written before is kept"
            ):
                folder.append(record(1))
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert folder.episodes.read_bytes() == line
            folder.append(dataclasses.replace(record(2)))
            assert done(folder) == {"mock/a#0", "mock/a#2"}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_refused_run_leaves_no_folder_whatever_it_had_prepared(path: Path) -> None:
    with RunFolder.open(path) as folder:
        folder.write_environment({"identity": {}, "digest": "d"})
        (folder.checkpoints / "initial").mkdir(parents=True)
        folder.failures.touch()
    assert withdraw(path)
    assert not path.exists()
    assert not withdraw(path)


def test_a_folder_that_holds_a_result_stays(path: Path) -> None:
    fill(path, 0)
    assert not withdraw(path)
    with RunFolder.open(path) as folder:
        assert done(folder) == {"mock/a#0"}


def test_a_folder_that_is_open_stays(path: Path) -> None:
    with RunFolder.open(path):
        assert not withdraw(path)
    assert path.exists()


CLAIMER = """
import os, signal, sys
from pathlib import Path
from tau2rl.config import EvalConfig, build
from tau2rl.runs.claim import claimed
config = build(EvalConfig, {"policy": {"kind": "gold"}, "chat": {"protocol": "transcript"}, "user": {"kind": "scripted"}})
with claimed(Path(sys.argv[1]), config, resume=False) as claim:
    sys.stdout.write("mine\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_a_second_start_is_refused_until_the_first_one_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = subprocess.Popen([sys.executable, "-c", CLAIMER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdin is not None and first.stdout is not None
    with first.stdin, first.stdout:
        assert first.stdout.readline() == b"mine\n"
        with pytest.raises(UserError, match=rf"process {first.pid} on \S+ has started the run in `{path}`"):
            with claimed(path, config(seed=1), resume=False):
                pass
        assert read_config(path).seed == 300
        first.kill()
        first.wait()
    with claimed(path, config(seed=1), resume=False):
        assert read_config(path).seed == 1


def test_a_refused_start_leaves_nothing_where_nothing_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-1")
    with pytest.raises(UserError, match="holds the value of a secret"):
        with claimed(tmp_path / "run", config(user={"api_base": "http://host/sk-planted-1"}), resume=False):
            pass
    assert not (tmp_path / "run").exists()
    with claimed(tmp_path / "run", config(), resume=False) as claim:
        claim.withdraw()
    assert not (tmp_path / "run").exists()


def test_what_is_left_to_a_job_is_the_jobs_until_it_has_opened_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with claimed(path, config(), resume=False) as claim:
        with pytest.raises(ConnectionError), claim.left_to("tau2rl-eval-0 at http://head:8265"):
            raise ConnectionError
    with claimed(path, config(), resume=False) as claim, claim.left_to("tau2rl-eval-1 at http://head:8265"):
        pass
    for _ in range(2):
        with pytest.raises(UserError, match="job tau2rl-eval-1 at http://head:8265 was submitted") as caught:
            with claimed(path, config(seed=1), resume=True):
                pass
        assert str(path / "logs" / "claim") in caught.value.hint
    with RunFolder.open(path) as folder:
        assert folder.config.seed == 300
    with claimed(path, config(seed=1), resume=False) as claim:
        assert not claim.new


def test_a_job_that_has_ended_before_it_opened_the_folder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with claimed(path, config(), resume=False) as claim, claim.left_to("tau2rl-eval-1 at http://head:8265"):
        pass
    asked: list[tuple[str, str]] = []

    def has_ended(job: str, address: str) -> bool:
        asked.append((job, address))
        return len(asked) == 2

    with pytest.raises(UserError, match="job tau2rl-eval-1 at http://head:8265 was submitted"):
        with claimed(path, config(seed=1), resume=False, has_ended=has_ended):
            pass
    with claimed(path, config(seed=1), resume=False, has_ended=has_ended):
        assert read_config(path).seed == 1
    assert asked == [("tau2rl-eval-1", "http://head:8265")] * 2
