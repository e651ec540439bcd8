"""Pinned here: `tau2rl chat show` prints what was found, the exact prompt and a turn; `doctor --tokenizer` runs the proof."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.cli import app
from tests.unit.chat.families import MODELS

runner = CliRunner()


def shown(*arguments: str) -> dict[str, Any]:
    result = runner.invoke(app, ["chat", "show", "--json", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_built_in_tokenizer_is_shown() -> None:
    found = shown("--tokenizer", "bytes")
    assert (found["tool_format"], found["thinking"], found["append_only"]) == ("hermes", "off", True)
    assert found["prompt_ends_with"] == repr("<|im_start|>assistant\n")
    assert found["stop_tokens"] == [{"id": 257, "text": "<|im_end|>"}]
    assert found["prompt"].endswith("Hello.<|im_end|>\n<|im_start|>assistant\n")
    assert found["turn"].startswith('<tool_call>\n{"name": ')
    assert found["opening_tokens"]["mock"] == len(found["prompt_ids"]) < found["opening_tokens"]["retail"]


def test_a_task_is_shown_as_it_opens() -> None:
    found = shown("--tokenizer", "bytes", "--task", "retail/17")
    assert "You are Fatima Johnson in zipcode 78712." in found["prompt"]
    assert load_tokenizer("bytes").decode(found["prompt_ids"]) == found["prompt"]


def test_a_family_and_its_thinking_are_shown(tmp_path: Path) -> None:
    directory = str(MODELS["qwen3.5"].save(tmp_path))
    found = shown("--tokenizer", directory, "--set", "chat.thinking=per-turn")
    assert (found["tool_format"], found["append_only"]) == ("elements", False)
    assert found["prompt"].endswith("<think>\n")
    assert found["turn"].startswith("What I think.\n</think>\n\n<tool_call>\n<function=")
    text = runner.invoke(app, ["chat", "show", "--tokenizer", directory]).stdout
    assert "elements" in text and "--- prompt (" in text and "<think>\n\n</think>" in text


def test_what_cannot_be_shown_is_a_mistake_with_a_hint(tmp_path: Path) -> None:
    for arguments in (["--set", "chat.protocol=transcript"], ["--tokenizer", "bytes", "--task", "retail/99999"]):
        result = runner.invoke(app, ["chat", "show", *arguments])
        assert result.exit_code == 2 and "hint:" in result.output, result.output


SPOILT = {
    "no way to turn thinking off": (
        "{% if enable_thinking is false %}{{ raise_exception('Disabling thinking is not supported.') }}{% endif %}",
        "its model always thinks: Disabling thinking is not supported.",
        "hint: chat.thinking=keep lets it",
    ),
    "a complaint of its own": ("{{ raise_exception('Not like this.') }}", "Not like this.", "a codec of your own"),
    "a fault in it": ("{{ 1 // messages | length // 10 ** 9 % 0 }}", "it cannot write a conversation", "a codec of your own"),
    "no end to itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it cannot write", "a codec of your own"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_template_that_complains_or_fails_is_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    start, reason, hint = SPOILT[name]
    model = MODELS["qwen3.8"]
    directory = str(replace(model, template=start + model.template).save(tmp_path))
    result = runner.invoke(app, ["chat", "show", "--tokenizer", directory])
    assert result.exit_code == 2 and reason in result.output and hint in result.output, result.output
    kept = runner.invoke(app, ["chat", "show", "--tokenizer", directory, "--set", "chat.thinking=keep"])
    assert kept.exit_code == (0 if "thinking" in name else 2), kept.output


def test_doctor_proves_a_template(tmp_path: Path) -> None:
    directory = str(MODELS["gpt-oss"].save(tmp_path))
    result = runner.invoke(app, ["doctor", "--tokenizer", directory])
    assert result.exit_code == 1 and "writes today's date" in result.stdout and "chat.date=" in result.stdout
    settings = ["--set", "chat.thinking=per-turn", "--set", "chat.date=2026-01-31", "--set", "policy.kind=gold"]
    result = runner.invoke(app, ["doctor", "--json", "--tokenizer", directory, *settings, "--user-model", "scripted"])
    check = next(c for c in json.loads(result.stdout)["checks"] if c["name"] == "chat template")
    assert check["state"] == "ok" and "harmony" in check["detail"]
