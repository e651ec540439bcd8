"""Pinned here: the checkpoints' own chat templates, as TRL ships them, are read by their family or refused with the reason.

Runs where TRL is installed, of which only the files are read.
"""

from __future__ import annotations

import importlib.util
import re
from datetime import date
from pathlib import Path

import pytest

from tau2rl.chat.native import NativeCodec
from tau2rl.chat.tokenizers import HFTokenizer
from tau2rl.errors import UserError
from tests.unit.chat.families import GEMMA_CONTROL, HARMONY_CONTROL, LLAMA_CONTROL, Model

SPEC = importlib.util.find_spec("trl")
FOLDER = Path(SPEC.origin).parent / "chat_templates" if SPEC and SPEC.origin else Path("nowhere")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER.exists(), reason="TRL is not installed")]
CHATML_CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
NO_THOUGHTS, TOOLLESS = "does not write thoughts", "does not show the tools to the model"

# The file, what ends its turns, and what comes of off, keep and per-turn: a family, or words of the refusal.
CASES = [
    ("qwen2_5", "<|im_end|>", "hermes", NO_THOUGHTS, NO_THOUGHTS),
    ("qwen3", "<|im_end|>", "hermes", "hermes", "hermes"),
    ("qwen3_training", "<|im_end|>", "hermes", "hermes", "keeps the thoughts"),
    ("qwen3_instruct_2507", "<|im_end|>", "hermes", NO_THOUGHTS, NO_THOUGHTS),
    ("qwen3_vl", "<|im_end|>", "hermes", NO_THOUGHTS, NO_THOUGHTS),
    ("qwen3_5_nothink", "<|im_end|>", "elements", "elements", "elements"),
    ("qwen3_5_think", "<|im_end|>", "elements", "elements", "elements"),
    ("qwen3_5_think_training", "<|im_end|>", "elements", "elements", "keeps the thoughts"),
    ("qwen3_6", "<|im_end|>", "elements", "elements", "elements"),
    ("qwen3_8", "<|im_end|>", "elements", "elements", "elements"),
    ("nemotron_3_nano", "<|im_end|>", "elements", "elements", "elements"),
    ("nemotron_3_super", "<|im_end|>", "elements", "elements", "elements"),
    ("nemotron_3_ultra", "<|im_end|>", "elements", "elements", "elements"),
    ("nemotron_3_5_lightning", "<|im_end|>", "elements", "elements", "elements"),
    ("gemma4", "<turn|>", "gemma", "gemma", "gemma"),
    ("gemma4_v2", "<turn|>", "gemma", NO_THOUGHTS, NO_THOUGHTS),
    ("gemma4_v4", "<turn|>", "gemma", "gemma", "gemma"),
    ("gemma4_v5", "<turn|>", "gemma", "begins a thought behind some", "begins a thought behind some"),
    ("gptoss", "<|return|>", "always thinks", "ends a turn otherwise", "harmony"),
    ("llama3_1", "<|eot_id|>", "bare-json", NO_THOUGHTS, NO_THOUGHTS),
    ("llama3_2", "<|eot_id|>", "bare-json", NO_THOUGHTS, NO_THOUGHTS),
    ("llama3", "<|eot_id|>", TOOLLESS, TOOLLESS, TOOLLESS),
    ("qwen2_5_vl", "<|im_end|>", TOOLLESS, TOOLLESS, TOOLLESS),
    ("lfm2_2_5", "<|im_end|>", *["a format that is not read here"] * 3),
]
ENDS = ("<|im_end|>", "<|eot_id|>", "<turn|>", "<|return|>")
READ_BESIDES = {
    "gemma4_v3",
    "nemotron_3_5_lightning_training",
    "nemotron_3_nano_training",
    "nemotron_3_super_training",
    "nemotron_3_ultra_training",
    "qwen2_5_training",
    "qwen3_5_nothink_training",
    "qwen3_6_training",
    "qwen3_8_training",
    "qwen3_instruct_2507_training",
    "qwen3_vl_training",
}


@pytest.mark.parametrize(("name", "end", "off", "keep", "per_turn"), CASES, ids=[case[0] for case in CASES])
def test_a_template_is_read_or_refused(name: str, end: str, off: str, keep: str, per_turn: str, tmp_path: Path) -> None:
    control = tuple(dict.fromkeys([*CHATML_CONTROL, *LLAMA_CONTROL, *GEMMA_CONTROL, *HARMONY_CONTROL]))
    model = Model((FOLDER / f"{name}.jinja").read_text("utf-8"), "", str, end, control=control)
    tokenizer = HFTokenizer(str(model.save(tmp_path)))
    for thinking, expected in (("off", off), ("keep", keep), ("per-turn", per_turn)):
        try:
            found = NativeCodec(tokenizer, thinking=thinking, date=date(2026, 1, 31)).chat.family.name
        except UserError as error:
            found = error.message
        assert re.search(expected, found), (thinking, found)


@pytest.mark.parametrize("name", ["gptoss", "llama3_2"])
def test_a_template_that_writes_the_date_asks_for_one(name: str, tmp_path: Path) -> None:
    model = Model(
        (FOLDER / f"{name}.jinja").read_text("utf-8"), "", str, "<|eot_id|>", control=(*LLAMA_CONTROL, *HARMONY_CONTROL)
    )
    with pytest.raises(UserError, match="writes today's date") as caught:
        NativeCodec(HFTokenizer(str(model.save(tmp_path))))
    assert "chat.date" in caught.value.hint


def test_every_other_one_is_read_or_refused_as_a_template(tmp_path: Path) -> None:
    """Those without a row above, under stand-in control tokens: a reason may be another one under the checkpoint's own."""
    control = tuple(dict.fromkeys([*CHATML_CONTROL, *LLAMA_CONTROL, *GEMMA_CONTROL, *HARMONY_CONTROL]))
    read: set[str] = set()
    for file in sorted(FOLDER.glob("*.jinja")):
        if file.stem in {case[0] for case in CASES}:
            continue
        text = file.read_text("utf-8")
        end = next((mark for mark in ENDS if mark in text), "<|im_end|>")
        tokenizer = HFTokenizer(str(Model(text, "", str, end, control=control).save(tmp_path / file.stem)))
        try:
            NativeCodec(tokenizer, date=date(2026, 1, 31))
            read.add(file.stem)
        except UserError as error:
            assert "chat template of" in error.message and error.hint, (file.stem, error.message)
    assert read == READ_BESIDES
