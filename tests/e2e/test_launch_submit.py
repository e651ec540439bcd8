"""From a config to an exit code, through a real Ray job.

- a run carried out as a job leaves the same report as one in this process, and its exit code is the job's
- a stop at a cap says so, and does not point to a log as a failure does
- the job finds relative paths where the command was given
- SIGTERM to the command ends the job, the head and the command: 130, and the run can be continued
- a job that died before it opened its folder gives the name of its run back; one that lives does not
- `--detach` submits and returns, with `--json` the run, the job and its server; it needs a cluster that stays
- a head of our own that ends before it takes the run is said to have, and the run's name is free
- wrong requests are refused before anything is started
- no secret gets into the run folder
- from an environment, a folder and a config file whose paths have a space, a run is a job like any other
- whatever the locale, the command, its job and the job's workers read tau2's policies as UTF-8
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tau2rl.config import EvalConfig, build, dump
from tau2rl.env.domain import domain
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.launch import jobs, supervisor
from tau2rl.launch.ray_head import LocalHead
from tau2rl.launch.submit import submit
from tau2rl.runs.claim import claimed
from tau2rl.runs.folder import RunFolder
from tau2rl.runs.progress import ProgressEvent
from tau2rl.settings import child_environment

pytestmark = pytest.mark.e2e
SECRET = "sk-planted-for-the-job"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def head() -> Iterator[LocalHead]:
    with LocalHead() as running:
        yield running


def config(output: Path, **changes: Any) -> EvalConfig:
    small = {
        "tasks": {"domains": ["mock"], "split": "base", "limit": 2},
        "policy": {"kind": "gold"},
        "chat": {"protocol": "transcript"},
        "user": {"kind": "scripted"},
        "rollout": {"num_samples": 1, "concurrency": 2},
    }
    return build(EvalConfig, {"output": str(output), **small, **changes})


def carry_out(asked: EvalConfig) -> tuple[int, list[str], list[ProgressEvent]]:
    lines: list[str] = []
    events: list[ProgressEvent] = []
    return submit(asked, on_line=lines.append, on_progress=events.append), lines, events


def test_a_head_of_our_own_that_ends_before_it_takes_the_run_frees_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = jobs.connect

    def connect_and_end(*words: Any, alive: Any, **more: Any) -> jobs.JobServer:
        server = connect(*words, alive=alive, **more)
        alive.__self__.stop()  # the head itself: nobody answers at its address any more
        return server

    monkeypatch.setattr(jobs, "connect", connect_and_end)
    with pytest.raises(RunIncomplete, match="ended before it took the run\n\nhint: the same command begins again"):
        carry_out(config(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def scores(run: Path) -> object:
    report = json.loads((run / "report.json").read_text())
    return {key: report[key] for key in ("tasks", "attempts", "overall", "by_domain", "floor", "digest")}


def test_a_job_leaves_the_same_report_as_a_run_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    code, lines, events = carry_out(config(tmp_path / "job"))
    assert code == 0, lines
    assert [line for line in lines if "error" in line] == []
    assert (events[-1].done, events[-1].total) == (2, 2)
    code, _, events = carry_out(config(tmp_path / "here", launch={"inline": True}))
    assert code == 0
    assert (events[-1].done, events[-1].total) == (2, 2)
    assert scores(tmp_path / "job") == scores(tmp_path / "here")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 8
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


def test_a_stop_at_a_cap_is_no_failure_to_look_up(tmp_path: Path) -> None:
    code, lines, _ = carry_out(config(tmp_path / "run", budget={"max_hours": 1e-9}))
    assert code == 1 and any("stopped at the cap budget.max_hours" in line for line in lines), lines
    assert not any("job.log" in line for line in lines), lines


def test_paths_with_a_space(tmp_path: Path) -> None:
    place = tmp_path / "a folder, with $pace"
    place.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", place / "venv"], check=True)
    packages = next((place / "venv").glob("lib/*/site-packages"))
    (packages / "base.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in sys.path if path.endswith("site-packages"))
    )
    values = dump(config(place / "run", rollout={"num_samples": 1, "workers": 2}))
    (place / "eval.yaml").write_text(json.dumps(values))
    command = [place / "venv" / "bin" / "python", "-m", "tau2rl", "eval", "-c", "eval.yaml", "--json"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=child_environment(), timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["overall"]["pass@1"]["value"] == 1.0


def on_cluster(head: LocalHead, asked: EvalConfig, directory: Path) -> subprocess.CompletedProcess[str]:
    """Submit to the head as to any cluster: its address from the config, its token from where Ray's client looks for it."""
    token = head.headers["Authorization"].removeprefix("Bearer ")
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    command = [sys.executable, "-c", COMMAND, json.dumps(dump(asked))]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=directory)


