"""Pinned here: an evaluation against a server whose model speaks its family's own format, for every family and way to think.

- a faultless model solves its task: 1.000 on mock and on retail;
- a broken call, an unknown tool and a wrong argument are named, and the episode goes on to its right end;
- no thought reaches the user simulator, a tool or tau2's trajectory;
- a checkpoint whose template shows no tools is refused, by every stage's front door, before anything is sampled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tau2rl.chat.tokenizers import HFTokenizer
from tau2rl.cli import app
from tau2rl.config import EvalConfig, TasksConfig, build
from tau2rl.env.tasks import gold_script, select
from tau2rl.recipes.eval import run as evaluate
from tau2rl.runs.folder import RunFolder
from tau2rl.types import Actions, CallTool, Episode, MalformedKind as K, Think, Thinking
from tests.stubs.sglang import SGLangStub
from tests.unit.chat.families import MODELS, PAIRS, Model

SECRET = "The secret thought is 4711."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: model.save(tmp_path_factory.mktemp(name)) for name, model in MODELS.items()}


def play(tmp_path: Path, model: Model, tokenizer: Path, thinking: Thinking, task: str, turns: list[str]) -> Episode:
    """The episode that a server plays which samples these turns, one after the other."""
    reads, script = HFTokenizer(str(tokenizer)), iter(turns)
    chat = {"tokenizer": str(tokenizer), "thinking": thinking, "date": model.dates and model.dates.isoformat()}
    with SGLangStub(answer=lambda ids, params: reads.encode(next(script)), context=10**7) as server:
        config = build(
            EvalConfig,
            {
                "tasks": {"domains": [task.partition("/")[0]], "split": "base", "ids": [task]},
                "policy": {"url": server.url, "retries": 0, "sampling": {"max_tokens": 100_000}},
                "chat": chat,
                "user": {"kind": "scripted"},
                "limits": {"context_tokens": 1_000_000, "repairs": 3},
                "rollout": {"num_samples": 1, "retries": 0, "concurrency": 1},
            },
        )
        with RunFolder.open(RunFolder.create(tmp_path / "run", config, resume=False)) as run:
            evaluate(config, run, lambda event: None)
            (record,) = run.records()
            return record.episode


def faultless(task: str, thinking: Thinking) -> list[Actions]:
    ref = select(build(TasksConfig, {"domains": [task.partition("/")[0]], "ids": [task], "split": "base"}))[0]
    thought: Actions = (Think(text=SECRET),) if thinking != "off" else ()
    return [(*thought, *actions) for actions in gold_script(ref)]


def texts_of(episode: Episode) -> Iterator[str]:
    yield json.dumps(episode.trajectory, ensure_ascii=False)
    yield from (message.content for message in episode.messages)


FIRST = [(name, model.thinks[0]) for name, model in MODELS.items()]
RETAIL = [pytest.param("retail/17", pair, marks=[] if pair in FIRST else pytest.mark.slow) for pair in PAIRS]


@pytest.mark.parametrize(("task", "pair"), [*(("mock/create_task_1", pair) for pair in PAIRS), *RETAIL])
def test_a_faultless_model_solves_its_task(tmp_path: Path, pair: tuple[str, Thinking], task: str, saved: dict[str, Path]) -> None:
    model = MODELS[pair[0]]
    episode = play(tmp_path, model, saved[pair[0]], pair[1], task, [model.turn(a) for a in faultless(task, pair[1])])
    assert episode.grade and episode.grade.reward == 1.0
    assert all(turn.malformed is None for turn in episode.turns)
    assert not any(SECRET in text for text in texts_of(episode))
    thoughts = [a.text for turn in episode.turns for a in turn.actions if isinstance(a, Think)]
    assert thoughts == [SECRET for _ in episode.turns if pair[1] != "off"]


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_wrong_turns_are_named(tmp_path: Path, pair: tuple[str, Thinking], saved: dict[str, Path]) -> None:
    model, task = MODELS[pair[0]], "mock/create_task_1"
    thought: Actions = (Think(text=SECRET),) if pair[1] != "off" else ()
    right = faultless(task, pair[1])
    call = next(a for a in right[0] if isinstance(a, CallTool))
    whole = model.turn((*thought, call))
    broken = whole.removesuffix(model.call_end)[:-8] + model.call_end
    unknown = model.turn((*thought, CallTool(name="no_such_tool", arguments={})))
    wrong = model.turn((*thought, CallTool(name=call.name, arguments={**call.arguments, "colour": "red"})))
    turns = [broken, unknown, wrong, *(model.turn(a) for a in right)]
    episode = play(tmp_path, model, saved[pair[0]], pair[1], task, turns)
    named = [turn.malformed for turn in episode.turns]
    assert named[0] in (K.BAD_JSON, K.NO_CLOSE_TAG), named
    assert named[1:] == [K.UNKNOWN_TOOL, K.WRONG_ARGUMENTS, *[None for _ in right]]
    assert not any(SECRET in text for text in texts_of(episode))
    assert episode.grade and episode.grade.reward == 1.0


NO_TOOLS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}<|im_end|>\n{% endfor %}"
DOORS: dict[str, list[str]] = {
    "eval": ["eval", "--url", "http://127.0.0.1:9", "--user-model", "scripted", "--domains", "mock", "--task-split", "base"],
    "seed": ["seed", "--protocol", "native", "--domains", "mock", "--task-split", "synth-train"],
    "rft-filter": ["rft-filter", "--url", "http://127.0.0.1:9", "--user-model", "scripted", "--domains", "mock"],
    "doctor": ["doctor"],
    "chat show": ["chat", "show"],
}


@pytest.mark.parametrize("door", DOORS)
def test_a_template_without_tools_is_refused_at_every_door(tmp_path: Path, door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = Model(NO_TOOLS + "{{ '<|im_start|>assistant\n' if add_generation_prompt }}", "none", str)
    stage = [] if door in ("doctor", "chat show") else ["--inline", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*DOORS[door], "--tokenizer", str(model.save(tmp_path / "t")), *stage])
    assert result.exit_code == (1 if door == "doctor" else 2), result.output
    assert "does not show the tools to the model" in result.output
    assert "chat.protocol=cookbook" in result.output


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_slimes_preflight_and_the_local_backend_refuse_it(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tau2rl.config import GrpoConfig, SftConfig
    from tau2rl.slime.preflight import issues_of

    monkeypatch.chdir(tmp_path)
    template = NO_TOOLS + "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    directory = Model(template, "none", str).save(tmp_path / "t")
    files = {"data": {"files": ["rows.jsonl"], "val_fraction": 0}} if stage == "sft" else {}
    settings = {"backend": "slime", "model": {"init": str(directory)}, **files}
    config = build(SftConfig, settings) if stage == "sft" else build(GrpoConfig, settings)
    assert any("does not show the tools" in issue.message and issue.kind == "error" for issue in issues_of(config))

    rows = {
        "sft": ["--data", "rows.jsonl"],
        "grpo": ["--domains", "mock", "--task-split", "synth-train", "--user-model", "scripted"],
    }[stage]
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = LlamaConfig(
        vocab_size=300, num_key_value_heads=2, max_position_embeddings=32768, **sizes
    )  # holds the longest episode
    LlamaForCausalLM(shape).save_pretrained(directory)
    result = CliRunner().invoke(app, [stage, "--model", str(directory), *rows, "--inline", "--output", str(tmp_path / "out")])
    assert result.exit_code == 2 and "does not show the tools" in result.output, result.output
