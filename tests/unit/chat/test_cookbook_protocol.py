"""Pinned here:

- how the cookbook's chat looks: no greeting, results as user messages under their call, stop at `</tool_call>`;
- its system prompt: policy full or short, tools as indented JSON with `done` at the end;
- the published checkpoints' own prompt is taken byte for byte from a copy of their file, and from no other text;
- what we share with tau2 by value (`done`, the native system prompt) is what the installed tau2 has.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tau2rl.chat import make_codec, native
from tau2rl.chat.cookbook import DONE_TOOL, OUR_PROMPT, CookbookCodec, tools_text, upstream_domain, upstream_prompt
from tau2rl.chat.tokenizers import ByteTokenizer
from tau2rl.config import ChatConfig
from tau2rl.errors import UserError
from tau2rl.types import CallTool, Message, Opening, Say, ToolSchema
from tests.unit.chat.talk import FREE

BYTES = ByteTokenizer()
RETAIL: ToolSchema = {
    "type": "function",
    "function": {"name": "exchange_delivered_order_items", "description": "d", "parameters": {}},
}
OPENING = Opening(
    domain_policy="POLICY",
    messages=(Message(role="assistant", content="Hi!"), Message(role="user", content=" Help\nme ")),
    tools=(FREE,),
)
UPSTREAM_SHAPE = '''
COMPRESSED_POLICY_RETAIL = """Short {policy}."""
OTHER = f"{domain}"

def build(*, domain, policy, tools):
    tools_text = ""
    return f"""Format {{"a": 1}}
