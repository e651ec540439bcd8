"""From scores to the gradient, whole, against the formulas written out in float64; pinned here:

- for every estimator and every option of the loss, `reward/advantages.py` and `GRPOTrainer.update` give the loss, and the
  gradient of every weight, that the formulas give; nothing is shared: advantages, forward pass and loss are done again by hand
- an episode whose advantage is 0 is part of the batch that means are taken over; one without evidence is not
- the cut into micro-batches and the order of groups and of their members change neither
- a bandit, its rewards turned into advantages by each estimator, finds the arm that pays best
"""

from __future__ import annotations

import copy
import functools
import math
import random
import statistics
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tau2rl.config import AlgoConfig
from tau2rl.reward.advantages import TRAJECTORY_ESTIMATORS, TURN_ESTIMATORS, trajectory_advantages, turn_advantages
from tau2rl.train.engine.generator import SampleRequest, TokenGenerator
from tau2rl.train.trainer import ScoredTrajectory, Update
from tau2rl.types import TrainingSample
from tests.unit.train.tiny import SAMPLING, VOCAB, algo_config, gradient, grpo_trainer, tiny_model

ESTIMATORS = (*TRAJECTORY_ESTIMATORS, *TURN_ESTIMATORS)
GAMMA, WEIGHT, EPS = 0.9, 0.3, 1e-6
# [group][member]: the outcome, None where the world broke, and the rewards of its turns. Both groups have a member in the middle,
# whose trajectory advantage is 0.
GROUPS: list[list[tuple[float | None, list[float]]]] = [
    [(1.0, [0.0, 1.0, 1.0]), (0.0, [0.0, -0.1, 0.0]), (None, [0.5]), (0.5, [0.0, 0.75])],
    [(0.0, [0.2]), (0.6, [0.1, 0.4]), (0.3, [0.2, -0.3])],
]
ORDER = [(g, m) for g, group in enumerate(GROUPS) for m, (outcome, _) in enumerate(group) if outcome is not None]


def conversation(group: int, member: int) -> TrainingSample:
    """As many turns as it has rewards, with something from the environment before each."""
    rng, mask, spans = random.Random(f"{group}/{member}"), list[int](), list[tuple[int, int]]()
    for _ in GROUPS[group][member][1]:
        mask += [0] * rng.randrange(2, 5)
        turn = rng.randrange(1, 4)
        spans.append((len(mask), len(mask) + turn))
        mask += [1] * turn
    ids = tuple(rng.randrange(2, VOCAB) for _ in mask)
    with torch.no_grad():
        table = tiny_model()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    sampled = [float(table[t - 1, ids[t]]) + rng.uniform(-0.4, 0.4) if on else 0.0 for t, on in enumerate(mask)]
    return TrainingSample(token_ids=ids, loss_mask=tuple(mask), logprobs=tuple(sampled), turn_spans=tuple(spans))


@functools.cache
def samples() -> dict[tuple[int, int], TrainingSample]:
    """(group, member) -> its conversation, without the member that is no evidence."""
    return {key: conversation(*key) for key in ORDER}


def reference() -> nn.Module:
    """A frozen policy not far from the trained one."""
    model, g = copy.deepcopy(tiny_model()), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=g))
    return model


# --- by hand ----------------------------------------------------------------------------------------------------------


def normal(values: Sequence[float]) -> list[float]:
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    return [(v - mean) / (deviation + EPS) if deviation else 0.0 for v in values]


