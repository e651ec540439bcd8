"""Pins that what rows have in common is computed once, and that nobody can tell from the result:

- a group of n attempts at one prompt computes the prompt once and each attempt's own tokens; so do groups of groups, repeated
  rows and rows in any order; what stands behind the last token that counts is not computed
- log-probabilities, entropies and gradients are those of the plain padded pass, with grouped heads, sliding windows, LoRA and
  recomputed activations too; a row does not see its neighbours
- passes hold rows that begin alike, each token counted once, and no more of all rows than attention has room for
- a model whose attention is not torch's is run padded, and says so in its padding
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tau2rl.config.training import LoraConfig
from tau2rl.train.engine.forward import REPEATS, Work, collate, cut, micro_batches, padded_batches, score_tokens
from tau2rl.train.engine.shared_prefix import ATTENTION, attends, bundles, switch_on
from tau2rl.train.model import save_memory, with_lora
from tau2rl.train.tiny import create
from tau2rl.types import TrainingSample
from tests.unit.train.tiny import SHAPE, VOCAB, gradient, sample, sliding_model, tiny_model

SYSTEM = tuple(random.Random(0).randrange(2, VOCAB) for _ in range(30))
PROMPTS = [(*SYSTEM, 5 + i, *(random.Random(i).randrange(2, VOCAB) for _ in range(9))) for i in range(3)]  # 40 tokens each


def attempts(prompt: Sequence[int], lengths: Sequence[int], *, seed: int = 0) -> list[TrainingSample]:
    """Rows that part right behind the prompt: their first tokens differ."""
    rows = [sample(n - 1, seed=seed + i, shared=(*prompt, 2 + i)) for i, n in enumerate(lengths)]
    return [replace(r, loss_mask=(*r.loss_mask[: len(prompt)], 1, *r.loss_mask[len(prompt) + 1 :])) for r in rows]


def work(rows: Sequence[TrainingSample], model: nn.Module | None = None) -> Work:
    with torch.no_grad():
        return score_tokens(model or tiny_model(), collate(rows)).work


def test_a_groups_prompt_is_computed_once() -> None:
    lengths = [10, 12, 14, 16, 18, 20, 22, 24]
    assert work(attempts(PROMPTS[0], lengths)).computed == 40 + sum(lengths)
    assert work(attempts(PROMPTS[0], lengths)).tokens == 8 * 40 + sum(lengths)


def test_what_groups_have_in_common_is_computed_once_whatever_the_order() -> None:
    rows = [row for i, prompt in enumerate(PROMPTS) for row in attempts(prompt, [10, 11, 12], seed=10 * i)]
    mixed = random.Random(1).sample(rows, len(rows))
    assert work(rows).computed == work(mixed).computed == 30 + 3 * 10 + 3 * (10 + 11 + 12)


def test_a_repeated_row_costs_nothing() -> None:
    one = attempts(PROMPTS[0], [15])
    assert work(one * 4).computed == work(one).computed == 55


def test_what_stands_behind_the_last_token_that_counts_is_not_computed() -> None:
    row = TrainingSample(token_ids=tuple(range(2, 22)), loss_mask=(0, 0, 1, *[0] * 17), logprobs=None, turn_spans=((2, 3),))
    assert work([row]) == Work(tokens=3, computed=3, padding=0)


def mixture() -> list[TrainingSample]:
    """Groups, a row that goes on where another ends, a repeated one, one that shares nothing, one of two tokens; in disorder."""
    rows = [row for i, prompt in enumerate(PROMPTS) for row in attempts(prompt, [10, 25, 60], seed=10 * i)]
    longer = sample(20, seed=90, shared=rows[0].token_ids)
    rows += [longer, rows[4], sample(33, seed=91), sample(1, seed=92, shared=(3,))]
    return random.Random(2).sample(rows, len(rows))


def grouped_heads() -> nn.Module:
    shape = SHAPE.model_copy(update={"heads": 4})
    model = create(shape, vocab_size=VOCAB, seed=0, eos_token_id=1, pad_token_id=0, kv_heads=2)
    switch_on(model)
    return model


def low_rank() -> nn.Module:
    torch.manual_seed(0)
    return with_lora(tiny_model(), LoraConfig(rank=2, alpha=4))  # type: ignore[arg-type]


def recomputing() -> nn.Module:
    model = tiny_model()
    save_memory(model)
    return model


def learned(model: nn.Module, rows: Sequence[TrainingSample], *, share: bool) -> tuple[Tensor, Tensor, Tensor]:
    model.train()
    scores = score_tokens(model, collate(rows), temperature=0.8, entropy="gradient", share=share)
    assert scores.entropy is not None
    (scores.logp * torch.linspace(-1, 1, scores.logp.numel()).view_as(scores.logp) + scores.entropy).sum().backward()
    return scores.logp.detach(), scores.entropy.detach(), gradient(model)


@pytest.mark.parametrize("make", [tiny_model, grouped_heads, sliding_model, low_rank, recomputing])
def test_sharing_changes_neither_scores_nor_gradients(make: Callable[[], nn.Module]) -> None:
    rows = mixture()
    shared, plain = learned(make(), rows, share=True), learned(make(), rows, share=False)
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
    assert work(rows, make()).computed < 0.7 * work(rows).tokens


def test_a_row_does_not_see_its_neighbours() -> None:
    rows = mixture()
    together = score_tokens(tiny_model(), collate(rows)).logp.detach()
    for i, row in enumerate(rows):
        alone = score_tokens(tiny_model(), collate([row])).logp.detach()[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_nothing_that_counts_is_nothing() -> None:
    row = TrainingSample(token_ids=(2, 3, 4), loss_mask=(0, 0, 0), logprobs=None, turn_spans=())
    assert score_tokens(tiny_model(), collate([row])).logp.tolist() == [[0.0, 0.0, 0.0]]


def test_a_model_with_an_attention_of_its_own_is_run_padded() -> None:
    model: Any = tiny_model()
    model.set_attn_implementation("eager")
    rows = attempts(PROMPTS[0], [10, 20])
    assert not attends(model)
    assert work(rows, model) == Work(tokens=50 + 60, computed=2 * 60, padding=10)
    assert cut(model, rows, max_tokens=100) == [[0], [1]]
    torch.testing.assert_close(
        score_tokens(model, collate(rows)).logp, score_tokens(tiny_model(), collate(rows)).logp, rtol=1e-4, atol=1e-4
    )


def test_a_checkpoint_does_not_know_of_our_attention() -> None:
    model: Any = tiny_model()
    assert attends(model)
    assert model.config._attn_implementation == ATTENTION
    assert ATTENTION not in model.config.to_json_string(use_diff=False)


def test_a_pass_holds_rows_that_begin_alike_and_counts_each_token_once() -> None:
    rows = [row.token_ids for i, prompt in enumerate(PROMPTS) for row in attempts(prompt, [10, 10, 10], seed=10 * i)]
    mixed = random.Random(3).sample(range(9), 9)
    groups = micro_batches([rows[i] for i in mixed], max_tokens=70)  # a prompt of 40 and three times 10
    assert sorted(sorted(mixed[i] // 3 for i in group) for group in groups) == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert sorted(chain(*groups)) == list(range(9))


def test_a_pass_holds_no_more_of_all_rows_than_attention_has_room_for() -> None:
    groups = micro_batches([tuple(range(10))] * 100, max_tokens=10)
    assert {len(g) for g in groups[:-1]} == {REPEATS}


def test_padded_passes_hold_every_index_and_no_more_than_allowed() -> None:
    lengths = [3, 50, 4, 49, 200, 5]
    groups = padded_batches(lengths, max_tokens=100)
    assert sorted(chain(*groups)) == list(range(6))
    assert all(len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 100 for g in groups)


def test_rows_look_together_where_padding_costs_less_than_another_call() -> None:
    assert bundles([0] * 4, [100, 101, 102, 1000]) == [[0, 1, 2], [3]]
    assert bundles([0, 998, 999], [1000, 1000, 1000]) == [[0], [1, 2]]  # short ends, which need not answer for a whole row
    assert bundles([0, 1000], [1000, 1000]) == [[0]]  # nothing to ask
