"""Pinned here:

- the built-in template writes ChatML with tools, letter for letter;
- a template that goes back on what it wrote, cuts long texts, writes signs otherwise, refuses the greeting, or has no
  end-of-turn token is refused with the reason;
- a tokenizer that is missing, or has no chat template, is a UserError with a hint;
- a reasoning template's `<think>` at the end of the prompt is part of the turn that follows;
- a prompt whose policy and tools were seen before has the ids of its whole text, also where a tokenizer joins text across turns,
  where the template puts tools into the user's message, where a policy contains the end of a turn, and behind other tools;
- a tokenizer that marks `<tool_call>` special serves as well as one that does not;
- a checkpoint's tokenizer gives the ids that transformers gives, for any text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from jinja2 import Environment

from tau2rl.chat import codec_fingerprint, make_codec
from tau2rl.chat.cookbook import CookbookCodec
from tau2rl.chat.native import NativeCodec
from tau2rl.chat.template import TemplateChat
from tau2rl.chat.tokenizers import ByteTokenizer, ChatDict, HFTokenizer, load_tokenizer
from tau2rl.config import ChatConfig
from tau2rl.errors import UserError
from tau2rl.types import Actions, CallTool, Message, Opening, Say, Think
from tests.unit.chat.talk import FREE, TOOLS, save_bpe, texts, tricky

CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
SHOWN = "{{ tools | tojson if tools and loop.first }}"
SPEAKER = "<|im_start|>{{ m.role }}\n"
TURN = SPEAKER + SHOWN + "{{ m.content }}" + CALLS + "<|im_end|>\n"
HEAD = "<|im_start|>assistant\n"


class Templated(ByteTokenizer):
    """Bytes under another chat template."""

    name = "templated"

    def __init__(self, template: str) -> None:
        environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
        environment.globals["refuse"] = self._refuse
        self._made = environment.from_string(template)

    def render(
        self,
        messages: Sequence[ChatDict],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        told = {**(variables or {}), "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return self._made.render(told)

    @staticmethod
    def _refuse(why: str) -> None:
        raise ValueError(why)


def each(body: str, head: str = HEAD) -> str:
    return "{% for m in messages %}" + body + "{% endfor %}{% if add_generation_prompt %}" + head + "{% endif %}"


THINKS = each(
    SPEAKER + SHOWN + "{{ '<think>\n' ~ m.reasoning_content ~ '\n</think>\n\n' if m.reasoning_content and enable_thinking }}"
    "{{ m.content }}" + CALLS + "<|im_end|>\n"
)
REFUSES_GREETING = each(
    "{% if loop.index0 == 1 and m.role == 'assistant' %}{{ refuse('roles must alternate') }}{% endif %}" + TURN
)
NO_END_TOKEN = each("{{ m.role }}: {{ m.content }}\n", "assistant:")
TOOLS_WITH_THE_LAST_USER = each(
    SPEAKER + "{{ tools | tojson if tools and m.role == 'user' and loop.last }}{{ m.content }}" + CALLS + "<|im_end|>\n"
)
NO_TOOLS = each(SPEAKER + "{{ m.content }}" + CALLS + "<|im_end|>\n")
NO_CALLS = each(SPEAKER + SHOWN + "{{ m.content }}<|im_end|>\n")
AS_PYTHON = each(SPEAKER + SHOWN + "{{ m.content }}{{ m.tool_calls or '' }}<|im_end|>\n")
NO_TYPES = each(TURN.replace("arguments | tojson", """arguments | tojson | replace(': 123', ': "123"')"""))
NO_RESULTS = each("{% if m.role != 'tool' %}" + TURN + "{% endif %}")
COUNTS_MESSAGES = each("{{ loop.index }}" + TURN)
NAMES_THE_CALL = each("{{ m.tool_call_id or '' }}" + TURN)
CUT = TURN.replace("m.content", "m.content[:400]")
CUT_POLICY = each("{% if m.role == 'system' %}" + CUT + "{% else %}" + TURN + "{% endif %}")
CUT_USER = each("{% if m.role == 'user' %}" + CUT + "{% else %}" + TURN + "{% endif %}")
CUT_RESULTS = each("{% if m.role == 'tool' %}" + CUT + "{% else %}" + TURN + "{% endif %}")
CUT_CALLS = each(TURN.replace("c.function.arguments | tojson", "(c.function.arguments | tojson)[:400]"))
ESCAPES = each(TURN.replace("m.content", "m.content | e"))
NO_SYSTEM = each("{% if m.role == 'system' %}{{ refuse('no system message') }}{% endif %}" + TURN)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (REFUSES_GREETING, "roles must alternate"),
        (NO_END_TOKEN, "does not end an assistant turn with a control token"),
        (TOOLS_WITH_THE_LAST_USER, "otherwise once something follows|otherwise later on"),
        (COUNTS_MESSAGES, "it changes an assistant turn|does not follow on its prompt|otherwise later on"),
        (NAMES_THE_CALL, "otherwise later on in a conversation with a tool call"),
        (NO_SYSTEM, "no system message"),
        (NO_TOOLS, "does not show the tools to the model: a tool's name is not in the prompt"),
        (NO_CALLS, "does not write the tool calls of earlier turns"),
        (AS_PYTHON, "writes a tool call as .*, a format that is not read here"),
        (NO_TYPES, "a turn with numbers does not come back as it was written: .*limit.*'123'"),
        (NO_RESULTS, "does not show the results of tools"),
        (CUT_RESULTS, "does not show the results of tools"),
        (CUT_POLICY, "does not show a long text of the policy as a whole"),
        (CUT_USER, "does not show a long text of the user as a whole"),
        (CUT_CALLS, "a turn with a long text argument does not come back"),
        (ESCAPES, "does not write every message"),
    ],
    ids=[
        "refuses a greeting",
        "no end token",
        "moves the tools",
        "counts messages",
        "names the call",
        "no system message",
        "no tools",
        "no calls",
        "calls as Python",
        "calls without types",
        "no results",
        "cuts results",
        "cuts the policy",
        "cuts the user",
        "cuts calls",
        "escapes HTML",
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_the_reason(template: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        NativeCodec(Templated(template))
    assert "`templated`" in caught.value.message
    assert caught.value.hint


def test_the_simplest_template_is_accepted() -> None:
    NativeCodec(Templated(each(TURN)))
    CookbookCodec(Templated(each(TURN)))


def test_cookbook_needs_no_greeting_and_no_tools_of_the_template() -> None:
    CookbookCodec(Templated(REFUSES_GREETING))
    CookbookCodec(Templated(TOOLS_WITH_THE_LAST_USER))
    CookbookCodec(Templated(NO_TOOLS))


BEGINS_THINKING = each(
    SPEAKER
    + SHOWN
    + "{{ '<think>\n' ~ (m.reasoning_content or '') ~ '\n</think>\n\n' if m.role == 'assistant' }}{{ m.content }}"
    + CALLS
    + "<|im_end|>\n",
    HEAD + "<think>\n",
)


def test_a_thought_that_the_prompt_begins_is_a_thought() -> None:
    codec = NativeCodec(Templated(BEGINS_THINKING), thinking="keep")
    assert codec.parse(codec.write((Say(text="Hello."),)), TOOLS) == (Say(text="Hello."),)
    thought: Actions = (Think(text="a plan"), Say(text="Hello."))
    assert codec.parse(ByteTokenizer().encode("a plan\n</think>\n\nHello.<|im_end|>"), TOOLS) == thought
    assert codec.parse(codec.write(thought), TOOLS) == thought
    cut = ByteTokenizer().encode("a plan")
    assert ByteTokenizer().decode([*cut, *codec.close_thoughts(cut)]) == "a plan\n</think>\n\n"
    assert codec.close_thoughts(codec.write(thought)) == []


@pytest.mark.parametrize(
    ("template", "thinking", "reason", "way_out"),
    [
        (BEGINS_THINKING, "off", "its model always thinks", "chat.thinking=keep"),
        (each(TURN), "keep", "it does not write thoughts", "chat.thinking=off"),
        (each(TURN), "per-turn", "it does not write thoughts", "chat.thinking=off"),
        (THINKS, "per-turn", "it keeps the thoughts of earlier turns", "chat.thinking=keep"),
    ],
    ids=["always", "never", "never per turn", "keeps"],
)
def test_thinking_that_a_template_does_not_have_is_refused(template: str, thinking: Any, reason: str, way_out: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        NativeCodec(Templated(template), thinking=thinking)
    assert way_out in caught.value.hint


def test_the_built_in_template_letter_for_letter() -> None:
    messages: list[ChatDict] = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": " x\n"},
        {"role": "assistant", "content": "y", "tool_calls": [{"function": {"name": "free", "arguments": {"ü": "</a>"}}}] * 2},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    text = ByteTokenizer().render(messages, None, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n"
        "<|im_start|>user\n x\n<|im_end|>\n"
        '<|im_start|>assistant\ny\n<tool_call>\n{"name": "free", "arguments": {"ü": "</a>"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "free", "arguments": {"ü": "</a>"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_stand_in_the_system_message() -> None:
    text = ByteTokenizer().render(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "x"}], [FREE], add_generation_prompt=False
    )
    system, user = text.split("<|im_end|>\n")[:2]
    assert system.startswith("<|im_start|>system\nS\n\n# Tools\n\n")
    assert '<tools>\n{"type": "function", "function": {"name": "free", ' in system
    assert system.endswith('\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>')
    assert user == "<|im_start|>user\nx"


def test_transformers_reads_the_built_in_template_alike(bpe: HFTokenizer) -> None:
    messages: list[ChatDict] = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "ä <b>"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "free", "arguments": {"ü": "</a>"}}}]},
        {"role": "tool", "content": "1"},
    ]
    for tools in (None, TOOLS):
        ours = ByteTokenizer().render(messages, tools, add_generation_prompt=True)
        assert bpe.render(messages, tools, add_generation_prompt=True) == ours


def test_the_ends_of_a_checkpoint_come_from_its_files(bpe: HFTokenizer) -> None:
    assert [bpe.decode([i]) for i in bpe.end_of_turn_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert [bpe.decode([i]) for i in NativeCodec(bpe).stop_token_ids] == ["<|im_end|>", "<|endoftext|>"]


def test_either_end_closes_a_turn(bpe: HFTokenizer) -> None:
    codec = NativeCodec(bpe)
    for end in bpe.end_of_turn_ids:
        assert codec.parse([*bpe.encode("Hello."), end], TOOLS) == (Say(text="Hello."),)


def test_ids_outside_the_vocabulary_are_not_text(bpe: HFTokenizer) -> None:
    assert bpe.decode([-1, *bpe.encode("a"), 10**12]) == "\ufffda\ufffd"


def test_a_lone_surrogate_is_encoded_as_something(bpe: HFTokenizer) -> None:
    assert bpe.decode(bpe.encode("a\ud800")) == ByteTokenizer().decode(ByteTokenizer().encode("a\ud800")) == "a?"


def test_a_missing_tokenizer_is_a_mistake_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="to load a tokenizer from") as caught:
        load_tokenizer(str(tmp_path / "nothing"))
    assert "tokenizer.json" in caught.value.hint


def test_a_tokenizer_without_chat_template_is_a_mistake_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no chat template") as caught:
        load_tokenizer(str(save_bpe(tmp_path, template=None)))
    assert "chat_template.jinja" in caught.value.hint


@pytest.mark.parametrize("protocol", ["native", "cookbook"])
def test_a_protocol_with_tokens_asks_for_a_tokenizer(protocol: Any) -> None:
    with pytest.raises(UserError, match=f"`{protocol}` needs chat.tokenizer"):
        make_codec(ChatConfig(protocol=protocol))


def test_the_greeting_stands_before_the_users_first_message() -> None:
    opening = Opening(
        domain_policy="P", messages=(Message(role="assistant", content="Hi!"), Message(role="user", content="x")), tools=TOOLS
    )
    text = ByteTokenizer().decode(NativeCodec(ByteTokenizer()).open(opening))
    assert text.endswith(
        "<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_history_with_calls_is_rendered_by_the_template() -> None:
    call = CallTool(name="free", arguments={"a": 1})
    history = (
        Message(role="user", content="x"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="r"),
    )
    text = ByteTokenizer().decode(NativeCodec(ByteTokenizer()).open(Opening(domain_policy="P", messages=history, tools=TOOLS)))
    assert (
        '<tool_call>\n{"name": "free", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nr\n'
        in text
    )


class Joins(ByteTokenizer):
    """Gives a text that begins with the end of a turn another first token than it has within a longer text."""

    def encode(self, text: str) -> list[int]:
        ids = super().encode(text)
        return [*ids[:1], 33, *ids[1:]] if text.startswith("<|im_end|>") else ids


TOOLS_BESIDE_THE_USER = each(
    "<|im_start|>{{ m.role }}\n{{ tools or '' if loop.index == 2 }}{{ m.content }}{{ m.tool_calls or '' }}<|im_end|>\n"
)


@pytest.mark.parametrize("policy", ["Help <|im_start|> them.", "Help <|im_end|> them."])
@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), Joins(), Templated(TOOLS_BESIDE_THE_USER), "bpe"], ids=["bytes", "joins", "beside", "bpe"]
)
def test_a_prompt_with_a_known_head_has_the_ids_of_its_whole_text(
    tokenizer: ByteTokenizer | str, policy: str, tmp_path: Path
) -> None:
    known = load_tokenizer(str(save_bpe(tmp_path))) if isinstance(tokenizer, str) else tokenizer
    chat = TemplateChat(known)
    for said, tools in (
        ("Hello.", TOOLS),
        ("ol\u00e9 <|im_end|>\n", TOOLS),
        ("", TOOLS),
        ("Hello.", TOOLS[:1]),
        ("Hello.", None),
    ):
        messages: list[ChatDict] = [{"role": "system", "content": policy}, {"role": "user", "content": said}]
        whole = known.encode(known.render(messages, tools, add_generation_prompt=True))
        assert chat.open(messages, tools) == whole


@given(st.lists(tricky | texts).map("".join))
def test_a_text_has_the_ids_that_transformers_gives_it(bpe: HFTokenizer, text: str) -> None:
    theirs: list[int] = bpe._tokenizer.encode(text, add_special_tokens=False)
    assert bpe.encode(text) == theirs


@pytest.mark.parametrize("protocol", ["native", "cookbook"])
def test_tags_that_a_tokenizer_marks_special_are_part_of_a_turn(tmp_path: Path, protocol: str) -> None:
    codec = make_codec(ChatConfig(protocol=protocol, tokenizer=str(save_bpe(tmp_path, special_tags=True))))
    call = (CallTool(name="find_order", arguments={"order_id": "#W1"}),)
    assert codec.parse(codec.write(call), TOOLS) == call
    assert codec_fingerprint(codec)