for {domain}: {policy}
{tools_text}!"""
'''


def after(prompt: list[int], longer: list[int]) -> str:
    return BYTES.decode(longer[len(prompt) :])


def test_the_chat_begins_with_the_users_first_message() -> None:
    text = BYTES.decode(CookbookCodec(BYTES).open(OPENING))
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_end|>\n<|im_start|>user\nHelp\nme<|im_end|>\n<|im_start|>assistant\n")
    assert "Hi!" not in text


def test_a_result_stands_under_its_call() -> None:
    codec = CookbookCodec(BYTES)
    completion = codec.write((CallTool(name="free", arguments={"id": "#W1", "n": [1, None], "ok": True}),))
    assert BYTES.decode(completion).endswith("</tool_call>")
    longer = codec.extend([], completion, [Message(role="tool", content='{"a": 1}\n')])
    result = "Tool result for free(id='#W1', n=[1, None], ok=True):\n{\"a\": 1}"
    assert after(completion, longer) == f"<|im_end|>\n<|im_start|>user\n{result}<|im_end|>\n<|im_start|>assistant\n"


def test_an_empty_answer_is_written_as_nothing_observed() -> None:
    codec = CookbookCodec(BYTES)
    completion = codec.write((Say(text="Hello."),))
    assert BYTES.decode(completion) == '<tool_call>\n{"name": "respond", "arguments": {"content": "Hello."}}\n</tool_call>'
    longer = codec.extend([], completion, [Message(role="user", content=" ")])
    assert after(completion, longer) == "<|im_end|>\n<|im_start|>user\n[no_observation]<|im_end|>\n<|im_start|>assistant\n"


def test_a_repair_request_follows_a_turn_that_cannot_be_read() -> None:
    longer = CookbookCodec(BYTES).extend([], BYTES.encode("Hello."), [Message(role="user", content="FORMAT ERROR")])
    assert BYTES.decode(longer) == "Hello.<|im_end|>\n<|im_start|>user\nFORMAT ERROR<|im_end|>\n<|im_start|>assistant\n"


def test_a_history_is_written_in_the_protocol() -> None:
    calls = (CallTool(name="free", arguments={"a": 1}), CallTool(name="free", arguments={"a": 2}))
    history = (
        Message(role="user", content="x"),
        Message(role="assistant", tool_calls=calls),
        Message(role="tool", content="r1"),
        Message(role="tool", content="r2"),
        Message(role="assistant", content="Done."),
        Message(role="user", content="y"),
    )
    text = BYTES.decode(CookbookCodec(BYTES).open(Opening(domain_policy="P", messages=history, tools=())))
    assert "Tool result for free(a=1):\nr1<|im_end|>" in text
    assert "Tool result for free(a=2):\nr2<|im_end|>" in text
    assert '<tool_call>\n{"name": "respond", "arguments": {"content": "Done."}}\n</tool_call><|im_end|>' in text


def test_sampling_stops_behind_the_call() -> None:
    codec = CookbookCodec(BYTES)
    assert codec.stop == ("</tool_call>",)
    assert codec.stop_token_ids == (257,)


def test_the_prompt_lists_the_tools_with_done_at_the_end() -> None:
    listed = json.loads(tools_text((FREE,)))
    assert [tool["name"] for tool in listed] == ["free", "done"]
    assert list(listed[0]) == ["name", "description", "parameters"]
    assert json.loads(tools_text((FREE, DONE_TOOL))) == listed
    assert tools_text((FREE,)).startswith('[\n  {\n    "name": "free",\n    "description": ')


def test_the_short_policy_takes_the_place_of_the_domains_own() -> None:
    full = OUR_PROMPT.text("POLICY", (RETAIL,), compressed=False)
    short = OUR_PROMPT.text("POLICY", (RETAIL,), compressed=True)
    assert "POLICY" in full
    assert "POLICY" not in short
    assert "# Retail policy (short form)" in short
    assert "POLICY" in OUR_PROMPT.text("POLICY", (FREE,), compressed=True)  # a domain without a short form


def test_the_config_chooses_the_short_policy() -> None:
    opening = Opening(domain_policy="POLICY", messages=OPENING.messages, tools=(RETAIL,))
    for choice, present in (("full", True), ("compressed", False)):
        codec = make_codec(ChatConfig.model_validate({"protocol": "cookbook", "tokenizer": "bytes", "policy_text": choice}))
        assert ("POLICY" in BYTES.decode(codec.open(opening))) is present


def test_the_checkpoints_own_prompt_comes_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "prompting.py"
    file.write_text(UPSTREAM_SHAPE)
    prompt = upstream_prompt(file, sha256=hashlib.sha256(UPSTREAM_SHAPE.encode()).hexdigest())
    tools = tools_text((RETAIL,))
    assert prompt.text("P {x}", (RETAIL,), compressed=False) == f'Format {{"a": 1}}\nfor retail: P {{x}}\n{tools}!'
    assert prompt.text("P {x}", (RETAIL,), compressed=True) == f'Format {{"a": 1}}\nfor retail: Short {{policy}}.\n{tools}!'


def test_another_text_is_not_taken_for_the_checkpoints_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompting.py"
    with pytest.raises(UserError, match="cannot read the cookbook's prompt"):
        upstream_prompt(file)
    file.write_text(UPSTREAM_SHAPE)
    with pytest.raises(UserError, match="is not the prompt that the checkpoints were trained with") as caught:
        make_codec(ChatConfig(protocol="cookbook", tokenizer="bytes", cookbook_prompt=file))
    assert "git clone" in caught.value.hint
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match="has no text with `domain`, `policy`, `tools_text`"):
        upstream_prompt(file, sha256=hashlib.sha256(b"x = 1\n").hexdigest())


def test_done_is_the_gyms_own_tool() -> None:
    pytest.importorskip("tau2")
    from tau2.environment.tool import as_tool
    from tau2.gym.gym_agent import done

    assert as_tool(done).openai_schema == DONE_TOOL


@pytest.mark.parametrize("domain", ["airline", "retail", "telecom", "mock"])
def test_a_domain_is_known_by_its_tools(domain: str) -> None:
    pytest.importorskip("tau2")
    from tau2.registry import registry

    assert upstream_domain([tool.openai_schema for tool in registry.get_env_constructor(domain)().get_tools()]) == domain


def test_the_native_system_prompt_is_tau2s() -> None:
    pytest.importorskip("tau2")
    from tau2.agent import llm_agent

    assert native.AGENT_INSTRUCTION == llm_agent.AGENT_INSTRUCTION
    assert native.SYSTEM_PROMPT == llm_agent.SYSTEM_PROMPT
    assert native.system_prompt("a {b}") == llm_agent.LLMAgent(tools=[], domain_policy="a {b}", llm="none").system_prompt
