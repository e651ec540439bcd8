"""Pins the policy-gradient loss:

- loss and gradient of every option, alone and with any others, equal a reference written out token by token in float64
- masked tokens have exactly zero gradient
- the loss does not depend on how the batch is cut or ordered
- numbers that can be worked out on paper: clipping, dual clip, KL estimators, corrections
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tau2rl.config import AlgoConfig
from tau2rl.train.losses import Totals, correction_weights, kl_estimate, mismatch, policy_loss
from tests.unit.train.tiny import algo_config

B, T = 4, 7


def batch(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(B, T, generator=g, dtype=torch.float64)

    mask = (torch.rand(B, T, generator=g) < 0.6).double()
    mask[:, 1] = 1.0
    mask[0] = torch.tensor([0, 1, 0, 0, 0, 0, 0], dtype=torch.float64)  # a sequence of one token
    logp = -noise(1.0).abs()
    return {
        "logp": logp,
        "old_logp": logp + noise(0.4),
        "rollout_logp": logp + noise(0.5),
        "ref_logp": logp + noise(0.5),
        "entropy": noise(1.0).abs(),
        "advantages": noise(1.0),
        "mask": mask,
    }


def by_hand(spec: AlgoConfig, b: dict[str, Tensor], logp: list[list[Tensor]], entropy: list[list[Tensor]]) -> Tensor:
    """The same loss, one token at a time, from the formulas; nothing is shared with the code under test."""
    value = {k: v.tolist() for k, v in b.items()}
    used = [[t for t in range(T) if value["mask"][i][t]] for i in range(B)]
    num_tokens = sum(map(len, used))
    total = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        n = len(used[i])
        mean_log_ratio = sum((logp[i][t] - value["old_logp"][i][t] for t in used[i]), torch.zeros((), dtype=torch.float64)) / n
        log_w = {t: value["old_logp"][i][t] - value["rollout_logp"][i][t] for t in used[i]}
        for t in used[i]:
            ratio = torch.exp(mean_log_ratio if spec.ratio == "sequence" else logp[i][t] - value["old_logp"][i][t])
            a = value["advantages"][i][t]
            low, high = 1 - spec.eps_low, 1 + spec.eps_high
            clipped = (
                ratio if low <= float(ratio) <= high else torch.tensor(low if float(ratio) < low else high, dtype=torch.float64)
            )
            gain = min(ratio * a, clipped * a, key=float)
            if spec.dual_clip is not None and a < 0 and float(gain) < spec.dual_clip * a:
                gain = torch.tensor(spec.dual_clip * a, dtype=torch.float64)
            w = {
                "token": math.exp(log_w[t]),
                "sequence": math.exp(sum(log_w.values())),
                "geometric": math.exp(sum(log_w.values()) / n),
            }[spec.correction_level]
            lo, hi = spec.correction_low, spec.correction_high
            w = {"none": 1.0, "tis": min(w, hi), "clip": min(max(w, lo), hi), "mis": w if lo <= w <= hi else 0.0}[spec.correction]
            if spec.correction != "none" and spec.veto is not None and min(log_w.values()) < math.log(spec.veto):
                w = 0.0
            d = value["ref_logp"][i][t] - logp[i][t]
            kl = {"k2": d * d / 2, "k3": torch.exp(d) - 1 - d}[spec.kl]
            term = -gain * w + spec.kl_coef * kl - spec.entropy_coef * entropy[i][t]
            share = {"token-mean": num_tokens, "seq-mean": n * B, "constant": spec.loss_scale * B}[spec.loss_aggregation]
            total = total + term / share
    return total


def ours(spec: AlgoConfig, b: dict[str, Tensor], rows: list[int], totals: Totals) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients with respect to logp and entropy, of some rows."""
    part = {k: v[rows].clone() for k, v in b.items()}
    logp, entropy = part.pop("logp").requires_grad_(), part.pop("entropy").requires_grad_()
    result = policy_loss(spec, logp=logp, entropy=entropy, totals=totals, **part)
    result.loss.backward()
    empty = torch.zeros_like(logp)
    return (
        result.loss.detach(),
        logp.grad if logp.grad is not None else empty,
        entropy.grad if entropy.grad is not None else empty,
    )


def totals_of(b: dict[str, Tensor]) -> Totals:
    return Totals(tokens=float(b["mask"].sum()), sequences=B)


SPECS = [
    algo_config(ratio=ratio, loss_aggregation=loss_aggregation, dual_clip=dual, loss_scale=10)  # type: ignore[arg-type]
    for ratio, loss_aggregation, dual in product(("token", "sequence"), ("token-mean", "seq-mean", "constant"), (None, 1.1))
]
SPECS += [
    algo_config(kl=kl, kl_coef=0.3, entropy_coef=0.2, loss_aggregation=n)
    for kl in ("k2", "k3")
    for n in ("token-mean", "seq-mean")
]  # type: ignore[arg-type]
SPECS += [
    algo_config(correction=c, correction_level=level, veto=veto, correction_low=0.8, correction_high=1.2)  # type: ignore[arg-type]
    for c, level, veto in product(("tis", "mis", "clip"), ("token", "sequence", "geometric"), (None, 0.4))
]