def advantages_by_hand(estimator: str) -> dict[tuple[int, int], list[float]]:
    """(group, member) -> the advantage of each of its turns."""
    found: dict[tuple[int, int], list[float]] = {}
    for g, group in enumerate(GROUPS):
        live = [(m, outcome, rewards) for m, (outcome, rewards) in enumerate(group) if outcome is not None]
        outcomes = [o for _, o, _ in live]
        returns = [
            [sum(GAMMA ** (j - k) * r[j] for j in range(k, len(r))) + GAMMA ** (len(r) - k) * o for k in range(len(r))]
            for _, o, r in live
        ]

        def at(rows: list[list[float]], i: int, k: int) -> float:
            """Member i's value at turn k, normalised among the members that have such a turn."""
            there = [j for j, row in enumerate(rows) if len(row) > k]
            return normal([rows[j][k] for j in there])[there.index(i)]

        for i, (m, outcome, rewards) in enumerate(live):
            others = [o for j, o in enumerate(outcomes) if j != i]
            turns, last = range(len(rewards)), len(rewards)
            whole = normal(outcomes)[i]
            all_rewards = [r for _, _, r in live]
            found[g, m] = {
                "grpo": [whole] * last,
                "dr_grpo": [outcome - statistics.fmean(outcomes)] * last,
                "rloo": [outcome - statistics.fmean(others)] * last,
                "mt_grpo": [whole + sum(at(all_rewards, i, j) for j in range(k, last)) for k in turns],
                "gtpo": [at(returns, i, k) for k in turns],
                "mt_gtpo": [at(returns, i, k) + WEIGHT * whole for k in turns],
            }[estimator]
    return found


def weight_by_hand(spec: AlgoConfig, logps: dict[int, float], sampled: dict[int, float], t: int) -> float:
    """What a sampled token's loss is multiplied by, for the sampler's sake."""
    apart = {u: logps[u] - sampled[u] for u in logps}
    w = {
        "token": math.exp(apart[t]),
        "sequence": math.exp(sum(apart.values())),
        "geometric": math.exp(statistics.fmean(apart.values())),
    }[spec.correction_level]
    low, high = spec.correction_low, spec.correction_high
    if spec.veto is not None and spec.correction != "none" and min(apart.values()) < math.log(spec.veto):
        return 0.0
    return {"none": 1.0, "tis": min(w, high), "clip": max(low, min(w, high)), "mis": w if low <= w <= high else 0.0}[
        spec.correction
    ]


def loss_by_hand(spec: AlgoConfig, estimator: str, model: nn.Module) -> Tensor:
    """The loss of the whole batch, conversation by conversation and token by token, in float64."""
    frozen, advantage_of = reference().double(), advantages_by_hand(estimator)
    count = sum(sum(s.loss_mask) for s in samples().values())
    total = torch.zeros((), dtype=torch.float64)
    for key, sample in samples().items():
        ids = torch.tensor([sample.token_ids])
        table = model(input_ids=ids).logits[0].log_softmax(-1)
        with torch.no_grad():
            bare = frozen(input_ids=ids).logits[0].log_softmax(-1)
        turn_of = {t: k for k, (start, end) in enumerate(sample.turn_spans) for t in range(start, end)}
        logp = {t: table[t - 1, sample.token_ids[t]] for t in turn_of}
        own = {t: float(value.detach()) for t, value in logp.items()}
        assert sample.logprobs is not None
        sampled = {t: sample.logprobs[t] for t in turn_of}
        together = torch.stack([logp[t] - own[t] for t in turn_of]).mean()
        for t, k in turn_of.items():
            ratio = torch.exp(together if spec.ratio == "sequence" else logp[t] - own[t])  # 1, with the gradient of logp
            d = bare[t - 1, sample.token_ids[t]] - logp[t]
            kl = {"k2": d * d / 2, "k3": torch.exp(d) - 1 - d}[spec.kl]
            spread = -(table[t - 1].exp() * table[t - 1]).sum()
            policy = -advantage_of[key][k] * ratio * weight_by_hand(spec, own, sampled, t)
            share = {
                "token-mean": count,
                "seq-mean": len(turn_of) * len(samples()),
                "constant": spec.loss_scale * len(samples()),
            }[spec.loss_aggregation]
            total = total + (policy + spec.kl_coef * kl - spec.entropy_coef * spread) / share
    return total


# --- ours -------------------------------------------------------------------------------------------------------------


