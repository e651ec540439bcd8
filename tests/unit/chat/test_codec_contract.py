"""Pinned here, for every protocol over random conversations:

- the next prompt begins with the last prompt and the sampled ids, unchanged, whatever was sampled: broken UTF-8, ids outside
  the vocabulary, ids whose text re-tokenises otherwise, no end token;
- what follows shows every new message, in order;
- a prompt says the same as the template's own rendering of the whole conversation (`native`);
- `parse(write(actions)) == actions`, and `write` refuses what it cannot say;
- `parse` answers any ids whatever with actions or MalformedTurn.
"""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tau2rl.chat.native import NativeCodec, system_prompt
from tau2rl.chat.template import chat_dicts
from tau2rl.chat.tokenizers import ByteTokenizer, HFTokenizer, Tokenizer
from tau2rl.errors import MalformedTurn
from tau2rl.protocols import ChatCodec
from tau2rl.types import Actions, CallTool, Message, Opening, Say
from tests.unit.chat.talk import TOOLS, followers, native_actions, openings, single_actions, texts, tricky

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
any_id = st.one_of(st.integers(0, 360), st.integers(-3, 2**40))
sampled_ids = st.lists(any_id, max_size=20) | st.lists(
    st.sampled_from([0xC3, 0xA9, 0xFF, 0xE2, 0x82, 10, 257, 60, 123]), max_size=12
)


@some
@given(opening=openings, rounds=st.lists(st.tuples(single_actions | sampled_ids, st.booleans(), followers), max_size=4))
def test_the_next_prompt_begins_with_everything_so_far(
    codec: ChatCodec, opening: Opening, rounds: list[tuple[Actions | list[int], bool, list[Message]]]
) -> None:
    prompt = codec.open(opening)
    for turn, cut, new in rounds:
        completion = _written(codec, turn)
        completion = completion[:-1] if cut else completion
        longer = codec.extend(prompt, completion, new)
        assert longer[: len(prompt) + len(completion)] == [*prompt, *completion]
        assert len(longer) > len(prompt) + len(completion)
        assert codec.extend(tuple(prompt), tuple(completion), tuple(new)) == longer
        prompt = longer


def _written(codec: ChatCodec, turn: Actions | list[int]) -> list[int]:
    if isinstance(turn, list):
        return turn
    try:
        return codec.write(turn)
    except ValueError:  # a tag in plain text
        return [65, 66, 67]


@some
@given(
    opening=openings,
    completion=sampled_ids,
    names=st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1, max_size=4, unique=True),
)
def test_what_follows_shows_every_new_message_in_order(
    codec: ChatCodec, bpe: HFTokenizer, opening: Opening, completion: list[int], names: list[str]
) -> None:
    prompt = codec.open(opening)
    new = [Message(role="tool", content=f"{name}: ü") for name in names]
    suffix = codec.extend(prompt, completion, new)[len(prompt) + len(completion) :]
    readings = [tokenizer.decode(suffix) for tokenizer in (ByteTokenizer(), bpe)]
    assert any(_in_order(text, [f"{name}: " for name in names]) for text in readings)


def _in_order(text: str, wanted: list[str]) -> bool:
    places = [text.find(word) for word in wanted]
    return -1 not in places and places == sorted(places)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@some
@given(
    opening=openings,
    rounds=st.lists(st.tuples(native_actions, st.lists(texts, min_size=3, max_size=3), st.booleans()), max_size=4),
)
def test_a_native_prompt_says_what_the_template_says(
    name: str, bpe: HFTokenizer, codecs: dict[str, ChatCodec], opening: Opening, rounds: list[tuple[Actions, list[str], bool]]
) -> None:
    tokenizer: Tokenizer = ByteTokenizer() if name == "bytes" else bpe
    codec = codecs[f"native-{name}"]
    prompt = codec.open(opening)
    messages = [Message(role="system", content=system_prompt(opening.domain_policy)), *opening.messages]
    for actions, contents, cut in rounds:
        said = Message.of(actions)
        role = "tool" if said.tool_calls else "user"
        new = [Message(role=role, content=text) for text in contents[: len(said.tool_calls) or 1]]
        written = tokenizer.encode(_as_template_writes(tokenizer, said))
        prompt = codec.extend(prompt, written[:-1] if cut else written, new)
        messages += [said, *new]
    whole = tokenizer.render(chat_dicts(messages), TOOLS, add_generation_prompt=True)
    if name == "bytes":
        assert tokenizer.decode(prompt) == whole
    else:
        assert tokenizer.decode(prompt) == tokenizer.decode(tokenizer.encode(whole))


def _as_template_writes(tokenizer: Tokenizer, said: Message) -> str:
    before = tokenizer.render([{"role": "user", "content": "x"}], None, add_generation_prompt=True)
    after = tokenizer.render([{"role": "user", "content": "x"}, *chat_dicts([said])], None, add_generation_prompt=False)
    assert after.startswith(before)
    return after[len(before) :].removesuffix("\n")


@some
@given(actions=native_actions)
@pytest.mark.parametrize("name", ["native-bytes", "native-bpe", "transcript"])
def test_text_and_calls_read_back_as_they_were_written(name: str, codecs: dict[str, ChatCodec], actions: Actions) -> None:
    assert codecs[name].parse(codecs[name].write(actions), TOOLS) == actions


