"""A server that quotes the headers it was sent; through the command line, with a real litellm; pinned:

- a key reaches no file of the run, no log and no terminal, raw, as JSON, in a URL or in base64, whoever's key it is: a provider
  that litellm knows, a variable that `api_key_env` names, the secrets file, the environment
- what is no key stays readable: short and common values are not replaced
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from tau2rl.settings import child_environment
from tests.stubs.echo import EchoStub

pytestmark = pytest.mark.e2e
KEY = "sk-Planted+in/the=environment-0123456789"
SMALL = ["--domains", "mock", "--task-split", "base", "--limit", "1", "--num-samples", "1", "--concurrency", "1", "--inline"]
QUICK = ["--set", "rollout.retries=0"]


def traces_of(key: str) -> list[str]:
    """What of a key would be found where it was not replaced, however it is spelled."""
    middles = [base64.b64encode(b" " * before + key.encode()).decode()[8:32] for before in range(3)]
    return [key[:16], key[-16:], quote(key, safe="")[:16], *middles]


def evaluate(output: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "tau2rl", "eval", *SMALL, *QUICK, "--output", str(output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=child_environment(environment), check=False)
    return done.returncode, done.stdout + done.stderr


def nowhere(key: str, output: Path, said: str) -> None:
    files = {str(file): file.read_text(errors="replace") for file in output.rglob("*") if file.is_file()}
    assert not [name for name, text in {**files, "terminal": said}.items() for trace in traces_of(key) if trace in text]


@pytest.mark.parametrize(
    ("model", "variable"),
    [
        ("deepseek/stub", "DEEPSEEK_API_KEY"),
        pytest.param("mistral/stub", "MISTRAL_API_KEY", marks=pytest.mark.slow),
        pytest.param("groq/stub", "GROQ_API_KEY", marks=pytest.mark.slow),
    ],
)
def test_a_key_of_any_provider_is_nowhere(tmp_path: Path, model: str, variable: str) -> None:
    with EchoStub(well=1) as server:  # what is asked before the first episode
        user = [
            "--policy",
            "gold",
            "--protocol",
            "transcript",
            "--user-model",
            model,
            "--set",
            f"user.api_base={server.api_base}",
            "--set",
            f"user.api_key_env={variable}",
        ]
        code, said = evaluate(tmp_path / "run", *user, **{variable: KEY})
        assert any(KEY in str(request.headers) for request in server.requests), said  # it was sent, and came back
    assert code == 1, said
    assert f"[{variable}]" in (tmp_path / "run" / "failures.jsonl").read_text()
    shown = json.loads((tmp_path / "run" / "report.json").read_text())["failures"][0]["message"]
    assert f"no: [{variable}"[:8] in shown  # a long message is cut
    assert f"[{variable}]" in (tmp_path / "run" / "logs" / "latest" / "job.log").read_text()
    nowhere(KEY, tmp_path, said)


@pytest.mark.parametrize("status", [401, 500])
def test_a_key_with_a_name_of_its_own_is_nowhere(tmp_path: Path, status: int) -> None:
    (tmp_path / "keys").write_text(f"LAB_GATEWAY={KEY}\n")
    (tmp_path / "keys").chmod(0o600)
    with EchoStub(status=status) as server:
        agent = ["--policy", "api", "--protocol", "transcript", "--model", "openai/stub", "--user-model", "scripted"]
        named = ["--set", "policy.api_key_env=LAB_GATEWAY", "--set", f"policy.api_base={server.api_base}"]
        code, said = evaluate(tmp_path / "run", *agent, *named, TAU2RL_SECRETS_FILE=str(tmp_path / "keys"))
        assert any(KEY in str(request.headers) for request in server.requests), said
    assert code in (1, 2), said
    assert "[LAB_GATEWAY]" in said
    nowhere(KEY, tmp_path / "run", said)


def test_a_word_that_stands_for_a_key_does_not_shred_what_is_said(tmp_path: Path) -> None:
    with EchoStub() as server:
        user = ["--user-model", "openai/stub", "--set", f"user.api_base={server.api_base}"]
        keys = {"DEEPSEEK_API_KEY": "test", "GROQ_API_KEY": "anything", "MISTRAL_API_KEY": "not-needed"}
        _, said = evaluate(tmp_path / "run", "--policy", "gold", "--protocol", "transcript", *user, **keys)
    assert "_API_KEY]" not in said
