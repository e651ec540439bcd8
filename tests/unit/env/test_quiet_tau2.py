"""tau2 is imported without litellm and without a word, pinned here, each time in a process of its own:

- a run that needs no model behind an API never loads litellm, from the tasks to the graded and scored episodes, nor does one
  whose user model our own client asks;
- whoever calls a model through tau2 all the same finds the real litellm;
- where litellm is there already, tau2 is imported as it is;
- a process that would read tau2's files in another encoding than UTF-8 is told so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tau2rl.settings import child_environment
from tests.stubs.openai import OpenAIStub

QUIET = "import sys\nimport tau2rl.env.quiet_tau2\n"
RUN = (
    "import sys\n"
    "from tau2rl.config import EvalConfig, load_config\n"
    "from tau2rl.launch import entry\n"
    "from tau2rl.runs.folder import RunFolder\n"
    "config = load_config(EvalConfig, None, sys.argv[1:])\n"
    "path = RunFolder.create(config.output, config, resume=False)\n"
    "assert entry.run(path, lambda event: None, say=print) == 0\n"
    "assert 'tau2.orchestrator.orchestrator' in sys.modules\n"
    "assert not [name for name in sys.modules if name.partition('.')[0] in ('litellm', 'openai')]\n"
)
CALL = (
    "from tau2.user.user_simulator import generate\n"
    "from tau2.data_model.message import UserMessage\n"
    "hello = [UserMessage(role='user', content='Hello?')]\n"
    "answer = generate('openai/any', hello, api_base=sys.argv[1], api_key='none', num_retries=0)\n"
    "assert answer.content == 'Hello!', answer\n"
    "assert answer.usage['prompt_tokens'] > 0, answer\n"
    "assert 'litellm' in sys.modules\n"
)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["scripted", "llm"])
def test_a_run_does_without_litellm(tmp_path: Path, kind: str) -> None:
    settings = ["tasks.domains=[mock]", "tasks.split=base", "tasks.limit=1", "policy.kind=gold", "chat.protocol=transcript"]
    settings += [f"user.kind={kind}", "rollout.num_samples=1", f"output={tmp_path / 'run'}"]

    def says(messages: object, tools: object) -> str:
        return "###STOP###" if "done" in str(messages) else "Please create `Important Meeting`."

    with OpenAIStub(answer=says) as server:
        asked = ["user.model=openai/any", f"user.api_base={server.api_base}"] if kind == "llm" else []
        done = python(RUN, *settings, *asked)
        assert done.returncode == 0, done.stderr
        assert bool(server.requests) is (kind == "llm")
    (record,) = (tmp_path / "run" / "episodes.jsonl").read_text("utf-8").splitlines()
    assert json.loads(record)["score"]["task"] == 1.0


def test_importing_tau2_says_nothing() -> None:
    done = python(QUIET + "import tau2.gym, tau2.registry\nassert 'litellm' not in sys.modules\n")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "DEBUG" not in done.stderr and "Registering" not in done.stderr


@pytest.mark.parametrize("first", ["", "import litellm\n"])
def test_a_call_through_tau2_finds_the_real_litellm(first: str) -> None:
    with OpenAIStub(answer=lambda messages, tools: "Hello!") as server:
        done = python(first + QUIET + CALL, server.api_base)
    assert done.returncode == 0, done.stderr


def test_where_litellm_is_loaded_tau2_is_imported_as_it_is() -> None:
    same = "from tau2.utils import llm_utils\nassert llm_utils.litellm is litellm and litellm.drop_params is True\n"
    done = python("import litellm\n" + QUIET + same)
    assert done.returncode == 0, done.stderr


def test_tau2_is_not_read_in_another_encoding() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import tau2rl.env.quiet_tau2"],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    )
    assert "UserError: this process reads files as " in done.stderr and "PYTHONUTF8=1" in done.stderr
