"""Pins batched sampling:

- log-probabilities equal those of one full forward pass over the same tokens, in layers with a sliding window too
- greedy output equals transformers' own `generate`
- a request's result does not depend on who shares the batch, on slots, or on kept keys and values
- a turn costs its new tokens, a group's prompt is computed once; new weights forget the old ones' keys and values
- top-k, top-p, temperature and stop tokens do what they say, and the draws follow the distribution
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn

from tau2rl.config import SamplingConfig
from tau2rl.train.engine.generator import SampleRequest, TokenGenerator
from tau2rl.types import FinishReason
from tests.unit.train.tiny import SAMPLING, VOCAB, sliding_model, tiny_model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model()


def prompt(length: int, seed: int) -> list[int]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (length,), generator=g).tolist()


def request(
    tokens: list[int],
    *,
    seed: int = 0,
    session: str = "s",
    max_tokens: int = 12,
    sampling: SamplingConfig | None = None,
    stop_token_ids: tuple[int, ...] = (),
    stop: tuple[str, ...] = (),
) -> SampleRequest:
    return SampleRequest(
        session=session,
        prompt=tokens,
        sampling=sampling or SAMPLING,
        seed=seed,
        max_tokens=max_tokens,
        stop_token_ids=stop_token_ids,
        stop=stop,
    )


def crowd(count: int, **changes: int) -> list[SampleRequest]:
    return [request(prompt(3 + 5 * i % 17, seed=i), seed=i, session=f"s{i}", **changes) for i in range(count)]


@torch.no_grad()
def full_logprobs(model: nn.Module, tokens: list[int], output: tuple[int, ...], temperature: float = 1.0) -> list[float]:
    logits = model(input_ids=torch.tensor([tokens + list(output)])).logits[0] / temperature
    logp = logits.log_softmax(-1)
    return [float(logp[len(tokens) + i - 1, t]) for i, t in enumerate(output)]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_those_of_a_full_forward_pass(model: nn.Module, temperature: float) -> None:
    requests = [
        request(prompt(n, seed=n), seed=n, session=str(n), sampling=SamplingConfig(temperature=temperature)) for n in (1, 4, 30)
    ]
    for r, done in zip(requests, TokenGenerator(model, slots=4).run(requests), strict=True):
        assert done.logprobs == pytest.approx(full_logprobs(model, r.prompt, done.token_ids, temperature), abs=1e-4)


def test_slots_are_refused_to_a_model_on_which_they_are_not_proved() -> None:
    model = sliding_model()
    model.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="proved"):
        TokenGenerator(model)


def test_layers_with_a_sliding_window_see_no_further() -> None:
    model = sliding_model()
    lengths = [12, 3, 12]  # of turns: the slot between the others is soon one that asks nothing
    asks = [request(prompt(20 + i, seed=i), seed=i, session=str(i), max_tokens=n) for i, n in enumerate(lengths)]
    for ask, done in zip(asks, TokenGenerator(model, slots=3).run(asks), strict=True):
        assert done.logprobs == pytest.approx(full_logprobs(model, ask.prompt, done.token_ids), abs=1e-4)


def test_greedy_is_transformers_own_greedy(model: nn.Module) -> None:
    tokens = prompt(9, seed=3)
    want = model.generate(torch.tensor([tokens]), max_new_tokens=10, do_sample=False, eos_token_id=None)[0, 9:].tolist()  # type: ignore[operator]
    done = TokenGenerator(model).run([request(tokens, max_tokens=10, sampling=SamplingConfig(temperature=0.0))])[0]
    assert list(done.token_ids) == want


def test_company_does_not_change_what_is_sampled(model: nn.Module) -> None:
    alone = [TokenGenerator(model, slots=1).run([r])[0].token_ids for r in crowd(12)]
    together = [c.token_ids for c in TokenGenerator(model, slots=12).run(crowd(12))]
    few_slots = [c.token_ids for c in TokenGenerator(model, slots=3).run(crowd(12))]
    tight = [c.token_ids for c in TokenGenerator(model, slots=12, prefill_tokens=8).run(crowd(12))]
    assert alone == together == few_slots == tight


def test_a_turn_costs_its_new_tokens_and_samples_the_same(model: nn.Module) -> None:
    generator = TokenGenerator(model, slots=2)
    first = request(prompt(20, seed=1), session="a")
    said = generator.run([first])[0].token_ids
    second = [*first.prompt, *said, *prompt(5, seed=2)]
    kept = generator.run([request(second, session="a", seed=9)])[0]
    fresh = TokenGenerator(model).run([request(second, session="a", seed=9)])[0]
    assert kept.token_ids == fresh.token_ids
    assert kept.logprobs == pytest.approx(fresh.logprobs, abs=1e-5)
    assert (first.cached, fresh.usage.cached_tokens) == (0, 0)
    assert kept.usage.cached_tokens == 20 + len(said) - 1  # the last sampled token was never fed


def test_a_changed_history_is_computed_again_from_where_it_differs(model: nn.Module) -> None:
    generator = TokenGenerator(model, slots=2)
    tokens = prompt(20, seed=1)
    generator.run([request(tokens, session="a")])
    changed = [*tokens[:8], (tokens[8] + 1) % VOCAB, *tokens[9:]]
    again = generator.run([request(changed, session="a", seed=4)])[0]
    assert again.usage.cached_tokens == 8
    assert again.token_ids == TokenGenerator(model).run([request(changed, seed=4)])[0].token_ids


def test_a_beginning_shared_between_conversations_is_computed_once(model: nn.Module) -> None:
    generator = TokenGenerator(model, slots=4)
    head = prompt(30, seed=5)
    generator.run([request([*head, 3, 4], session="a")])
    other = generator.run([request([*head, 7, 8], session="b", seed=2)])[0]
    assert other.usage.cached_tokens == 30
    assert other.token_ids == TokenGenerator(model).run([request([*head, 7, 8], session="b", seed=2)])[0].token_ids


def test_a_group_computes_its_common_prompt_once(model: nn.Module) -> None:
    head = prompt(50, seed=5)
    asks = [request([*head, 2 + i, *prompt(i, seed=i)], session=str(i), seed=i, max_tokens=1) for i in range(8)]
    generator = TokenGenerator(model, slots=8)
    together = generator.run(asks)
    assert generator.computed == 50 + sum(1 + i for i in range(8))
    assert [c.usage.cached_tokens for c in together] == [0] + 7 * [50]
    alone = [TokenGenerator(model).run([request(a.prompt, seed=a.seed, max_tokens=1)])[0] for a in asks]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_groups_compute_what_they_have_in_common_once(model: nn.Module) -> None:
    system = prompt(40, seed=6)
    tasks = [[*system, 2 + task, *prompt(19, seed=task)] for task in range(3)]
    asks = [request([*tasks[i % 3], 2 + i], session=str(i), seed=i, max_tokens=1) for i in range(12)]
    generator = TokenGenerator(model, slots=12)
    generator.run(asks)
    assert generator.computed == 40 + 3 * 20 + 12


def test_the_same_prompt_again_costs_its_last_token(model: nn.Module) -> None:
    generator = TokenGenerator(model, slots=8)
    generator.run([request(prompt(50, seed=5), session=str(i), seed=i, max_tokens=1) for i in range(8)])
    assert generator.computed == 50 + 7


def test_a_conversation_of_ten_turns_is_computed_once(model: nn.Module) -> None:
    generator, text = TokenGenerator(model, slots=1), prompt(20, seed=1)
    for turn in range(10):
        text += generator.run([request(list(text), seed=turn, max_tokens=6)])[0].token_ids
        text += prompt(5, seed=turn)
    # 20 tokens of the prompt, 6 sampled and 5 heard a turn; of the last turn, 5 heard and the last one sampled were not fed
    assert generator.computed == 20 + 10 * (6 + 5) - (5 + 1)


def test_a_slot_that_changes_hands_keeps_the_beginning(model: nn.Module) -> None:
    head, generator = prompt(30, seed=5), TokenGenerator(model, slots=1)
    generator.run([request([*head, 3, 4], session="a", max_tokens=1)])
    other = generator.run([request([*head, 7, 8], session="b", seed=2)])[0]
    assert other.usage.cached_tokens == 30
    assert other.token_ids == TokenGenerator(model).run([request([*head, 7, 8], session="b", seed=2)])[0].token_ids


def test_who_leaves_early_does_not_disturb_those_beside_it(model: nn.Module) -> None:
    lengths = [3, 12, 1, 9, 12, 2]  # slots in use are soon apart
    asks = [request(prompt(4 + i, seed=i), session=str(i), seed=i, max_tokens=n) for i, n in enumerate(lengths)]
    together = TokenGenerator(model, slots=6).run(asks)
    for ask, done in zip(asks, together, strict=True):
        alone = TokenGenerator(model).run([request(ask.prompt, seed=ask.seed, max_tokens=ask.max_tokens)])[0]
        assert done.token_ids == alone.token_ids
        assert done.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_new_weights_start_with_an_empty_cache() -> None:
    model = tiny_model(seed=1)
    generator = TokenGenerator(model)
    ask = request(prompt(10, seed=0), session="a", sampling=SamplingConfig(temperature=0.0))
    generator.run([ask])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    generator.clear_cache()
    again = request(ask.prompt, session="a", sampling=ask.sampling)
    done = generator.run([again])[0]
    assert done.usage.cached_tokens == 0
    assert done.token_ids == TokenGenerator(model).run([request(ask.prompt, sampling=ask.sampling)])[0].token_ids


def test_weights_must_not_change_under_a_turn(model: nn.Module) -> None:
    generator = TokenGenerator(model)
    generator.add(request(prompt(4, seed=0)))
    generator.step()
    with pytest.raises(RuntimeError, match="weights changed"):
        generator.clear_cache()


def test_an_abandoned_request_leaves_the_batch(model: nn.Module) -> None:
    generator = TokenGenerator(model)
    one, two = request(prompt(4, seed=0), session="a"), request(prompt(4, seed=1), session="b")
    generator.add(one)
    generator.add(two)
    generator.step()
    one.abandoned = True
    assert one in generator.step()
    while generator.busy:
        generator.step()
    assert one.result is None
    assert two.result is not None


def test_a_stop_token_ends_the_turn_and_stays_in_it(model: nn.Module) -> None:
    free = TokenGenerator(model).run([request(prompt(6, seed=2), max_tokens=20)])[0]
    stop = free.token_ids[3]
    done = TokenGenerator(model).run([request(prompt(6, seed=2), max_tokens=20, stop_token_ids=(stop,))])[0]
    assert done.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert (done.finish_reason, free.finish_reason) == (FinishReason.STOP, FinishReason.LENGTH)


def test_a_stop_token_that_is_the_last_one_allowed_is_a_limit_as_it_is_for_sglang(model: nn.Module) -> None:
    free = TokenGenerator(model).run([request(prompt(6, seed=2), max_tokens=20)])[0]
    room = free.token_ids.index(free.token_ids[3]) + 1
    done = TokenGenerator(model).run([request(prompt(6, seed=2), max_tokens=room, stop_token_ids=(free.token_ids[3],))])[0]
    assert (done.token_ids, done.finish_reason) == (free.token_ids[:room], FinishReason.LENGTH)


def test_a_stop_string_ends_the_turn(model: nn.Module) -> None:
    def letters(ids: object) -> str:
        return "".join(chr(65 + i) for i in ids)  # type: ignore[attr-defined]

    free = TokenGenerator(model).run([request(prompt(6, seed=2), max_tokens=20)])[0]
    text = letters(free.token_ids)
    ask = request(prompt(6, seed=2), max_tokens=20, stop=(text[4:6],))
    done = TokenGenerator(model, decode=letters).run([ask])[0]
    assert letters(done.token_ids) == text[: text.index(text[4:6]) + 2]


def first_tokens(model: nn.Module, sampling: SamplingConfig, count: int) -> Counter[int]:
    asks = [request(prompt(5, seed=7), seed=i, session=str(i), max_tokens=1, sampling=sampling) for i in range(count)]
    return Counter(c.token_ids[0] for c in TokenGenerator(model, slots=64).run(asks))


@torch.no_grad()
def distribution(model: nn.Module) -> torch.Tensor:
    return model(input_ids=torch.tensor([prompt(5, seed=7)])).logits[0, -1].softmax(-1)


def test_draws_follow_the_distribution(model: nn.Module) -> None:
    count = 4000
    p = distribution(model)
    found = first_tokens(model, SAMPLING, count)
    chi_square = sum((found[t] - count * float(p[t])) ** 2 / (count * float(p[t])) for t in range(VOCAB))
    assert chi_square < 80  # 39 degrees of freedom: exceeded once in ten thousand


def test_top_k_and_top_p_keep_the_likeliest_and_renormalise(model: nn.Module) -> None:
    p, order = distribution(model).sort(descending=True)
    assert set(first_tokens(model, SamplingConfig(temperature=1.0, top_k=3), 200)) == set(order[:3].tolist())
    reach = int((p.cumsum(0) < 0.5).sum()) + 1  # the smallest set with at least half of the mass
    assert set(first_tokens(model, SamplingConfig(temperature=1.0, top_p=0.5), 400)) == set(order[:reach].tolist())
    done = TokenGenerator(model).run(
        [request(prompt(5, seed=7), max_tokens=1, sampling=SamplingConfig(temperature=1.0, top_k=2))]
    )[0]
    rank = order.tolist().index(done.token_ids[0])
    assert done.logprobs is not None
    assert done.logprobs[0] == pytest.approx(math.log(float(p[rank] / p[:2].sum())), abs=1e-4)


def test_an_empty_prompt_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        TokenGenerator(model).add(request([]))
