"""litellm comes when it is used, pinned here, each time in a process of its own:

- a run that needs no model behind an API never loads it, from the tasks to the graded and scored episodes;
- a call of a model through tau2 loads it and goes through; whoever imports it finds what tau2 sets in it;
- where litellm is there already, tau2 is imported as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.stubs.openai import OpenAIStub

LATE = "import sys\nfrom tau2rl.env.lazy_litellm import put_off\nput_off(); put_off()\n"
AS_TAU2_SETS_IT = "assert litellm.drop_params is True and litellm.suppress_debug_info is True and litellm.cache is None\n"
SAME = """
import litellm.main
from tau2.utils import llm_utils
assert llm_utils.litellm is litellm and llm_utils.completion is litellm.completion
assert llm_utils.ModelResponse is litellm.main.ModelResponse
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_a_run_without_a_model_behind_an_api_does_without_it(tmp_path: Path) -> None:
    settings = ["tasks.domains=[mock]", "tasks.split=base", "tasks.limit=1", "policy.kind=gold", "chat.protocol=transcript"]
    settings += ["user.kind=scripted", "rollout.num_samples=1", f"output={tmp_path / 'run'}"]
    code = (
        "from tau2rl.config import EvalConfig, load\n"
        "from tau2rl.launch import entry\n"
        "from tau2rl.runs.folder import RunFolder\n"
        "config = load(EvalConfig, None, sys.argv[1:])\n"
        "path = RunFolder.create(config.output, config, resume=False)\n"
        "assert entry.run(path, lambda event: None, say=print) == 0\n"
        "assert 'tau2.orchestrator.orchestrator' in sys.modules\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('litellm', 'openai')]\n"
    )
    done = python(LATE + code, *settings)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "run" / "episodes.jsonl").read_text("utf-8").splitlines()
    assert json.loads(record)["score"]["task"] == 1.0


def test_a_call_through_tau2_loads_it() -> None:
    code = (
        "from tau2.user.user_simulator import generate\n"
        "from tau2.data_model.message import UserMessage\n"
        "assert 'litellm' not in sys.modules\n"
        "hello = [UserMessage(role='user', content='Hello?')]\n"
        "answer = generate('openai/any', hello, api_base=sys.argv[1], api_key='none', num_retries=0)\n"
        "assert answer.content == 'Hello!', answer\n"
        "import litellm\n"
    )
    with OpenAIStub(answer=lambda messages, tools: "Hello!") as server:
        done = python(LATE + code + AS_TAU2_SETS_IT + SAME, server.api_base)
    assert done.returncode == 0, done.stderr


def test_whoever_imports_it_finds_what_tau2_sets_in_it() -> None:
    done = python(LATE + "import tau2.utils.llm_utils\nimport litellm\n" + AS_TAU2_SETS_IT + SAME)
    assert done.returncode == 0, done.stderr


def test_where_it_is_loaded_tau2_is_imported_as_it_is() -> None:
    done = python(LATE + "import litellm\nfrom tau2.utils import llm_utils\n" + AS_TAU2_SETS_IT + SAME)
    assert done.returncode == 0, done.stderr
