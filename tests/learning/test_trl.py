"""Our losses are those of TRL (huggingface/trl), called on the same checkpoint and the same tokens; pinned here:

- GRPO: loss and gradient of `trl.GRPOTrainer.compute_loss`, within 1e-4 relative, for each setting that both have: the
  normalisers (dapo, bnpo, grpo, dr_grpo), clip bounds, dual clip, the sequence ratio (GSPO), KL to a reference, entropy,
  temperature, an advantage a turn, importance weights against another sampler; off-policy, so that clipping acts
- one update of ours, cut into micro-batches, has the loss and the gradient norm of TRL's whole batch
- SFT: `trl.SFTTrainer` with `assistant_only_loss` learns the same tokens of the same rows, with the same loss and gradient

TRL is in none of the project's extras. To run this (trl 1.16.0 was compared):

    pip install "trl==1.16.*" && pytest -m slow tests/learning/test_trl.py
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tau2rl.chat.tokenizers import load_tokenizer
from tau2rl.config import AlgoConfig
from tau2rl.data.encoding import encode_rows
from tau2rl.train.engine.forward import collate, cut, score_tokens
from tau2rl.train.losses import Totals, correction_weights, policy_loss
from tau2rl.train.model import load_model, save
from tau2rl.train.sft import mean_loss
from tau2rl.train.tiny import create, save_tokenizer, train_tokenizer
from tau2rl.train.trainer import ScoredTrajectory
from tau2rl.types import TrainingSample
from tests.unit.train.tiny import SHAPE, algo_config, gradient, grpo_trainer

trl = pytest.importorskip("trl", reason="a cross-check for developers; the head of this file says how to run it")
pytestmark = [
    pytest.mark.slow,
    # TRL's imports and its trainers open files and coroutines of their own.
    pytest.mark.filterwarnings("ignore"),
]

GRADIENT_NORM: dict[str, Any] = {"lr": 1e-9, "steps": 1, "warmup_steps": 0, "max_grad_norm": 0.0}  # asked for its norm only
LONGEST = 40  # tokens of an answer: the constant of dr_grpo
TOOL = {
    "type": "function",
    "function": {
        "name": "get",
        "description": "Look up.",
        "parameters": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]},
    },
}


def call(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "get", "arguments": {"id": name}}}


ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Two, please."},
            {"role": "assistant", "content": "", "tool_calls": [call("a"), call("b")]},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "One and two."},
        ],
        "tools": [TOOL],
    },
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "What is c?"},
            {"role": "assistant", "content": "One moment.", "tool_calls": [call("c")]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "It is 3."},
            {"role": "user", "content": "Thanks, that was all that I wanted to know."},
            {"role": "assistant", "content": "Good bye!"},
        ],
        "tools": [TOOL],
    },
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    texts = [m["content"] for row in ROWS for m in row["messages"]]
    tokenizer = train_tokenizer(texts * 3, vocab_size=400)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert isinstance(eos, int) and isinstance(pad, int)
    save(create(SHAPE, vocab_size=len(tokenizer), seed=0, eos_token_id=eos, pad_token_id=pad), folder)
    save_tokenizer(tokenizer, folder)
    return folder


def moved(model: nn.Module, *, seed: int, by: float) -> nn.Module:
    """A copy whose weights are a little elsewhere: an older policy, a reference, another sampler."""
    other, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(by * torch.randn(weight.shape, generator=g))
    return other


def conversation(seed: int) -> TrainingSample:
    """A prompt, then two sampled turns with an answer of the environment between them; lengths differ."""
    rng = random.Random(seed)
    lengths = [rng.randrange(*span) for span in ((5, 12), (1, 8), (2, 6), (1, 8))]
    mask = list(chain(*([on] * n for on, n in zip((0, 1, 0, 1), lengths, strict=True))))
    first, second, answered = lengths[0], lengths[0] + lengths[1], sum(lengths[:3])
    ids = tuple(rng.randrange(5, 300) for _ in mask)
    return TrainingSample(token_ids=ids, loss_mask=tuple(mask), logprobs=None, turn_spans=((first, second), (answered, len(ids))))


SAMPLES = [conversation(seed) for seed in range(6)]
ADVANTAGES = [1.3, -0.7, 0.4, -1.1, 2.0, -0.2]
BY_TURN = [(1.3, -0.2), (-0.7, 0.9), (0.4, 0.0), (-1.1, -1.0), (2.0, 0.5), (-0.2, 0.1)]
TOKENS = float(sum(sum(s.loss_mask) for s in SAMPLES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One setting of ours and its name in TRL."""

    ours: AlgoConfig
    theirs: dict[str, Any]
    temperature: float = 1.0
    by_turn: bool = False
    off_policy: bool = True