@pytest.mark.parametrize(
    "spec",
    SPECS,
    ids=lambda s: "-".join(
        str(v) for v in (s.ratio, s.loss_aggregation, s.dual_clip, s.kl, s.kl_coef, s.correction, s.correction_level, s.veto)
    ),
)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_equal_the_formulas(spec: AlgoConfig, seed: int) -> None:
    b = batch(seed)
    logp = [[x.detach().clone().requires_grad_() for x in row] for row in b["logp"]]
    entropy = [[x.detach().clone().requires_grad_() for x in row] for row in b["entropy"]]
    expected = by_hand(spec, b, logp, entropy)
    expected.backward()
    loss, gradient, entropy_gradient = ours(spec, b, list(range(B)), totals_of(b))
    want = torch.tensor([[float(x.grad) if x.grad is not None else 0.0 for x in row] for row in logp], dtype=torch.float64)
    want_entropy = torch.tensor(
        [[float(x.grad) if x.grad is not None else 0.0 for x in row] for row in entropy], dtype=torch.float64
    )
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(entropy_gradient, want_entropy, rtol=1e-10, atol=1e-12)


@given(
    spec=st.builds(
        algo_config,
        ratio=st.sampled_from(["token", "sequence"]),
        eps_low=st.sampled_from([0.0, 0.1, 0.3]),
        eps_high=st.sampled_from([0.1, 0.28, 5.0]),
        dual_clip=st.sampled_from([None, 1.2, 3.0]),
        loss_aggregation=st.sampled_from(["token-mean", "seq-mean", "constant"]),
        loss_scale=st.just(10),
        kl_coef=st.sampled_from([0.0, 0.3]),
        kl=st.sampled_from(["k2", "k3"]),
        entropy_coef=st.sampled_from([0.0, 0.2]),
        correction=st.sampled_from(["none", "tis", "mis", "clip"]),
        correction_level=st.sampled_from(["token", "sequence", "geometric"]),
        correction_low=st.sampled_from([0.5, 0.9]),
        correction_high=st.sampled_from([1.1, 2.0]),
        veto=st.sampled_from([None, 0.4]),
    ),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60)
def test_options_together_equal_the_formulas(spec: AlgoConfig, seed: int) -> None:
    test_loss_and_gradient_equal_the_formulas(spec, seed)


@pytest.mark.parametrize("spec", SPECS[::3])
def test_masked_tokens_have_exactly_zero_gradient(spec: AlgoConfig) -> None:
    b = batch()
    _, gradient, entropy_gradient = ours(spec, b, list(range(B)), totals_of(b))
    assert (gradient[b["mask"] == 0] == 0).all()
    assert (entropy_gradient[b["mask"] == 0] == 0).all()
    assert (gradient[b["mask"] == 1] != 0).any()


def test_masked_tokens_do_not_change_the_loss() -> None:
    spec = algo_config(ratio="sequence", kl_coef=0.1, entropy_coef=0.1, correction="tis", correction_level="sequence", veto=1e-4)
    b = batch()
    other = {k: v if k == "mask" else v + 5.0 * (1 - b["mask"]) for k, v in b.items()}
    assert ours(spec, b, list(range(B)), totals_of(b))[0] == ours(spec, other, list(range(B)), totals_of(b))[0]


@pytest.mark.parametrize("spec", SPECS)
def test_the_cut_into_micro_batches_does_not_matter(spec: AlgoConfig) -> None:
    b = batch()
    whole, gradient, _ = ours(spec, b, [0, 1, 2, 3], totals_of(b))
    first, second = ours(spec, b, [2, 0], totals_of(b)), ours(spec, b, [3, 1], totals_of(b))
    torch.testing.assert_close(first[0] + second[0], whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat([first[1], second[1]])[[1, 3, 0, 2]], gradient, rtol=1e-12, atol=1e-14)


def one_token(*, ratio: float, advantage: float, spec: AlgoConfig) -> tuple[float, float]:
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    blank = torch.zeros(1, 1, dtype=torch.float64)
    totals = Totals(tokens=1, sequences=1)
    result = policy_loss(spec, logp=logp, old_logp=blank, advantages=blank + advantage, mask=blank + 1, totals=totals)
    result.loss.backward()
    assert logp.grad is not None
    return float(result.loss), float(logp.grad)


def test_a_good_token_is_not_pushed_beyond_the_upper_bound() -> None:
    spec = algo_config(eps_low=0.2, eps_high=0.25)
    assert one_token(ratio=1.5, advantage=2.0, spec=spec) == pytest.approx((-2.5, 0.0))
    assert one_token(ratio=1.1, advantage=2.0, spec=spec) == pytest.approx((-2.2, -2.2))
    assert one_token(ratio=0.5, advantage=2.0, spec=spec) == pytest.approx((-1.0, -1.0))


