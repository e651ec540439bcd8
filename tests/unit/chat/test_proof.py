"""A template that does not carry what an episode needs is refused before anything is sampled; pinned here, one change each:

- parts of the prompt that vanish: the policy, the user's words, a greeting, the last of several tools, a long result;
- values that change: of arguments, types included, and of a turn of plain text;
- the day and the time, wherever they are written and however they are asked for;
- `chat.protocol=cookbook`, which writes calls as text, has nothing put before it;
- a row of plain text is learned as the family writes it: gpt-oss with its channel.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2rl.chat.cookbook import CookbookCodec
from tau2rl.chat.tokenizers import HFTokenizer
from tau2rl.config import TemplateConfig
from tau2rl.data.encoding import RowEncoder
from tau2rl.data.rows import read_row
from tau2rl.errors import UserError
from tau2rl.types import Say
from tests.unit.chat.families import JSON_CALL, MODELS, Model, chatml

BASE = chatml(call=JSON_CALL)
CONTENT, RESULT = "{{ m.content or '' }}", "~ m.content ~"
SPOKEN = "m.role == 'assistant' and m.content and not m.tool_calls"
SAY = BASE.replace(CONTENT, "{{ ('<|say|>' if " + SPOKEN + " else '') ~ (m.content or '') }}")


def hermes(template: str) -> Model:
    call = next(model.call for model in MODELS.values() if model.reads_as == "hermes")
    return Model(template, "hermes", call, control=("<|im_start|>", "<|im_end|>", "<|say|>"))


def arguments(value: str) -> str:
    """Calls whose values are written by this expression of `v`."""
    pairs = "{% for k, v in c.function.arguments.items() %}{{ ', ' if not loop.first }}"
    pairs += '"{{ k }}": {{ ' + value + " }}{% endfor %}"
    return chatml(call=JSON_CALL.replace("{{ c.function.arguments | tojson }}", "{{ '{' }}" + pairs + "{{ '}' }}"))


def dated(expression: str) -> str:
    return "{{ '<|im_start|>system\nToday: ' ~ " + expression + " ~ '<|im_end|>\n' }}" + BASE


def without(role: str, condition: str = "true") -> str:
    return BASE.replace(CONTENT, "{{ '' if m.role == '" + role + "' and " + condition + " else (m.content or '') }}")


WITH_TOOLS = "{% if tools %}" + dated("strftime_now('%Y')").removesuffix(BASE) + "{% endif %}" + BASE
REFUSED = {
    "only the first tool": (BASE.replace("tools | tojson", "tools[0] | tojson"), "the last of several tools"),
    "no policy where there are tools": (without("system", "tools"), "does not show the policy"),
    "no policy": (without("system"), "does not show the policy"),
    "no words of the user": (without("user"), "does not show what the user says"),
    "no greeting": (without("assistant", "loop.index0 == 1"), "does not write every message"),
    "a cut result": (BASE.replace(RESULT, "~ m.content[:40] ~"), "does not show the results"),
    "text in front": (BASE.replace(CONTENT, "{{ ('Answer: ' if " + SPOKEN + " else '') ~ (m.content or '') }}"), "plain text"),
    "a token in front": (SAY, "plain text"),
    "whole numbers as floats": (arguments("(v | float | tojson) if v is integer and v is not boolean else v | tojson"), "format"),
    "true as 1": (arguments("(v | int | tojson) if v is boolean else v | tojson"), "true and null"),
    "false as null": (arguments("'null' if v is false else v | tojson"), "false, zero"),
    "zero as null": (arguments("'null' if v is number and v is not boolean and v == 0 else v | tojson"), "false, zero"),
    "an empty list as null": (arguments("'null' if v is sequence and v is not string and not v else v | tojson"), "false, zero"),
    "rounded": (arguments("(v | round(1) | tojson) if v is float else v | tojson"), "numbers"),
    "the day of the year": (dated("strftime_now('%d %B')"), "today's date"),
    "the time": (dated("strftime_now('%H:%M')"), "today's date"),
    "a space": (dated("strftime_now ('%Y-%m-%d')"), "today's date"),
    "a date in results": (BASE.replace("\\n<tool_response>\\n'", "\\n<tool_response>\\n' ~ strftime_now('%Y')"), "today's date"),
    "a date where there are tools": (WITH_TOOLS, "today's date"),
    "another name": ("{% set now = strftime_now %}" + dated("now('%Y-%m-%d')"), "cannot be pinned"),
    "a computed format": ("{% set f = '%Y' %}" + dated("strftime_now(f)"), "cannot be pinned"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_lost_or_changed_is_refused(name: str, tmp_path: Path) -> None:
    template, why = REFUSED[name]
    model = hermes(template)
    model.save(tmp_path)
    with pytest.raises(UserError, match=why):
        model.codec(tmp_path, "off")


@pytest.mark.parametrize("template", [BASE, arguments("v | tojson"), "{% if strftime_now is defined %}{% endif %}" + BASE])
def test_what_carries_everything_is_taken(template: str, tmp_path: Path) -> None:
    model = hermes(template)
    model.save(tmp_path)
    assert model.codec(tmp_path, "off").chat.family.name == "hermes"


def test_a_protocol_of_text_has_nothing_put_before_it(tmp_path: Path) -> None:
    hermes(SAY).save(tmp_path / "say")
    with pytest.raises(UserError, match="before what the assistant says"):
        CookbookCodec(HFTokenizer(str(tmp_path / "say")))
    hermes(BASE).save(tmp_path / "base")
    CookbookCodec(HFTokenizer(str(tmp_path / "base")))


def test_plain_text_is_learned_as_its_family_writes_it(tmp_path: Path) -> None:
    model = MODELS["gpt-oss"]
    model.save(tmp_path)
    tokenizer = HFTokenizer(str(tmp_path))
    said = [("system", "S."), ("user", "Hi."), ("assistant", "Hello there.")]
    row = read_row({"messages": [{"role": role, "content": text} for role, text in said]}, name="a")
    config = TemplateConfig(thinking="per-turn", date=str(model.dates))
    (sample,) = RowEncoder(tokenizer, config).encode(row)
    learned = [token for token, mask in zip(sample.token_ids, sample.loss_mask, strict=True) if mask]
    assert tokenizer.decode(learned) == model.turn((Say(text="Hello there."),))
