"""What a row says of its own learning is honoured, or the row is left out with its reason; pinned here, through `tau2rl sft`:

- `step_loss_mask: 0` and `weight: 0` keep a message in the conversation and out of the loss, exactly; on a row they leave it out
- a mark that is neither 0 nor 1 leaves the row out
- thoughts are learned as the template writes them, or the run is refused with file and line; they never vanish
- `tau2rl data show` prints exactly what is trained on
- nulls that Arrow added are no arguments, no tools and no content; nulls within JSON text and defaults of schemas stay
- tools are read as schemas, as JSON text, and as a list of texts, with the same tokens
- rows with sampled tokens that the tokenizer does not have are left out
- whatever else a row holds: it is left out with file and line and a reason, or the file is refused with both; never a traceback
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tau2rl.chat.tokenizers import CHATML_TEMPLATE, ByteTokenizer, Tokenizer, load_tokenizer
from tau2rl.cli import app
from tau2rl.config import TemplateConfig, build
from tau2rl.data.encoding import Encoded, encode_rows
from tau2rl.data.jsonl import read_row_file
from tau2rl.slime.sft_data import write_conversations

runner = CliRunner()
CASES = Path(__file__).parents[2] / "fixtures" / "rows"
PLAIN: dict[str, Any] = json.loads((CASES / "plain.jsonl").read_text("utf-8"))
CALL = '<tool_call>\n{"name": "renew_loan", "arguments": {"loan_id": "L-7"}}\n</tool_call>'
SHAPE = ["local.shape.hidden=16", "local.shape.layers=1", "local.shape.heads=1", "local.shape.head_dim=8"]


def sft(file: Path, folder: Path, *settings: str, code: int = 0) -> Any:
    """The report of a training on a file by the command, in this process."""
    sets = [word for value in (*SHAPE, "local.shape.vocab_size=300", "train.steps=1", *settings) for word in ("--set", value)]
    words = ["sft", "--data", str(file), "--output", str(folder / "run"), "--inline", *sets, "--set", "data.val_fraction=0"]
    result = runner.invoke(app, words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output and "this is a bug" not in result.output
    return json.loads((folder / "run" / "report.json").read_text("utf-8")) if code == 0 else result.stderr


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return file


def encoded(*rows: dict[str, Any], tokenizer: Tokenizer | None = None, thinking: str = "off") -> Encoded:
    named = [(f"rows.jsonl:{number}", row) for number, row in enumerate(rows, 1)]
    chat = build(TemplateConfig, {"thinking": thinking})
    return encode_rows(named, tokenizer or ByteTokenizer(), max_tokens=100_000, chat=chat)


def learned(row: dict[str, Any], thinking: str = "off") -> list[str]:
    """The text of each turn that is learned."""
    (sample,) = encoded(row, thinking=thinking).samples
    texts = [ByteTokenizer().decode(sample.token_ids[start:end]) for start, end in sample.turn_spans]
    assert sum(sample.loss_mask) == sum(end - start for start, end in sample.turn_spans)
    return [text.removesuffix("<|im_end|>") for text in texts]


def whole(row: dict[str, Any], thinking: str = "off") -> str:
    (sample,) = encoded(row, thinking=thinking).samples
    return ByteTokenizer().decode(sample.token_ids)


def with_message(number: int, **fields: Any) -> dict[str, Any]:
    messages = [{**message, **(fields if i == number else {})} for i, message in enumerate(PLAIN["messages"])]
    return {**PLAIN, "messages": messages}


@pytest.mark.parametrize("case", ["step_loss_mask", "weight"])
def test_what_is_marked_is_not_learned_and_stays_in_the_conversation(case: str, tmp_path: Path) -> None:
    row = json.loads((CASES / f"{case}.jsonl").read_text("utf-8"))
    assert learned(PLAIN) == [CALL, "Renewed."]
    assert learned(row) == ["Renewed."]
    assert whole(row) == whole(PLAIN)
    report = sft(CASES / f"{case}.jsonl", tmp_path)["rows"]
    initial = load_tokenizer(str(tmp_path / "run" / "checkpoints" / "initial"))
    assert (report["used"], report["dropped"]) == (1, 0)
    assert report["assistant_tokens"] == len(initial.encode("Renewed.<|im_end|>"))


@pytest.mark.parametrize("mark", ["loss", "loss_scale", "loss_weight", "sample_weight", "loss_mask", "trainable", "train"])
@pytest.mark.parametrize("off", [0, 0.0, False])
def test_a_mark_of_another_dialect_is_one_too(mark: str, off: object) -> None:
    assert learned(with_message(2, **{mark: off})) == ["Renewed."]


def test_the_last_turn_may_be_marked_too() -> None:
    row = with_message(4, weight=0)
    assert learned(row) == [CALL]
    assert whole(PLAIN).startswith(whole(row))


@pytest.mark.parametrize("mark", [1, 1.0, True, None])
def test_a_mark_of_one_is_none(mark: object) -> None:
    assert learned({**with_message(2, step_loss_mask=mark, weight=mark), "weight": mark}) == [CALL, "Renewed."]


@pytest.mark.parametrize("note", [{"loss": 0.83}, {"train": "train"}, {"training": {"lr": 1}}, {"loss_scale": "default"}])
def test_what_another_tool_noted_on_a_row_is_no_mark(note: dict[str, Any]) -> None:
    assert learned({**PLAIN, **note}) == [CALL, "Renewed."]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (with_message(2, weight=0.5), "message 2 has a `weight` of 0.5: only 0 and 1 can be honoured"),
        (with_message(2, step_loss_mask="0"), "message 2 has a `step_loss_mask` of '0'"),
        (with_message(2, thinking=[{"text": "Hm."}]), "a message whose thought is not text"),
        ({**PLAIN, "weight": 0}, "its `weight` is 0"),
        ({**PLAIN, "step_loss_mask": 0}, "its `step_loss_mask` is 0"),
        ({**PLAIN, "train": False}, "its `train` is 0"),
        ({**PLAIN, "loss": 0.0}, "its `loss` is 0"),
        ({**PLAIN, "loss_weight": 0.5}, "the row has a `loss_weight` of 0.5"),
        (with_message(2, loss=0.83), "message 2 has a `loss` of 0.83"),
        ({**PLAIN, "loss_mask": [0, 0, 1, 0, 1]}, "the row has a `loss_mask` of [0, 0, 1, 0, 1]"),
        ({**PLAIN, "weight": -1}, "the row has a `weight` of -1"),
        (with_message(2, reasoning_details=[{"type": "reasoning.text", "text": "Hm."}]), "thought stands in `reasoning_details`"),
        (with_message(2, function_call={"name": "f", "arguments": "{}"}), "of which one would be lost"),
        ({**PLAIN, "tools": [{"function": {"name": "f", "parameters": []}}]}, "`parameters` of `f` that are no object"),
        ({**PLAIN, "tools": [{"function": {"name": "f", "parameters": "{"}}]}, "a tool's `parameters` given as text that is not"),
        ({**PLAIN, "weight": 2}, "the row has a `weight` of 2"),
        ({**PLAIN, "messages": [{**m, "weight": 0} for m in PLAIN["messages"]]}, "no assistant turn to learn"),
        (with_message(2, tool_calls=5), "`tool_calls` that are no list"),
        (with_message(2, tool_calls="[]"), "`tool_calls` that are no list"),
        (with_message(2, tool_calls=[5]), "a tool call without a name"),
        (with_message(2, tool_calls=[{"function": {"name": "f", "arguments": 5}}]), "that are not an object"),
        (with_message(2, tool_calls=[{"name": "f", "arguments": '{"a": [1e999]}'}]), "it cannot be written as JSON"),
        (with_message(2, tool_calls=[{"name": "f", "arguments": '{"a": NaN}'}]), "it cannot be written as JSON"),
        ({**PLAIN, "tools": "{"}, "`tools` given as text that is not JSON"),
        ({**PLAIN, "tools": '[{"name": "f", "minimum": NaN}]'}, "`NaN` is no number of JSON"),
        ({**PLAIN, "tools": '[{"name": "f", "name": "g"}]'}, "an object has the key `name` twice"),
        ({**PLAIN, "tools": 5}, "`tools` that are no list"),
        ({**PLAIN, "tools": ["renew_loan"]}, "a tool given as text that is not JSON"),
        ({**PLAIN, "tools": [{"type": "function"}]}, "a tool that is no function schema"),
        ({**PLAIN, "tools": [[]]}, "a tool that is no function schema"),
        ({**PLAIN, "id": "\ud800"}, "half of a surrogate pair"),
        (with_message(1, content="\ud800"), "half of a surrogate pair"),
        (with_message(2, tool_calls=[{"function": {"name": "f", "arguments": '{"a": "\\udfff"}'}}]), "half of a surrogate pair"),
        ({**PLAIN, "tools": '[{"name": "\\udfff"}]'}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_honoured_leaves_the_row_out_with_its_place(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rows = sft(written(tmp_path, PLAIN, row), tmp_path)["rows"]
    assert (rows["used"], rows["dropped"], sum(rows["reasons"].values())) == (1, 1, 1)
    (dropped,) = rows["dropped_rows"]
    assert dropped["at"] == "rows.jsonl:2" and reason in dropped["reason"]


THOUGHTS = ["The policy allows one renewal, so I renew it.", "Say so."]
THOUGHT_ROW: dict[str, Any] = json.loads((CASES / "reasoning.jsonl").read_text("utf-8"))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_without_a_place_end_the_run_with_file_and_line(key: str, tmp_path: Path) -> None:
    told = sft(written(tmp_path, PLAIN, with_message(4, **{key: "Hm."})), tmp_path, code=2)
    assert "`rows.jsonl:2`: message 4 has a thought" in told and "chat.thinking=keep" in told


@pytest.mark.parametrize("thinking", ["keep", "per-turn"])
def test_thoughts_are_learned_as_the_template_writes_them(thinking: str) -> None:
    turns = [f"<think>\n{thought}\n</think>\n\n{said}" for thought, said in zip(THOUGHTS, (CALL, "Renewed."), strict=True)]
    assert learned(THOUGHT_ROW, thinking) == turns
    told = {"enable_thinking": True, "preserve_thinking": thinking == "keep"}
    text = ByteTokenizer().render(THOUGHT_ROW["messages"], THOUGHT_ROW["tools"], add_generation_prompt=False, variables=told)
    assert whole(THOUGHT_ROW, thinking) == text.removesuffix("\n")


def test_a_checkpoint_learns_to_think(tmp_path: Path) -> None:
    sft(CASES / "plain.jsonl", tmp_path)
    start = tmp_path / "run" / "checkpoints" / "final"
    (start / "chat_template.jinja").write_text(CHATML_TEMPLATE, "utf-8")  # the tiny model's own has no thoughts
    more = [{"role": "user", "content": "And L-8?"}, {"role": "assistant", "content": "No.", "reasoning_content": "It is lost."}]
    file = written(tmp_path, {**THOUGHT_ROW, "messages": [*THOUGHT_ROW["messages"], *more]})
    words = ["sft", "--data", str(file), "--output", str(tmp_path / "thinks"), "--inline"]
    given = [f"model.init={start}", "chat.thinking=per-turn", "train.steps=1", "data.val_fraction=0"]
    result = runner.invoke(app, [*words, *(word for value in given for word in ("--set", value))])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "thinks" / "report.json").read_text("utf-8"))
    assert (report["rows"]["used"], report["rows"]["dropped"], report["rows"]["samples"]) == (1, 0, 2)
    assert report["training"]["steps"] == 1 and report["training"]["loss"] > 0


def test_a_thought_that_the_template_takes_out_is_learned_where_it_was_thought() -> None:
    more = [{"role": "user", "content": "And L-8?"}, {"role": "assistant", "content": "No.", "reasoning_content": "It is lost."}]
    row = {**THOUGHT_ROW, "messages": [*THOUGHT_ROW["messages"], *more]}
    found = encoded(row, thinking="per-turn")
    assert [len(sample.turn_spans) for sample in found.samples] == [2, 1] and len(found.rows) == 1
    texts = [ByteTokenizer().decode(sample.token_ids) for sample in found.samples]
    assert all(thought in texts[0] and thought not in texts[1] for thought in THOUGHTS)
    told = {"enable_thinking": True}
    rendered = ByteTokenizer().render(row["messages"], row["tools"], add_generation_prompt=False, variables=told)
    assert texts[1] == rendered.removesuffix("\n")
    (kept,) = encoded(row, thinking="keep").samples
    assert len(kept.turn_spans) == 3


def shown(file: Path, *words: str, code: int = 0) -> Any:
    result = runner.invoke(app, ["data", "show", str(file), "--tokenizer", "bytes", *words])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if "--json" in words and code == 0 else result.output


@pytest.mark.parametrize(
    ("case", "turns"),
    [
        ("plain", [CALL, "Renewed."]),
        ("weight", ["Renewed."]),
        ("step_loss_mask", ["Renewed."]),
        ("nulls", [CALL, "Renewed."]),
        ("string", [CALL, "Renewed."]),
        ("list_of_strings", [CALL, "Renewed."]),
        ("mixed", [CALL, "Renewed."]),
    ],
)
def test_what_is_trained_on_is_shown_token_by_token(case: str, turns: list[str]) -> None:
    found = shown(CASES / f"{case}.jsonl", "--json")
    (sample,) = found["samples"]
    assert [turn["text"] for turn in sample["turns"]] == [f"{turn}<|im_end|>" for turn in turns]
    assert "".join(token["text"] for token in sample["tokens"] if token["learned"]) == "".join(f"{t}<|im_end|>" for t in turns)
    assert "".join(token["text"] for token in sample["tokens"]) == whole(dict(next(read_row_file(CASES / f"{case}.jsonl"))[1]))
    assert (found["num_tokens"], found["num_learned"]) == (len(sample["tokens"]), sum(t["learned"] for t in sample["tokens"]))
    assert (found["at"], found["id"], found["left_out"], found["exact"]) == (f"{case}.jsonl:1", "lib-1", None, False)


def test_thoughts_are_shown_or_refused_and_so_is_a_row_that_is_not_there(tmp_path: Path) -> None:
    found = shown(CASES / "reasoning.jsonl", "--json", "--set", "chat.thinking=keep")
    assert [t["text"].partition("\n</think>")[0] for t in found["samples"][0]["turns"]] == [f"<think>\n{t}" for t in THOUGHTS]
    assert "`reasoning.jsonl:1`: message 2 has a thought" in shown(CASES / "reasoning.jsonl", code=2)
    assert "has no row 2" in shown(CASES / "reasoning.jsonl", "--row", "2", code=2)
    rows = written(tmp_path, PLAIN, {**PLAIN, "weight": 0})
    assert "rows.jsonl:2: left out: its `weight` is 0" in shown(rows, "--row", "2")
    text = shown(rows)
    assert (
        "--- sample 1 of 1 ---" in text
        and f"+    813      82  {'R'!r}" in text
        and text.count("\n+ ") == sum(len(turn) + 1 for turn in (CALL, "Renewed."))
    )


FUNCTION = PLAIN["tools"][0]["function"]
CALLED = PLAIN["messages"][2]["tool_calls"][0]["function"]
LEGACY = [
    *PLAIN["messages"][:2],
    {"role": "assistant", "content": None, "function_call": CALLED},
    {"role": "function", "name": "renew_loan", "content": "ok"},
    PLAIN["messages"][4],
]


@pytest.mark.parametrize(
    "row",
    [
        {**PLAIN, "tools": [FUNCTION]},
        {**PLAIN, "tools": None, "functions": [FUNCTION]},
        {**PLAIN, "tools": [], "functions": json.dumps([FUNCTION])},
        {**PLAIN, "tools": [{"type": "function", "function": {**FUNCTION, "parameters": json.dumps(FUNCTION["parameters"])}}]},
        {**PLAIN, "messages": LEGACY, "tools": "", "functions": [FUNCTION]},
        {**PLAIN, "tools": [{"type": "function", **FUNCTION}]},
        {**PLAIN, "tools": [{"type": None, "function": None, **FUNCTION}]},
        {**PLAIN, "tools": [{"function": FUNCTION}]},
        {**PLAIN, "tools": [{"function": FUNCTION, "type": "function"}]},
    ],
    ids=[
        *("bare", "functions", "functions as text", "parameters as text", "legacy calls"),
        *("Responses API", "bare in Arrow", "without a type", "type behind"),
    ],
)
def test_a_function_is_the_same_tool_in_every_dialect(row: dict[str, Any]) -> None:
    assert whole(row) == whole(PLAIN) and learned(row) == learned(PLAIN)


@pytest.mark.parametrize("none", [None, "", " ", "null", "[]", []])
def test_no_tools_are_none(none: object) -> None:
    assert whole({**PLAIN, "tools": none}) == whole({key: value for key, value in PLAIN.items() if key != "tools"})


@pytest.mark.parametrize("more", [{}, {"parameters": None}, {"parameters": ""}, {"parameters": " "}, {"parameters": "null"}])
def test_a_tool_may_have_no_parameters(more: dict[str, Any]) -> None:
    assert '"function": {"name": "renew_loan"}}' in whole(
        {**PLAIN, "tools": [{"type": "function", "function": {"name": "renew_loan", **more}}]}
    )


@pytest.mark.parametrize(("empty", "expected"), [(None, PLAIN), ("", PLAIN), ([], PLAIN), (" \n", PLAIN)])
def test_empty_thoughts_are_none(empty: object, expected: dict[str, Any]) -> None:
    assert learned(with_message(2, reasoning_content=empty)) == learned(expected)


def test_an_empty_thought_does_not_stand_before_the_real_one() -> None:
    row = with_message(4, reasoning_content=" ", reasoning="Hm.")
    assert learned(row, "keep")[-1] == "<think>\nHm.\n</think>\n\nRenewed."
    details = [{"type": "reasoning.text", "text": "Hm."}]
    assert learned(with_message(1, reasoning_details=details)) == learned(PLAIN)  # the user's: it has no thoughts
    found = encoded(with_message(4, reasoning=" ", reasoning_details=details))
    assert "thought stands in `reasoning_details`" in found.dropped[0].reason


def test_nulls_that_arrow_added_are_no_values(tmp_path: Path) -> None:
    nulls = json.loads((CASES / "nulls.jsonl").read_text("utf-8"))
    assert whole(nulls) == whole(PLAIN)
    columns = {"name": None, "tool_calls": None, "tool_call_id": None, "weight": None, "reasoning_content": None}
    padded = {**PLAIN, "messages": [{**columns, **message} for message in PLAIN["messages"]], "answer": None, "token_ids": None}
    assert whole(padded) == whole(PLAIN)
    assert sft(CASES / "nulls.jsonl", tmp_path)["rows"]["used"] == 1


def call_of(arguments: object) -> dict[str, Any]:
    return with_message(2, tool_calls=[{"function": {"name": "renew_loan", "arguments": arguments}}])


@pytest.mark.parametrize("arguments", [None, "", " ", {}, {"loan_id": None}])
def test_no_arguments_are_an_empty_object(arguments: object) -> None:
    assert learned(call_of(arguments))[0] == '<tool_call>\n{"name": "renew_loan", "arguments": {}}\n</tool_call>'


def test_nulls_that_were_meant_stay() -> None:
    assert '"until": null' in learned(call_of('{"loan_id": "L-7", "until": null}'))[0]
    assert '"keep": [null]' in learned(call_of({"keep": [None], "drop": {"deep": None}}))[0]
    schema = {"function": {"name": "f", "parameters": {"properties": {"a": {"default": None}, "b": None}}}}
    assert '"default": null' in whole({**PLAIN, "tools": [schema]}) and '"b"' not in whole({**PLAIN, "tools": [schema]})


@pytest.mark.parametrize("case", ["string", "list_of_strings", "mixed"])
def test_tools_are_the_same_in_whatever_form(case: str, tmp_path: Path) -> None:
    rows = [row for _, row in read_row_file(CASES / f"{case}.jsonl")]
    plain = json.loads((CASES / "mixed.jsonl").read_text("utf-8").splitlines()[0])
    assert {whole(dict(row)) for row in rows} == {whole(plain)}
    assert sft(CASES / f"{case}.jsonl", tmp_path)["rows"]["used"] == len(rows)


def test_a_row_that_the_template_refuses_is_left_out_with_its_complaint() -> None:
    found = encoded(PLAIN, {**PLAIN, "messages": [*PLAIN["messages"], {"role": "user", "content": "?"}, PLAIN["messages"][4]]})
    assert len(found.samples) == 2

    class Picky(ByteTokenizer):
        def render(self, messages: Any, tools: Any, **told: Any) -> str:
            if any(message["content"] == "no" for message in messages):
                raise ValueError("I will not")
            return super().render(messages, tools, **told)

    found = encoded(PLAIN, with_message(1, content="no"), tokenizer=Picky())
    assert (len(found.samples), found.dropped[0].at) == (1, "rows.jsonl:2") and "I will not" in found.dropped[0].reason


@pytest.mark.parametrize("ids", [[1, 2, 258], [1, -1, 2], [1, 2**63, 2], [1, True, 2], [1, "2", 2]])
def test_tokens_that_do_not_exist_leave_the_row_out(ids: list[Any]) -> None:
    from tau2rl.chat import codec_fingerprint, make_codec
    from tau2rl.config import ChatConfig

    chat = codec_fingerprint(make_codec(ChatConfig(protocol="native", tokenizer="bytes")))
    row = {**PLAIN, "token_ids": ids, "loss_mask": [0, 1, 1], "metadata": {"chat": chat}}
    found = encoded({**row, "token_ids": [1, 2, 257]}, row)
    assert (found.exact, len(found.samples)) == (1, 1)
    assert "`token_ids`" in found.dropped[0].reason


def test_arguments_nested_without_end_leave_the_row_out(tmp_path: Path) -> None:
    deep: Any = {}
    for _ in range(600):
        deep = {"a": deep}
    text = '{"a":' * 100_000 + "1" + "}" * 100_000
    rows = sft(written(tmp_path, PLAIN, call_of(deep), call_of(text)), tmp_path)["rows"]
    assert rows["used"] + rows["dropped"] == 3 and rows["used"] >= 1
    assert rows["dropped_rows"][-1]["at"] == "rows.jsonl:3"


def test_slime_is_told_the_same_marks(tmp_path: Path) -> None:
    rows = [("a", json.loads((CASES / "weight.jsonl").read_text("utf-8"))), ("b", {**PLAIN, "weight": 0})]
    account = write_conversations(rows, ByteTokenizer(), tmp_path / "out.jsonl", max_tokens=10_000)
    ((_, row),) = read_row_file(tmp_path / "out.jsonl")
    marks = [message.get("step_loss_mask", 1) for message in row["messages"] if message["role"] == "assistant"]
    assert (marks, account.used, [d.reason for d in account.dropped]) == ([0, 1], 1, ["its `weight` is 0"])


@pytest.mark.parametrize("case", ["utf16", "missing"])
def test_a_file_that_cannot_be_read_is_refused_by_the_command(case: str, tmp_path: Path) -> None:
    told = sft(CASES / f"{case}.jsonl", tmp_path, code=2)
    assert str(CASES / f"{case}.jsonl") in told


def test_a_device_is_refused_by_the_command(tmp_path: Path) -> None:
    assert "cannot read `/dev/zero`: it is not a file" in sft(Path("/dev/zero"), tmp_path, code=2)