@some
@given(actions=single_actions)
@pytest.mark.parametrize("name", ["cookbook-bytes", "cookbook-bpe", "transcript"])
def test_one_action_reads_back_whatever_its_text_is(name: str, codecs: dict[str, ChatCodec], actions: Actions) -> None:
    assert codecs[name].parse(codecs[name].write(actions), TOOLS) == actions


@some
@given(text=tricky)
@pytest.mark.parametrize("name", ["native-bytes", "native-bpe"])
def test_plain_text_reads_back_or_is_refused(name: str, codecs: dict[str, ChatCodec], text: str) -> None:
    codec = codecs[name]
    try:
        written = codec.write((Say(text=text),))
    except ValueError:
        unsayable = any(tag in text for tag in ("<tool_call>", "</tool_call>", "<|im_end|>", "<|im_start|>")) or not text.strip()
        assert unsayable or "<think>" in text or "</think>" in text or unicodedata.normalize("NFC", text) != text
    else:
        assert codec.parse(written, TOOLS) == (Say(text=text),)


@pytest.mark.parametrize(
    "actions",
    [
        (),
        (Say(text=" "),),
        (Say(text="a"), Say(text="b")),
        (CallTool(name="free", arguments={}), Say(text="late")),
        (CallTool(name="free", arguments={"x": float("nan")}),),
    ],
    ids=["nothing", "blank", "two texts", "text behind a call", "not a number"],
)
def test_write_refuses_what_no_turn_can_say(codec: ChatCodec, actions: Actions) -> None:
    with pytest.raises(ValueError, match=r"no turn that performs|not JSON compliant"):
        codec.write(actions)


def test_a_call_without_arguments_reads_back(codec: ChatCodec) -> None:
    actions = (CallTool(name="free", arguments={}),)
    assert codec.parse(codec.write(actions), TOOLS) == actions


def test_a_written_turn_ends_where_the_policy_would_stop(codec: ChatCodec, bpe: HFTokenizer) -> None:
    written = codec.write((CallTool(name="free", arguments={}),))
    ends = any(tokenizer.decode(written).endswith(codec.stop) for tokenizer in (ByteTokenizer(), bpe)) if codec.stop else False
    assert ends or written[-1] in codec.stop_token_ids


pieces = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "free", "arguments": {}}', '{"name":', '"respond"', "[", "{",
     "}", "NaN", "1e999", '"', "\\", "\n", " ", "x", '{"role": "assistant", "content": "x", "tool_calls": ', "[1]}", "\ud800",
     "\\ud800", "<|im_end|>"]
)  # fmt: skip


@settings(some, max_examples=150)
@given(ids=sampled_ids | st.lists(st.integers(), max_size=8))
def test_any_ids_are_actions_or_a_malformed_turn(codec: ChatCodec, ids: list[int]) -> None:
    _actions_or_malformed(codec, ids)


@settings(some, max_examples=150)
@given(parts=st.lists(pieces, max_size=12), end=st.booleans())
def test_any_mixture_of_tags_and_json_is_actions_or_a_malformed_turn(
    codec: ChatCodec, bpe: HFTokenizer, parts: list[str], end: bool
) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode("".join(parts))
        _actions_or_malformed(codec, [*ids, *codec.stop_token_ids[:1]] if end else ids)


def _actions_or_malformed(codec: ChatCodec, ids: list[int]) -> None:
    try:
        actions = codec.parse(ids, TOOLS)
    except MalformedTurn as error:
        assert error.message
        assert len(error.message) < 400
    else:
        assert actions
        json.dumps([action.arguments if isinstance(action, CallTool) else action.text for action in actions], allow_nan=False)


def test_sampled_ids_stay_though_their_text_has_other_ids(bpe: HFTokenizer) -> None:
    codec = NativeCodec(bpe)
    prompt = codec.open(Opening(domain_policy="P", messages=(Message(role="user", content="Hi"),), tools=TOOLS))
    letter_by_letter = [i for letter in "The order is pending" for i in bpe.encode(letter)]
    assert bpe.decode(letter_by_letter) == "The order is pending"
    assert bpe.encode("The order is pending") != letter_by_letter
    longer = codec.extend(prompt, letter_by_letter, [Message(role="user", content="Thanks")])
    assert longer[len(prompt) : len(prompt) + len(letter_by_letter)] == letter_by_letter
    assert (
        bpe.decode(longer[len(prompt) + len(letter_by_letter) :])
        == "<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_end_token_is_added_only_where_the_turn_has_none() -> None:
    codec = NativeCodec(ByteTokenizer())
    new = [Message(role="user", content="y")]
    end = codec.stop_token_ids[0]
    assert codec.extend([1], [65, end], new) == codec.extend([1], [65], new)
    assert codec.extend([1], [65], new).count(end) == 2  # of the turn, of the user's message


def test_consecutive_tool_results_share_one_user_message() -> None:
    codec, tokenizer = NativeCodec(ByteTokenizer()), ByteTokenizer()
    text = tokenizer.decode(codec.extend([], [], [Message(role="tool", content="a\nb"), Message(role="tool", content="")]))
    responses = "<tool_response>\na\nb\n</tool_response>\n<tool_response>\n\n</tool_response>"
    assert text == f"<|im_end|>\n<|im_start|>user\n{responses}<|im_end|>\n<|im_start|>assistant\n"