def test_a_bad_token_is_not_pushed_below_the_lower_bound() -> None:
    spec = algo_config(eps_low=0.2, eps_high=0.25)
    assert one_token(ratio=0.5, advantage=-2.0, spec=spec) == pytest.approx((1.6, 0.0))
    assert one_token(ratio=4.0, advantage=-2.0, spec=spec) == pytest.approx((8.0, 8.0))


def test_dual_clip_bounds_the_loss_of_a_bad_token() -> None:
    assert one_token(ratio=4.0, advantage=-2.0, spec=algo_config(dual_clip=3.0)) == pytest.approx((6.0, 0.0))


def test_kl_estimates_of_one_token() -> None:
    logp, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])  # d = -log 2
    assert float(kl_estimate("k2", logp, ref)) == pytest.approx(math.log(2) ** 2 / 2)
    assert float(kl_estimate("k3", logp, ref)) == pytest.approx(0.5 - 1 + math.log(2))
    assert float(kl_estimate("k3", logp, logp)) == 0.0


def test_k3_averages_to_the_true_divergence() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    true = float((p * (p / q).log()).sum())
    assert float((p * kl_estimate("k3", p.log(), q.log())).sum()) == pytest.approx(true, rel=1e-5)


def test_a_kl_that_is_a_loss_pulls_the_policy_to_the_reference_and_k1_would_not() -> None:
    logits, q = torch.tensor([1.0, 0.0, -1.0], requires_grad=True), torch.tensor([0.3, 0.3, 0.4])
    p = logits.detach().softmax(-1)

    def expected_gradient(of_token: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean, over sampled tokens, of the gradient of one token's loss."""
        (gradient,) = torch.autograd.grad((p * of_token(logits.log_softmax(-1))).sum(), logits)
        return gradient

    for kind in ("k2", "k3"):
        pull = expected_gradient(lambda logp, kind=kind: kl_estimate(kind, logp, q.log()))
        assert pull[0] > 0.01 and pull[2] < -0.01  # less of the token that the policy prefers to the reference, more of the other
    torch.testing.assert_close(expected_gradient(lambda logp: logp - q.log()), torch.zeros(3), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="`k1` is no loss"):
        kl_estimate("k1", p.log(), q.log())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (algo_config(correction="tis", correction_high=2.0), [2.0, 0.25, 1.0]),
        (algo_config(correction="clip", correction_low=0.5, correction_high=2.0), [2.0, 0.5, 1.0]),
        (algo_config(correction="mis", correction_low=0.5, correction_high=2.0), [0.0, 0.0, 1.0]),
        (algo_config(correction="tis", correction_level="sequence", correction_high=2.0), [1.0, 1.0, 1.0]),
        (algo_config(correction="tis", correction_high=2.0, veto=0.3), [0.0, 0.0, 0.0]),
    ],
)
def test_corrections_of_weights_four_a_quarter_and_one(spec: AlgoConfig, expected: list[float]) -> None:
    mask = torch.ones(1, 3)
    weights, _ = correction_weights(
        spec, old_logp=torch.tensor([[4.0, 0.25, 1.0]]).log(), rollout_logp=torch.zeros(1, 3), mask=mask
    )
    assert weights[0].tolist() == pytest.approx(expected)


def test_policies_that_agree_have_no_mismatch() -> None:
    logp = torch.tensor([[-1.0, -2.0]])
    found = mismatch(logp, logp, torch.ones(1, 2))
    assert (found.mean_abs, found.k3, found.effective_share) == (0.0, 0.0, 1.0)


def test_mismatch_of_a_known_shift() -> None:
    found = mismatch(torch.tensor([[math.log(2.0), 0.0]]), torch.zeros(1, 2), torch.ones(1, 2))
    assert found.max_abs == pytest.approx(math.log(2))
    assert found.k3 == pytest.approx((2 - 1 - math.log(2)) / 2)
    assert found.effective_share == pytest.approx(9 / 10)  # (2 + 1)^2 / (2 * (4 + 1))


def test_what_is_missing_is_named() -> None:
    blank = torch.zeros(1, 1)
    for spec, word in (
        (algo_config(kl_coef=0.1), "ref_logp"),
        (algo_config(entropy_coef=0.1), "entropy"),
        (algo_config(correction="tis"), "sampler"),
    ):
        with pytest.raises(ValueError, match=word):
            policy_loss(spec, logp=blank, old_logp=blank, advantages=blank, mask=blank, totals=Totals(tokens=1, sequences=1))


def test_a_zero_advantage_group_moves_nothing() -> None:
    b = batch() | {"advantages": torch.zeros(B, T, dtype=torch.float64)}
    loss, gradient, _ = ours(algo_config(dual_clip=3.0), b, list(range(B)), totals_of(b))
    assert float(loss) == 0.0
    assert (gradient == 0).all()
