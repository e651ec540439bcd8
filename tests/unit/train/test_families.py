"""Pins that any `AutoModelForCausalLM` is sampled from and trained as the library computes it:

- shared prefixes and slots are for models on which they are proved; recurrent layers, softcaps, logits that are scaled and
  attention other than torch's take the plain path, and why is said
- for each family: loss and gradient of SFT are the library's own, a GRPO step meets what was sampled within 1e-4, a training that
  was interrupted goes on to the same bits, and what is saved is what `AutoModelForCausalLM` reads
- a turn sampled plainly does not depend on its company, with the library's cache and without
- `sft`, `grpo` and `eval` do all this with any of them, and say once, in the log and in environment.json, which way was taken
- the proof moves nobody's random numbers, and of a large model only a few layers are copied
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from tau2rl.config import EvalConfig, GrpoConfig, LocalTrainConfig, SftConfig, SftTrainConfig, build
from tau2rl.config.training import LoraConfig
from tau2rl.launch.entry import run_stage
from tau2rl.runs.files import read_json
from tau2rl.runs.folder import RunFolder
from tau2rl.train.engine import proof
from tau2rl.train.engine.forward import collate, cut, score_tokens
from tau2rl.train.engine.generator import SampleRequest
from tau2rl.train.engine.plain_generator import PlainGenerator
from tau2rl.train.engine.proof import Engine, engine_of, sampler_for
from tau2rl.train.engine.shared_prefix import attends
from tau2rl.train.model import load_model, save, save_memory, with_lora
from tau2rl.train.sft import train
from tau2rl.train.tiny import create_tiny
from tau2rl.train.trainer import ScoredTrajectory
from tau2rl.types import TrainingSample
from tests.unit.train.tiny import SAMPLING, SHAPE, VOCAB, Killed, gradient, grpo_trainer, killer, sample, weights

BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 1,
}  # fmt: skip
WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads")} | {
    f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**BASE),
    "qwen3": lambda: transformers.Qwen3Config(**BASE),
    "gemma3": lambda: transformers.Gemma3TextConfig(**BASE, **WINDOWED, query_pre_attn_scalar=8),
    "gemma3 with a softcap": lambda: transformers.Gemma3TextConfig(
        **BASE, **WINDOWED, query_pre_attn_scalar=8, final_logit_softcapping=30.0
    ),
    "gemma2": lambda: transformers.Gemma2Config(**BASE, **WINDOWED, query_pre_attn_scalar=8),
    "cohere": lambda: transformers.CohereConfig(**{k: v for k, v in BASE.items() if k != "head_dim"}, logit_scale=0.25),
    "qwen3_5": lambda: transformers.Qwen3_5TextConfig(**{**BASE, "num_hidden_layers": 4}, **LINEAR),
    "gpt_oss": lambda: transformers.GptOssConfig(**BASE, **WINDOWED, num_local_experts=4, num_experts_per_tok=2),
    "mamba": lambda: transformers.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2),
}
FAMILIES = ["llama", "qwen3", "gemma3", "qwen3_5", "gpt_oss"]


def family(name: str, seed: int = 0) -> nn.Module:
    """A model of random weights that are large enough for softcaps and sinks to be seen."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model: nn.Module = AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=weight.shape[-1] ** -0.5)
    engine_of(model)
    return model