def trajectories(estimator: str) -> list[ScoredTrajectory]:
    """What the loop would hand to the trainer."""
    constants = {"estimator": estimator, "gamma": GAMMA, "outcome_weight": WEIGHT}
    spec, found = AlgoConfig().model_copy(update=constants), list[ScoredTrajectory]()
    for g, group in enumerate(GROUPS):
        outcomes = [outcome for outcome, _ in group]
        if estimator in TURN_ESTIMATORS:
            rows = turn_advantages([rewards for _, rewards in group], outcomes, spec)
        else:
            rows = [None if a is None else [a] for a in trajectory_advantages(outcomes, spec)]
        found += [
            ScoredTrajectory(samples=(samples()[g, m],), advantages=tuple(row)) for m, row in enumerate(rows) if row is not None
        ]
    return found


def update(
    spec: AlgoConfig, batch: Sequence[ScoredTrajectory], *, max_tokens_per_microbatch: int = 8192
) -> tuple[Update, Tensor]:
    """What an update reports, and the gradient that it took."""
    model = tiny_model()
    trainer = grpo_trainer(
        model,
        spec,
        reference=reference(),
        max_tokens_per_microbatch=max_tokens_per_microbatch,
        lr=1e-3,
        steps=1,
        warmup_steps=0,
        max_grad_norm=0.0,
    )
    done = trainer.update(batch)
    assert done is not None
    return done, gradient(model)


OPTIONS = {
    "token-mean": algo_config(),
    "seq-mean": algo_config(loss_aggregation="seq-mean"),
    "constant": algo_config(loss_aggregation="constant", loss_scale=7),
    "sequence ratio": algo_config(ratio="sequence", loss_aggregation="seq-mean"),
    "kl k2": algo_config(kl_coef=0.3, kl="k2", loss_aggregation="seq-mean"),
    "kl k3": algo_config(kl_coef=0.3, kl="k3"),
    "entropy": algo_config(entropy_coef=0.2),
    "tis": algo_config(correction="tis", correction_high=1.1),
    "tis by sequence": algo_config(correction="tis", correction_level="sequence", correction_high=1.1),
    "mis": algo_config(correction="mis", correction_low=0.8, correction_high=1.2),
    "mis, geometric": algo_config(correction="mis", correction_level="geometric", correction_low=0.9, correction_high=1.1),
    "clip": algo_config(correction="clip", correction_low=0.9, correction_high=1.1, kl_coef=0.1),
    "veto": algo_config(correction="tis", veto=0.75),
    "all of it": algo_config(
        ratio="sequence", loss_aggregation="constant", loss_scale=7, kl_coef=0.1, kl="k2", entropy_coef=0.1,
        correction="clip", correction_level="geometric", correction_low=0.9, correction_high=1.1, veto=0.68,
    ),
}  # fmt: skip


WITH_ALL = ("token-mean", "sequence ratio", "all of it")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_advantages_are_those_of_the_formulas(estimator: str) -> None:
    by_hand = advantages_by_hand(estimator)
    for key, one in zip(ORDER, trajectories(estimator), strict=True):
        wide = one.advantages * len(by_hand[key]) if estimator in TRAJECTORY_ESTIMATORS else one.advantages
        assert list(wide) == pytest.approx(by_hand[key], abs=1e-12)


# One estimator of trajectories and one of turns with every option; the others, which the loss cannot tell from these, with three.
PAIRS = [(e, name) for e in ESTIMATORS for name in OPTIONS if e in ("grpo", "mt_gtpo") or name in WITH_ALL]


