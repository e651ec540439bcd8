"""Pinned here: why families are read by our own code and not by the library `renderers` (docs/models.md).

Each turn below is malformed and ok to `renderers` 0.1.12, or has a value that it reads otherwise than it was written. A case that
fails here is a reason less: the library may have become fit for use. Runs where `renderers` is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import HFTokenizer
from tau2rl.errors import MalformedTurn
from tau2rl.types import CallTool, ToolSchema
from tests.unit.chat.families import MODELS

renderers = pytest.importorskip("renderers", reason="the package renderers is not installed")
pytestmark = pytest.mark.slow
CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>",
    "</tool_response>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_pad|>",
)  # fmt: skip
PARAMETERS = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "urgent": {"type": "boolean"}, "note": {"type": ["integer", "null"]}},
    "required": ["text"],
}
TOOLS: tuple[ToolSchema, ...] = (
    {"type": "function", "function": {"name": "find", "description": "Find it.", "parameters": PARAMETERS}},
)
Models = tuple[Any, Any, NativeCodec]


def turn(inside: str, behind: str = "") -> str:
    return f"<tool_call>\n<function=find>\n{inside}</function>\n</tool_call>{behind}<|im_end|>"


def parameter(value: str, name: str = "text") -> str:
    return f"<parameter={name}>\n{value}\n</parameter>\n"


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """A tokenizer of the form that Qwen3.5's has, the library's renderer of it, and our codec."""
    from renderers.configs import Qwen35RendererConfig  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    folder = str(MODELS["qwen3.5"].save(tmp_path))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(CONTROL), special_tokens=True)
    return (
        tokenizer,
        renderers.create_renderer(tokenizer, Qwen35RendererConfig(enable_thinking=False)),
        NativeCodec(HFTokenizer(folder)),
    )


def calls(models: Models, text: str) -> list[tuple[Any, str]]:
    tokenizer, renderer, _ = models
    found = renderer.parse_response(tokenizer.encode(text, add_special_tokens=False), tools=list(TOOLS))
    return [(call.arguments, call.status.value) for call in found.tool_calls]


def parsed(models: Models, text: str) -> Any:
    return models[2].parse(HFTokenizer(models[0].name_or_path).encode(text), TOOLS)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (turn(parameter("#W1"), behind="\nI have cancelled it."), "#W1"),
        (turn(f"foo bar\n{parameter('#W1')}noise"), "#W1"),
        (turn(parameter("a") + parameter("b")), "b"),
        (turn("<parameter=text>\n#W1\n"), None),
    ],
    ids=["text behind a call", "text between parameters", "a parameter twice", "a parameter that is never closed"],
)
def test_a_malformed_turn_is_read_as_a_call(models: Models, text: str, read: str | None) -> None:
    assert calls(models, text) == [({} if read is None else {"text": read}, "ok")]
    with pytest.raises(MalformedTurn):
        parsed(models, text)


@pytest.mark.parametrize(
    ("name", "written", "meant", "read", "status"),
    [
        ("text", "a </parameter> b", "a </parameter> b", "a", "ok"),
        ("urgent", "True", True, "True", "invalid_json"),  # so Qwen3.5's template writes what JSON calls true
        ("urgent", "False", False, "False", "invalid_json"),
        ("note", "None", None, "None", "invalid_json"),
    ],
)
def test_a_value_comes_back_otherwise(models: Models, name: str, written: str, meant: Any, read: str, status: str) -> None:
    text = turn(parameter("x") + parameter(written, name)) if name != "text" else turn(parameter(written))
    given: dict[str, Any] = {} if name == "text" else {"text": "x"}
    assert parsed(models, text) == (CallTool(name="find", arguments={**given, name: meant}),)
    assert calls(models, text) == [({**given, name: read}, status)]


def test_the_checkpoints_own_template_is_not_asked(models: Models) -> None:
    tokenizer, renderer, _ = models
    tokenizer.chat_template = "{{ messages[0].content }} CHANGED"
    assert "CHANGED" not in tokenizer.decode(renderer.render_ids([{"role": "user", "content": "hi"}]))
