"""slime as a child process; pinned here:

- the variables of slime's job go on top of those that the job has; lists are joined, and only paths of keys are among them;
- no key is in a variable; the tracker's key is in a file of its owner alone;
- what plays the next rollout while this one is trained on is asked for, and never by `sft`, which would lose rows;
- the child's lines and code come back; an interruption ends it; a full disk is told when it has ended.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tau2rl.slime.process import (
    JOB_CONFIG,
    run_child,
    script,
    shared_variables,
    slime_environment,
    slime_variables,
    tracker_login,
)
from tests.slime_configs import load_slime


def test_variables_go_on_top_of_those_of_the_job() -> None:
    job = {"runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}, "config": {"x": 1}}, "metadata": {"job": "1"}}
    present = {
        "PYTHONPATH": "/theirs",
        "no_proxy": "10.0.0.1",
        "SLIME_HOST_IP": "10.0.0.5",
        "KEY": "sk",
        "TAU2RL_SECRETS_FILE": "/s",
        JOB_CONFIG: json.dumps(job),
    }
    made = slime_environment(present, shared_variables(present, {"PYTHONPATH": "/megatron:/slime", "A": "1"}))
    assert made["PYTHONPATH"] == "/megatron:/slime:/theirs"
    assert made["KEY"] == "sk"
    runtime = json.loads(made[JOB_CONFIG])
    assert runtime["metadata"] == {"job": "1"}
    assert runtime["runtime_env"] == {
        "config": {"x": 1},
        "env_vars": {
            "RAY_JOB_STOP_WAIT_TIME_S": "30",
            "PYTHONPATH": "/megatron:/slime:/theirs",
            "A": "1",
            "no_proxy": "127.0.0.1,localhost,10.0.0.5,10.0.0.1",  # slime's router and engines listen on 10.0.0.5
            "NO_PROXY": "127.0.0.1,localhost,10.0.0.5",
            "TAU2RL_SECRETS_FILE": "/s",
        },
    }


def test_the_trackers_key_is_in_a_file_of_its_owner_alone() -> None:
    with tracker_login("secret-key", base_url="https://wandb.example.org:8080") as login:
        file = Path(login["NETRC"])
        assert file.read_text() == "machine wandb.example.org\n  login user\n  password secret-key\n"
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert not file.parent.exists()
    with tracker_login(None) as login:
        assert login == {}


def test_the_next_rollout_is_played_meanwhile_where_that_is_asked_for() -> None:
    assert script(load_slime("8xh100/grpo.yaml")) == Path("/root/slime/train.py")
    assert script(load_slime("8xh100/grpo.yaml", "slime.overlap=true")) == Path("/root/slime/train_async.py")
    # Supervised training would lose a batch of rows with every `--resume`.
    assert script(load_slime("8xh100/sft.yaml")) == Path("/root/slime/train.py")


def test_no_key_is_in_the_variables_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    for config in (load_slime("8xh100/grpo-api-user.yaml"), load_slime("8xh100/sft.yaml")):
        made = slime_variables(config)
        assert made["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
        assert made["PYTHONPATH"].split(":")[:2] == ["/root/slime", "/root/Megatron-LM"]
        assert "sk-secret" not in str(made)


def child(code: str, on_line: Any, tmp_path: Path) -> int:
    return run_child([sys.executable, "-c", code], environment={}, on_line=on_line, cwd=tmp_path)


def test_a_child_gives_its_lines_and_its_code(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('one'); sys.stdout.flush(); print('two', file=sys.stderr); sys.exit(3)"
    assert child(code, lines.append, tmp_path) == 3
    assert lines == ["one", "two"]
    assert child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", lines.append, tmp_path) == -9


def test_an_interruption_ends_the_child(tmp_path: Path) -> None:
    ours = threading.get_ident()

    def on_line(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        signal.pthread_kill(ours, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        child("import os, time; print(os.getpid(), flush=True); time.sleep(600)", on_line, tmp_path)
    assert not (Path("/proc") / (tmp_path / "pid").read_text()).exists()


def test_a_full_disk_is_told_when_the_child_has_ended(tmp_path: Path) -> None:
    def full(_line: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        child("print('x' * 100_000); print('y'); open('ended', 'w')", full, tmp_path)
    assert (tmp_path / "ended").exists()
