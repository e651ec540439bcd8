"""Pins the model and its tokenizer:

- the same seed gives the same weights; a checkpoint is what `AutoModelForCausalLM` reads, bit for bit
- the copy-friendly start sends an attended token to its own logit
- LoRA trains only its own weights, and is merged into what is saved
- the tokenizer: any text survives, entities have the same tokens wherever they stand, constant text is cheap
- its template: the mask covers exactly the assistant's turns, and the native codec accepts it
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tau2rl.chat import make_codec
from tau2rl.config import ChatConfig
from tau2rl.config.training import LoraConfig
from tau2rl.errors import UserError
from tau2rl.train.engine.forward import collate, score_tokens
from tau2rl.train.engine.shared_prefix import backbone, head
from tau2rl.train.model import load_model, num_parameters, save, with_lora
from tau2rl.train.tiny import create, save_tokenizer, train_tokenizer
from tau2rl.types import CallTool, Message, Opening, Say
from tests.unit.train.tiny import SHAPE, VOCAB, sample, tiny_model

TOOL = {
    "type": "function",
    "function": {
        "name": "set_status",
        "description": "",
        "parameters": {"type": "object", "properties": {"id": {}, "status": {}}},
    },
}
TEXTS = [
    f"<|im_start|>user\nPlease set task_{n} of Ada Fox to done.<|im_end|>\n<|im_start|>assistant\nWhich one?<|im_end|>\n"
    for n in range(1000, 1100)
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=600)


def test_the_seed_decides_the_weights() -> None:
    one, two, other = tiny_model(3).state_dict(), tiny_model(3).state_dict(), tiny_model(4).state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_making_a_model_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    tiny_model(9)
    assert torch.equal(torch.rand(1), want)


def test_attention_starts_as_a_weak_copier() -> None:
    attention = tiny_model().model.layers[0].self_attn  # type: ignore[union-attr, index]
    value, output = attention.v_proj.weight, attention.o_proj.weight
    torch.testing.assert_close(output, SHAPE.copy_gain * value.T)


def test_a_checkpoint_is_read_by_transformers_bit_for_bit(tmp_path: Path) -> None:
    model = tiny_model(1)
    save(model, tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        for again in (load_model(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
            assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        load_model(tmp_path)


def test_lora_trains_only_its_own_weights_and_is_merged_when_saved(tmp_path: Path) -> None:
    bare = tiny_model()
    whole = num_parameters(bare)
    model = with_lora(bare, LoraConfig(rank=2, alpha=4))
    assert 0 < num_parameters(model, trainable=True) < whole / 2
    batch = collate([sample(12, seed=0)])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        (-score_tokens(model, batch).logp.sum()).backward()
        optimizer.step()
    with model.disable_adapter(), torch.no_grad():  # type: ignore[operator]
        untouched = score_tokens(model, batch).logp
    torch.testing.assert_close(untouched, score_tokens(tiny_model(), batch).logp.detach())
    trained = score_tokens(model, batch).logp.detach()
    assert not torch.allclose(trained, untouched)
    save(model, tmp_path)
    torch.testing.assert_close(score_tokens(load_model(tmp_path), batch).logp.detach(), trained, rtol=1e-4, atol=1e-4)


def test_backbone_and_head_are_the_whole_model() -> None:
    model, ids = tiny_model(), torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        split = head(model)(backbone(model)(input_ids=ids).last_hidden_state)
        assert torch.equal(split, model(input_ids=ids).logits)


def test_vocabulary_and_ends_are_in_the_config() -> None:
    model = create(SHAPE, vocab_size=VOCAB, seed=0, eos_token_id=2, pad_token_id=0)
    assert (model.config.vocab_size, model.config.eos_token_id, model.config.tie_word_embeddings) == (VOCAB, 2, True)


@pytest.mark.parametrize(
    "text", ["", "Ada", "naïve Ωmega 中文 🙂\n\t", "task_1234,Task_12", '{"a": [1, 22, 333]}', "<tool_call>\n{}\n</tool_call>"]
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_entity_has_the_same_tokens_wherever_it_stands(tokenizer: PreTrainedTokenizerFast) -> None:
    inside = tokenizer.encode('{"id": "task_4821", "name": "Ada Fox"}')
    talked = tokenizer.encode("Set task_4821 of Ada Fox")
    for entity in ("48", "21", "Ada", "Fox"):
        piece = tokenizer.encode(entity)
        assert len(piece) == 1
        assert piece[0] in inside
        assert piece[0] in talked


def test_constant_text_costs_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer.encode(" set task_")) == 1


def test_training_the_tokenizer_twice_gives_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    assert train_tokenizer(TEXTS, vocab_size=600).get_vocab() == tokenizer.get_vocab()


CONVERSATION = [
    {"role": "system", "content": "Help."},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Set both."},
    {
        "role": "assistant",
        "content": "One moment.",
        "tool_calls": [
            {"type": "function", "function": {"name": "set_status", "arguments": {"id": "a"}}},
            {"type": "function", "function": {"name": "set_status", "arguments": {"id": "b"}}},
        ],
    },
    {"role": "tool", "content": "ok"},
    {"role": "tool", "content": "no"},
    {"role": "assistant", "content": "Done."},
]


def test_the_mask_covers_exactly_the_assistants_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    out = tokenizer.apply_chat_template(
        CONVERSATION, tools=[TOOL], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    spans: list[str] = []
    previous = 0
    for token, masked in zip(out["input_ids"], out["assistant_masks"], strict=True):
        if masked:
            spans = [*spans, ""] if not previous else spans
            spans[-1] += tokenizer.decode([token])
        previous = masked
    calls = "\n".join(
        '<tool_call>\n{"name": "set_status", "arguments": ' + json.dumps({"id": i}) + "}\n</tool_call>" for i in "ab"
    )
    assert spans == ["Hi!<|im_end|>", f"One moment.\n{calls}<|im_end|>", "Done.<|im_end|>"]


def test_consecutive_tool_results_share_one_block(tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.apply_chat_template(CONVERSATION, tools=[TOOL], tokenize=False)
    block = "<|im_start|>user\n<tool_response>\nok\n</tool_response>\n<tool_response>\nno\n</tool_response><|im_end|>\n"
    assert block in text
    assert "set_status(id, status)" in text


def test_the_native_codec_accepts_it(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("Ada") == tokenizer.encode("Ada")
    codec = make_codec(ChatConfig(protocol="native", tokenizer=str(tmp_path)))
    tools = (TOOL,)
    prompt = codec.open(
        Opening(
            domain_policy="Be kind.",
            messages=(Message(role="assistant", content="Hi!"), Message(role="user", content="Go.")),
            tools=tools,
        )
    )
    actions = (Say(text="One moment."), CallTool(name="set_status", arguments={"id": "task_1234", "status": "done"}))
    written = codec.write(actions)
    assert codec.parse(written, tools) == actions
    longer = codec.extend(prompt, written, (Message(role="tool", content="ok"),))
    assert longer[: len(prompt) + len(written)] == [*prompt, *written]
    assert tokenizer.decode(longer).endswith("<tool_response>\nok\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