def test_what_the_job_refuses_comes_back_as_2_in_its_words(head: LocalHead, tmp_path: Path) -> None:
    policy = {"kind": "local", "checkpoint": "/no/such/model"}  # files are the cluster's: nobody looks for them before the job
    asked = config(
        tmp_path / "run", policy=policy, chat={"protocol": "native", "tokenizer": "bytes"}, launch={"address": head.address}
    )
    done = on_cluster(head, asked, tmp_path)
    assert done.returncode == 2
    assert "`/no/such/model`" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_detached_run_goes_on_alone(head: LocalHead, tmp_path: Path) -> None:
    asked = config(Path("relative run"), launch={"address": head.address, "detach": True})
    done = on_cluster(head, asked, tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "ray job logs --follow" in done.stderr
    wait_until((tmp_path / "relative run" / "report.json").exists)


@pytest.mark.slow
def test_a_detached_job_that_died_before_it_began_gives_the_name_back(head: LocalHead, tmp_path: Path) -> None:
    asked = config(tmp_path / "run", launch={"address": head.address})
    server = jobs.connect(head.address, head.headers)
    sleeps, dies = jobs.new_id("sleeps"), jobs.new_id("dies")
    server.submit("sleep 60", sleeps)
    server.submit("exit 3", dies)
    wait_until(lambda: server.has_ended(dies))
    for job, code in ((sleeps, 1), (dies, 0)):
        with claimed(tmp_path / "run", asked, resume=False, has_ended=lambda *_: True) as claim:
            with claim.left_to(f"{job} at {head.address}"):
                pass
        done = on_cluster(head, asked, tmp_path)
        assert done.returncode == code, done.stderr
        assert ("has not opened its folder yet" in done.stderr) == (job == sleeps)
    assert (tmp_path / "run" / "report.json").exists()
    server.client.stop_job(sleeps)


def test_a_detached_run_is_named_in_json(head: LocalHead, tmp_path: Path) -> None:
    token = head.headers["Authorization"].removeprefix("Bearer ")
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    (tmp_path / "config.json").write_text(json.dumps(dump(config(tmp_path / "run"))))
    arguments = ["eval", "-c", "config.json", "--address", head.address, "--detach", "--json"]
    code = "import sys; from tau2rl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["run"], shown["address"]) == (str(tmp_path / "run"), head.address)
    assert shown["job"] in done.stderr
    wait_until((tmp_path / "run" / "report.json").exists)


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


COMMAND = """
import json, sys
from tau2rl.config import EvalConfig, build
from tau2rl.launch.submit import submit

def say(event):
    sys.stdout.write(f"{event.done}\\n")
    sys.stdout.flush()

def tell(line):
    sys.stderr.write(line + "\\n")

sys.exit(submit(build(EvalConfig, json.loads(sys.argv[1])), on_line=tell, on_progress=say))
"""


def test_sigterm_ends_the_job_the_head_and_the_command(tmp_path: Path) -> None:
    asked = config(tmp_path / "run", tasks={"domains": ["mock"], "split": "base"}, rollout={"num_samples": 500, "concurrency": 2})
    command = subprocess.Popen([sys.executable, "-c", COMMAND, json.dumps(dump(asked))], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    with command.stdout:
        for line in command.stdout:
            if int(line) > 0:
                break
        owned = supervisor.descendants(command.pid)
        command.send_signal(signal.SIGTERM)
        assert command.wait(120) == 130
    assert len(owned) > 10
    assert [process for process in owned if alive(process)] == []
    with RunFolder.open(RunFolder.create(tmp_path / "run", asked, resume=True)) as folder:
        assert list(folder.records())
        assert not folder.report.exists()
        assert "interrupted" in (tmp_path / "run" / "logs" / "session_1" / "job.log").read_text()


@pytest.mark.parametrize("launch", [{"detach": True}, {"detach": True, "inline": True, "address": "http://127.0.0.1:9"}])
def test_detach_needs_a_cluster_that_stays(tmp_path: Path, launch: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"needs a cluster that stays|launch\.detach has no effect while launch\.inline is true"):
        carry_out(config(tmp_path / "run", launch=launch))


def test_a_dead_address_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no Ray cluster answers"):
        carry_out(config(tmp_path / "run", launch={"address": "http://127.0.0.1:9"}))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"no Ray cluster answers at `127\.0\.0\.1:9`"):
        carry_out(config(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_exists_is_refused_before_a_head_is_started(tmp_path: Path) -> None:
    path = RunFolder.create(tmp_path / "run", config(tmp_path / "run"), resume=False)
    (path / "report.json").write_text("{}")
    before = supervisor.descendants(os.getpid())
    with pytest.raises(UserError, match="holds a run already"):
        carry_out(config(tmp_path / "run"))
    assert set(supervisor.descendants(os.getpid())) <= set(before)


@pytest.mark.parametrize(
    "where", [["--inline"], pytest.param(["--set", "rollout.workers=1"], marks=pytest.mark.slow)], ids=["inline", "job"]
)
def test_a_policy_is_read_as_utf8_whatever_the_locale(tmp_path: Path, where: list[str]) -> None:
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # Python 3.11 without its mercy
    small = ["--domains", "telecom", "--limit", "1", "--num-samples", "1", "--policy", "gold", "--protocol", "transcript"]
    command = [
        sys.executable,
        "-m",
        "tau2rl",
        "eval",
        *small,
        "--user-model",
        "scripted",
        "--output",
        str(tmp_path / "ü"),
        *where,
    ]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=240, env=child_environment(ascii_locale), check=False
    )
    assert done.returncode == 0, done.stderr
    environment = json.loads((tmp_path / "ü" / "environment.json").read_text("utf-8"))
    assert environment["identity"]["bench"]["data"]["telecom"]["policy"] == domain("telecom").hashes()["policy"]