PLAIN = {  # -> how turns are sampled, and why
    "gemma3 with a softcap": ("cache", "log-probabilities with shared prefixes are"),
    "gemma2": ("cache", "`eager`"),
    "cohere": ("cache", "log-probabilities with shared prefixes are"),
    "qwen3_5": ("cache", "our attention does not compute it"),
    "gpt_oss": ("cache", "`eager`"),
    "mamba": ("recompute", "`eager`"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_our_attention_is_for_models_on_which_it_is_proved(name: str) -> None:
    model = family(name)
    engine = engine_of(model)
    if name in PLAIN:
        sampling, reason = PLAIN[name]
        assert (engine.training, engine.sampling) == ("plain", sampling)
        assert reason in engine.reason
    else:
        assert engine == proof.PROVED
    assert attends(model) == (name not in PLAIN)


def test_the_proof_moves_nobodys_random_numbers() -> None:
    model: nn.Module = AutoModelForCausalLM.from_config(CONFIGS["qwen3"]())
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    engine_of(model)
    assert torch.equal(torch.rand(1), want)


@pytest.mark.parametrize(("name", "layers"), [("qwen3", 2), ("qwen3_5", 4)])
def test_of_a_large_model_one_layer_of_each_kind_is_copied(name: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[name]()
    kinds = list(config.layer_types)
    config.num_hidden_layers, config.layer_types = 3 * len(kinds), 3 * kinds
    monkeypatch.setattr(proof, "WHOLE", 1000)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    twin: Any = proof.copy_of(model)
    assert len(twin.model.layers) == layers
    assert engine_of(model).sampling == ("slots" if name == "qwen3" else "cache")


def rows(count: int = 6) -> list[TrainingSample]:
    """Longer than a window; half of them begin alike."""
    shared = sample(12, seed=50).token_ids
    return [sample(8 + 3 * i, seed=i, shared=shared if i % 2 else ()) for i in range(count)]


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA and recomputed activations"])
@pytest.mark.parametrize("name", [*FAMILIES, "gemma3 with a softcap", "mamba"])
def test_loss_and_gradient_are_the_librarys_own(name: str, lora: bool) -> None:
    ours, theirs = family(name), family(name)
    if lora:
        if name == "mamba":
            pytest.skip("peft has no default target there")
        ours, theirs = low_rank(ours), low_rank(theirs)
        save_memory(ours)
    count = sum(sum(r.loss_mask[1:]) for r in rows())
    total = 0.0
    ours.train()
    groups = cut(ours, rows(), max_tokens=60)
    assert len(groups) > 1
    for group in groups:
        loss = -score_tokens(ours, collate([rows()[i] for i in group])).logp.sum() / count
        loss.backward()
        total += float(loss.detach())
    theirs.train()
    for row in rows():  # without padding, one by one
        ids, mask = torch.tensor([row.token_ids]), torch.tensor([row.loss_mask])
        share = sum(row.loss_mask[1:]) / count
        loss = theirs(input_ids=ids, labels=ids.masked_fill(mask == 0, -100)).loss * share
        loss.backward()
        total -= float(loss.detach())
    assert total == pytest.approx(0.0, abs=1e-5)
    torch.testing.assert_close(gradient(ours), gradient(theirs), rtol=1e-3, atol=1e-5)


def low_rank(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    found = with_lora(model, LoraConfig(rank=2, alpha=4))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return found


def requests() -> list[SampleRequest]:
    prompts = [sample(3 * i + 1, seed=i, shared=sample(9, seed=50).token_ids).token_ids for i in range(5)]
    return [
        SampleRequest(session=str(i), prompt=list(prompt), sampling=SAMPLING, seed=i, max_tokens=length)
        for i, (prompt, length) in enumerate(zip(prompts, (9, 1, 4, 9, 2), strict=True))
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_grpo_step_meets_what_was_sampled(name: str) -> None:
    trainer = grpo_trainer(family(name))
    update = trainer.update(sampled(trainer.model))
    assert update is not None
    assert update.mismatch.max_abs is not None
    assert update.mismatch.max_abs <= 1e-4
    assert update.gradient_norm > 0
    again = trainer.update(sampled(trainer.model))  # with the weights as they are now
    assert again is not None
    assert again.mismatch.max_abs is not None
    assert again.mismatch.max_abs <= 1e-4


def sampled(model: nn.Module) -> list[ScoredTrajectory]:
    asked = requests()
    found: list[ScoredTrajectory] = []
    for i, (ask, done) in enumerate(zip(asked, sampler_for(model, slots=4).run(asked), strict=True)):
        given, said = len(ask.prompt), len(done.token_ids)
        row = TrainingSample(
            token_ids=(*ask.prompt, *done.token_ids),
            loss_mask=(*[0] * given, *[1] * said),
            logprobs=(*[0.0] * given, *(done.logprobs or ())),
            turn_spans=((given, given + said),),
        )
        found.append(ScoredTrajectory(samples=(row,), advantages=((-1.0) ** i,)))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_an_interrupted_training_goes_on_to_the_same_bits_and_is_saved_whole(name: str, tmp_path: Path) -> None:
    config = SftTrainConfig(lr=1e-3, steps=4, warmup_steps=0, batch_size=3, save_every=1)
    learn = partial(
        train, conversations=[(row,) for row in rows()], config=config, local=LocalTrainConfig(max_tokens_per_microbatch=60)
    )
    whole, broken, resumed = family(name), family(name), family(name)
    before = weights(whole).clone()
    learn(whole)
    with pytest.raises(Killed):
        learn(broken, folder=tmp_path / "state", on_step=killer(2))
    learn(resumed, folder=tmp_path / "state")
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(whole), before)
    save(whole, tmp_path / "checkpoint")
    ids = torch.tensor([rows()[5].token_ids])
    whole.eval()
    with torch.no_grad():
        for read in (AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint"), load_model(tmp_path / "checkpoint")):
            torch.testing.assert_close(read(input_ids=ids).logits, whole(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "cached"), [("qwen3_5", True), ("gpt_oss", True), ("mamba", False), ("qwen3", False)])
def test_company_does_not_change_what_is_sampled_plainly(name: str, cached: bool) -> None:
    model = family(name)
    make = partial(PlainGenerator, model, cached=cached)
    alone = [make().run([ask])[0].token_ids for ask in requests()]
    assert [done.token_ids for done in make().run(requests())] == alone
    assert [done.token_ids for done in make(slots=2).run(requests())] == alone
    assert [done.token_ids for done in make(prefill_tokens=20).run(requests())] == alone
    late = make()
    first, *others = requests()
    late.add(first)
    late.step()
    late.step()
    assert [done.token_ids for done in late.run(others)] == alone[1:]
    assert first.result is not None
    assert first.result.token_ids == alone[0]


@pytest.mark.parametrize("cached", [True, False])
def test_who_gives_up_leaves_a_plain_batch(cached: bool) -> None:
    plain = PlainGenerator(family("qwen3"), cached=cached)
    one, two, *_ = requests()
    two.max_tokens = 9
    plain.add(one)
    plain.add(two)
    plain.step()
    with pytest.raises(RuntimeError, match="weights changed"):
        plain.clear_cache()
    one.abandoned = True
    assert plain.step() == [one]
    while plain.busy:
        plain.step()
    assert (one.result, two.result is not None) == (None, True)
    plain.clear_cache()


def test_a_model_that_cannot_be_copied_takes_the_plain_path() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = family("qwen3")
            self.config = AutoModelForCausalLM.from_config(CONFIGS["qwen3"]()).config

    engine = engine_of(Own())
    assert engine == Engine(training="plain", sampling="recompute", reason=engine.reason)
    assert "no copy to prove it on" in engine.reason


HELLO = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi!"}]


@pytest.mark.parametrize("name", ["qwen3_5", "llama"])
def test_runs_train_and_play_any_family_and_say_how(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = tmp_path / "start"
    create_tiny([("a", {"messages": HELLO})], SHAPE, start, seed=0)
    config = CONFIGS[name]()
    config.vocab_size = json.loads((start / "config.json").read_text("utf-8"))["vocab_size"]
    torch.manual_seed(0)
    save(AutoModelForCausalLM.from_config(config), start)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": HELLO}) + "\n", "utf-8")
    base = {"model": {"init": str(start)}}
    data = {"data": {"files": [str(tmp_path / "rows.jsonl")]}, "train": {"steps": 2}, **base}
    play = {
        "tasks": {"domains": ["mock"], "split": "synth-train", "limit": 2}, "user": {"kind": "scripted"},
        "limits": {"max_turns": 1, "context_tokens": 4000, "repairs": 0}, "rollout": {"num_samples": 2, "retries": 0},
    }  # fmt: skip
    learn = {"sampling": {"max_tokens": 4}, "reward": {"preset": "outcome"}, "train": {"steps": 1, "tasks_per_step": 1}}
    way = ("shared-prefix", "slots") if name == "llama" else ("plain", "cache")
    with caplog.at_level(logging.INFO, logger="tau2rl"):
        trained = run_stage_in(tmp_path / "sft", build(SftConfig, data))
        again = run_stage_in(tmp_path / "grpo", build(GrpoConfig, {**base, **play, **learn}))
        policy = {"kind": "local", "checkpoint": str(trained / "checkpoints" / "final"), "sampling": {"max_tokens": 4}}
        played = run_stage_in(tmp_path / "eval", build(EvalConfig, {**play, "policy": policy}))
    for folder in (trained, again, played):
        engine = read_json(folder / "environment.json")["recorded"]["engine"]
        assert (engine["training"], engine["sampling"]) == way
    assert caplog.text.count(f"training: {way[0]}, sampling: {way[1]}") == 3  # once a run
    for folder in (trained, again):
        assert AutoModelForCausalLM.from_pretrained(folder / "checkpoints" / "final").config.model_type == config.model_type


def run_stage_in(folder: Path, config: Any) -> Path:
    """The folder of the run, carried out."""
    with RunFolder.open(RunFolder.create(folder, config, resume=False)) as opened:
        run_stage(opened, lambda _: None)
    return folder