PLAIN: dict[str, Any] = {"epsilon": 0.1, "epsilon_high": 0.15}
BOUNDS: dict[str, Any] = {"eps_low": 0.1, "eps_high": 0.15}
CASES = {
    "dapo": Case(ours=algo_config(**BOUNDS), theirs={**PLAIN, "loss_type": "dapo"}),
    "bnpo": Case(ours=algo_config(**BOUNDS), theirs={**PLAIN, "loss_type": "bnpo"}),
    "grpo": Case(ours=algo_config(**BOUNDS, loss_aggregation="seq-mean"), theirs={**PLAIN, "loss_type": "grpo"}),
    "dr_grpo": Case(
        ours=algo_config(**BOUNDS, loss_aggregation="constant", loss_scale=LONGEST),
        theirs={**PLAIN, "loss_type": "dr_grpo", "max_completion_length": LONGEST},
    ),
    "gspo": Case(
        ours=algo_config(eps_low=0.02, eps_high=0.03, loss_aggregation="seq-mean", ratio="sequence"),
        theirs={"epsilon": 0.02, "epsilon_high": 0.03, "loss_type": "grpo", "importance_sampling_level": "sequence"},
    ),
    "dual clip": Case(ours=algo_config(**BOUNDS, dual_clip=1.2), theirs={**PLAIN, "loss_type": "dapo", "delta": 1.2}),
    "kl": Case(ours=algo_config(**BOUNDS, kl_coef=0.3, kl="k3"), theirs={**PLAIN, "loss_type": "dapo", "beta": 0.3}),
    "kl by sequence": Case(
        ours=algo_config(**BOUNDS, kl_coef=0.3, kl="k3", loss_aggregation="seq-mean"),
        theirs={**PLAIN, "loss_type": "grpo", "beta": 0.3},
    ),
    "entropy": Case(ours=algo_config(**BOUNDS, entropy_coef=0.2), theirs={**PLAIN, "loss_type": "dapo", "entropy_coef": 0.2}),
    "temperature": Case(ours=algo_config(**BOUNDS), theirs={**PLAIN, "loss_type": "dapo", "temperature": 0.7}, temperature=0.7),
    "by turn": Case(ours=algo_config(**BOUNDS), theirs={**PLAIN, "loss_type": "dapo"}, by_turn=True),
    "on-policy": Case(ours=algo_config(**BOUNDS), theirs={**PLAIN, "loss_type": "dapo"}, off_policy=False),
    # TRL makes its weights where it samples, from vLLM's log-probabilities; given ours, it has to use them alike.
    "tis": Case(
        ours=algo_config(**BOUNDS, kl_coef=0.3, correction="tis", correction_high=1.05),
        theirs={**PLAIN, "loss_type": "dapo", "beta": 0.3},
    ),
    "mis": Case(
        ours=algo_config(**BOUNDS, correction="mis", correction_level="geometric", correction_low=0.98, correction_high=1.02),
        theirs={**PLAIN, "loss_type": "dapo"},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The policy that is trained, and [batch, time] log-probabilities of the others, in our columns."""

    policy: nn.Module
    old: Tensor | None
    sampler: Tensor
    reference: Tensor


@torch.no_grad()
def world(checkpoint: Path, case: Case) -> World:
    policy = load_model(checkpoint)
    batch = collate(SAMPLES)

    def seen_by(seed: int, by: float) -> Tensor:
        return score_tokens(moved(policy, seed=seed, by=by), batch, temperature=case.temperature).logp

    old = seen_by(1, 0.02)
    return World(policy=policy, old=old if case.off_policy else None, sampler=seen_by(2, 0.03), reference=seen_by(3, 0.02))


def advantages(case: Case) -> Tensor:
    """[batch, time]"""
    table = torch.zeros_like(collate(SAMPLES).mask)
    for row, sample in enumerate(SAMPLES):
        for turn, (start, end) in enumerate(sample.turn_spans):
            table[row, start:end] = BY_TURN[row][turn] if case.by_turn else ADVANTAGES[row]
    return table


def our_loss(case: Case, w: World, *, max_tokens: int) -> tuple[float, Tensor, float]:
    """Loss, gradient and clipped tokens, through the forward pass and the loss that `GRPOTrainer` uses."""
    table, total, clipped = advantages(case), 0.0, 0.0
    w.policy.zero_grad()
    for group in cut(w.policy, SAMPLES, max_tokens=max_tokens):
        batch = collate([SAMPLES[i] for i in group])
        width = batch.mask.shape[1]
        scores = score_tokens(w.policy, batch, temperature=case.temperature, entropy="gradient")
        result = policy_loss(
            case.ours,
            logp=scores.logp,
            old_logp=scores.logp.detach() if w.old is None else w.old[group, :width],
            advantages=table[group, :width],
            mask=batch.mask,
            totals=Totals(tokens=TOKENS, sequences=len(SAMPLES)),
            ref_logp=w.reference[group, :width],
            rollout_logp=w.sampler[group, :width],
            entropy=scores.entropy,
        )
        result.loss.backward()
        total += float(result.loss.detach())
        clipped += result.clipped_tokens
    return total, gradient(w.policy), clipped


def trl_inputs(case: Case, w: World, *, pad: int) -> dict[str, Tensor]:
    """The batch as TRL has it: prompts padded on the left, what follows on the right, `tool_mask` on sampled tokens."""
    starts = [s.turn_spans[0][0] for s in SAMPLES]
    before = max(starts)
    behind = max(len(s.token_ids) - start for s, start in zip(SAMPLES, starts, strict=True))
    size = len(SAMPLES)
    prompts, answers = torch.full((size, before), pad), torch.full((size, behind), pad)
    prompt_mask, answer_mask, tool_mask = (torch.zeros(size, n, dtype=torch.long) for n in (before, behind, behind))

    def behind_prompt(table: Tensor) -> Tensor:
        out = torch.zeros(size, behind)
        for row, (s, start) in enumerate(zip(SAMPLES, starts, strict=True)):
            out[row, : len(s.token_ids) - start] = table[row, start : len(s.token_ids)]
        return out

    for row, (s, start) in enumerate(zip(SAMPLES, starts, strict=True)):
        ids, mask = torch.tensor(s.token_ids), torch.tensor(s.loss_mask)
        prompts[row, before - start :], prompt_mask[row, before - start :] = ids[:start], 1
        answers[row, : len(ids) - start], answer_mask[row, : len(ids) - start] = ids[start:], 1
        tool_mask[row, : len(ids) - start] = mask[start:]
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": answers,
        "completion_mask": answer_mask,
        "tool_mask": tool_mask,
        "advantages": behind_prompt(advantages(case)) if case.by_turn else torch.tensor(ADVANTAGES),
        "ref_per_token_logps": behind_prompt(w.reference),
        "num_items_in_batch": torch.tensor(TOKENS),
    }
    if w.old is not None:
        inputs["old_per_token_logps"] = behind_prompt(w.old)
    if case.ours.correction != "none":
        assert w.old is not None
        weights, _ = correction_weights(case.ours, old_logp=w.old, rollout_logp=w.sampler, mask=collate(SAMPLES).mask)
        inputs["importance_sampling_ratio"] = behind_prompt(weights)
    return inputs


def trl_grpo(case: Case, checkpoint: Path, folder: Path) -> Any:
    """TRL's trainer on the checkpoint; it plays nothing here, so its data and reward are dummies."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    args = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(SAMPLES),
        num_generations=len(SAMPLES),
        gradient_checkpointing=False,
        disable_dropout=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        use_bias_correction_kl=False,  # TRL's default multiplies the KL term by the ratio (2512.02556), GRPO's paper does not
        **{"beta": 0.0, **case.theirs},
    )
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["Hello."] * len(SAMPLES)}),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    trainer.use_vllm = case.ours.correction != "none"  # as far as the loss goes: it then multiplies by the weights given
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def trl_loss(case: Case, w: World, checkpoint: Path, folder: Path) -> tuple[float, Tensor]:
    trainer = trl_grpo(case, checkpoint, folder)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trl_inputs(case, w, pad=trainer.processing_class.pad_token_id))
    loss.backward()
    return float(loss.detach()), gradient(trainer.model)