@pytest.mark.parametrize(("estimator", "name"), PAIRS)
def test_loss_and_gradient_are_those_of_the_formulas(estimator: str, name: str) -> None:
    model = tiny_model().double()
    want = loss_by_hand(OPTIONS[name], estimator, model)
    want.backward()
    done, found = update(OPTIONS[name], trajectories(estimator))
    assert done.loss == pytest.approx(float(want.detach()), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(found.double(), gradient(model), rtol=1e-4, atol=1e-5)
    assert done.gradient_norm == pytest.approx(float(gradient(model).norm()), rel=1e-5)


def test_every_option_moves_the_gradient() -> None:
    """The comparison above would not notice an option that nothing reads."""
    plain = update(algo_config(), trajectories("mt_gtpo"))[1]
    same = [
        n for n, spec in OPTIONS.items() if n != "token-mean" and torch.equal(update(spec, trajectories("mt_gtpo"))[1], plain)
    ]
    assert same == []


def test_an_episode_with_an_advantage_of_zero_is_part_of_every_mean() -> None:
    average = [i for i, one in enumerate(trajectories("dr_grpo")) if not any(one.advantages)]
    assert average == [2, 5]  # what scored .5 of (1, 0, .5) and .3 of (0, .6, .3)
    without = [one for i, one in enumerate(trajectories("dr_grpo")) if i not in average]
    share = sum(sum(one.samples[0].loss_mask) for one in without) / sum(sum(s.loss_mask) for s in samples().values())
    whole, part = update(algo_config(), trajectories("dr_grpo"))[0], update(algo_config(), without)[0]
    assert whole.policy_loss == pytest.approx(share * part.policy_loss, rel=1e-5)


@pytest.mark.parametrize("name", WITH_ALL)
@pytest.mark.parametrize("estimator", ["grpo", "mt_gtpo"])
def test_neither_the_cut_nor_the_order_matters(estimator: str, name: str) -> None:
    batch, spec = trajectories(estimator), OPTIONS[name]
    whole, want = update(spec, batch)
    mixed = [batch[i] for i in (4, 1, 5, 0, 3, 2)]  # groups and members
    for other in (
        update(spec, batch, max_tokens_per_microbatch=25),
        update(spec, batch, max_tokens_per_microbatch=1),
        update(spec, mixed),
    ):
        assert other[0].loss == pytest.approx(whole.loss, rel=1e-5, abs=1e-7)
        torch.testing.assert_close(other[1], want, rtol=1e-4, atol=1e-6)


# --- a bandit ---------------------------------------------------------------------------------------------------------

ARMS = {4: 0.0, 9: 0.3, 17: 1.0}  # token -> chance of a reward; every other token pays nothing
PULLS, SIZE = 64, 8


def pulled(model: nn.Module, round_: int, estimator: str) -> list[ScoredTrajectory]:
    """One batch: the first sampled token is the arm, a group is eight pulls."""
    asks = [
        SampleRequest(session=f"{i}", prompt=[2, 3], sampling=SAMPLING, seed=PULLS * round_ + i, max_tokens=1)
        for i in range(PULLS)
    ]
    done, coin = TokenGenerator(model, slots=PULLS).run(asks), random.Random(round_)
    paid = [float(coin.random() < ARMS.get(c.token_ids[0], 0.0)) for c in done]
    spec, found = AlgoConfig(estimator=estimator), list[ScoredTrajectory]()
    for first in range(0, PULLS, SIZE):
        group = paid[first : first + SIZE]
        if estimator in TURN_ESTIMATORS:
            advantages = [row or [0.0] for row in turn_advantages([[r] for r in group], group, spec)]
        else:
            advantages = [[a or 0.0] for a in trajectory_advantages(group, spec)]
        if not any(any(row) for row in advantages):  # as the loop leaves out a group without a signal
            continue
        for completion, row in zip(done[first : first + SIZE], advantages, strict=True):
            sample = TrainingSample(
                token_ids=(2, 3, *completion.token_ids),
                loss_mask=(0, 0, 1),
                logprobs=(0.0, 0.0, *(completion.logprobs or ())),
                turn_spans=((2, 3),),
            )
            found.append(ScoredTrajectory(samples=(sample,), advantages=tuple(row)))
    return found


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_bandit_reaches_its_best_arm_by_every_estimator(estimator: str) -> None:
    model = tiny_model()
    trainer = grpo_trainer(model)
    for round_ in range(30):
        trainer.update(pulled(model, round_, estimator))
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([[2, 3]])).logits[0, -1].softmax(-1)
    assert int(chances.argmax()) == 17
    assert float(chances[17]) > 0.9
