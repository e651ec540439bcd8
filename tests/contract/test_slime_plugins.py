"""Code of the user's in slime's processes, found where the command found it. Pinned here:

- the rollout process, which looks for modules elsewhere, loads the codec, the reward term and the sink that the settings name
- its workers (real Ray actors) do too, and import the modules of `plugins`
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.slime.rollout import rollout_of
from tau2rl.slime.run_context import SlimeRun, custom_config
from tests.contract.slime_episodes import agent, play, settings, using
from tests.stubs.sglang import SGLangStub

pytestmark = pytest.mark.e2e
CODEC = """
from tau2rl.chat.native import NativeCodec

class Mine(NativeCodec):
    def __init__(self, tokenizer, *, greeting):
        super().__init__(tokenizer)
        self.greeting = greeting
"""
TERM = "def term(episode, grade):\n    return 0.5\n"
SINK = """
class Sink:
    def __init__(self, folder, config):
        self.file = folder / "sink.txt"

    def write(self, step, values):
        self.file.write_text(str(step))

    def close(self):
        pass
"""


@pytest.fixture
def cluster() -> Iterator[None]:
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def test_slimes_processes_load_what_the_settings_name(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "code" / "slime_code_of_mine"
    package.mkdir(parents=True)
    for name, text in {"codec": CODEC, "term": TERM, "sink": SINK}.items():
        (package / f"{name}.py").write_text(text)
    (package / "noted.py").write_text(f"import os\nopen({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} ')\n")
    config = settings(
        chat={"protocol": "slime_code_of_mine.codec:Mine", "options": {"greeting": "Hi"}, "tokenizer": "bytes"},
        reward={"preset": "outcome", "terms": [{"fn": "slime_code_of_mine.term:term", "weight": 0.1}]},
        tracking={"sinks": ["slime_code_of_mine.sink:Sink"]},
        plugins=["slime_code_of_mine.noted"],
        rollout={"workers": 1, "retries": 0},
    )
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "code")])  # of the process that starts slime
    args = SimpleNamespace(**custom_config(config, SlimeRun(folder=folder, shape=None)))
    monkeypatch.setattr(sys, "path", sys.path[:-1])  # of slime's
    with SGLangStub(answer=agent(NativeCodec(ByteTokenizer()))) as server:
        made = rollout_of(args)
        made.prepare(config, router=server.url)
        played = using(made, play)
    assert played.metadata.score is not None and played.metadata.reward is not None
    assert played.metadata.score == pytest.approx(played.metadata.reward + 0.05)
    made.log.end_rollout(0, [], 1.0)
    assert (folder / "sink.txt").read_text() == "1"
    pids = set((tmp_path / "pids").read_text().split())
    assert str(os.getpid()) in pids and len(pids) == 2