@pytest.mark.parametrize("name", CASES)
def test_the_grpo_loss_and_its_gradient_are_those_of_trl(name: str, checkpoint: Path, tmp_path: Path) -> None:
    case, plain = CASES[name], CASES["dapo"]
    w = world(checkpoint, case)
    loss, ours, clipped = our_loss(case, w, max_tokens=60)
    their_loss, theirs = trl_loss(case, w, checkpoint, tmp_path)
    assert loss == pytest.approx(their_loss, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-4)
    assert (clipped > 0) == case.off_policy, "a comparison in which nothing is clipped says little"
    acts = loss != pytest.approx(our_loss(plain, world(checkpoint, plain), max_tokens=60)[0], rel=1e-3)
    assert acts or name in ("dapo", "bnpo"), "the setting changes nothing on this batch"


def test_settings_that_differ_are_told_apart(checkpoint: Path, tmp_path: Path) -> None:
    """The comparison has teeth: with another clip bound on one side, it fails."""
    case = CASES["dapo"]
    w = world(checkpoint, case)
    loss, _, _ = our_loss(Case(ours=algo_config(eps_low=0.1, eps_high=0.16), theirs={}), w, max_tokens=60)
    their_loss, _ = trl_loss(case, w, checkpoint, tmp_path)
    assert loss != pytest.approx(their_loss, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("max_tokens_per_microbatch", [8192, 60])
def test_an_update_of_ours_is_an_update_of_trl(max_tokens_per_microbatch: int, checkpoint: Path, tmp_path: Path) -> None:
    case = CASES["on-policy"]
    trainer = grpo_trainer(
        load_model(checkpoint), case.ours, max_tokens_per_microbatch=max_tokens_per_microbatch, **GRADIENT_NORM
    )
    update = trainer.update([ScoredTrajectory(samples=(s,), advantages=(a,)) for s, a in zip(SAMPLES, ADVANTAGES, strict=True)])
    their_loss, theirs = trl_loss(case, world(checkpoint, case), checkpoint, tmp_path)
    assert update is not None
    assert update.loss == pytest.approx(their_loss, rel=1e-4, abs=1e-6)
    assert update.gradient_norm == pytest.approx(float(theirs.norm()), rel=1e-4)


def test_sft_learns_the_tokens_that_trl_learns_with_the_same_loss(checkpoint: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    args = trl.SFTConfig(
        output_dir=str(tmp_path),
        assistant_only_loss=True,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))])
    encoded = encode_rows([(str(i), row) for i, row in enumerate(ROWS)], load_tokenizer(str(checkpoint)), max_tokens=1000)
    assert not encoded.dropped
    for ids, labels, sample in zip(batch["input_ids"], batch["labels"], encoded.samples, strict=True):
        size = len(sample.token_ids)  # ours ends with the last turn; TRL's has the line break behind it too
        assert ids[:size].tolist() == list(sample.token_ids)
        assert [int(label != -100) for label in labels] == list(sample.loss_mask) + [0] * (len(labels) - size)

    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    their_loss = trainer.compute_loss(trainer.model, batch)
    their_loss.backward()
    model = load_model(checkpoint)
    assert mean_loss(model, encoded.samples) == pytest.approx(float(their_loss.detach()), rel=1e-4)
    whole = collate(encoded.samples)
    (-score_tokens(model, whole).logp.sum() / whole.num_tokens).backward()
    torch.testing.assert_close(gradient(model), gradient(trainer.model), rtol=1e-4, atol=1e-5)
