"""One setting, one loss: slime's real `loss_function`, told by our command line, and the local backend's, on the same numbers.

Runs where SLIME_CHECKOUT names a checkout of slime at the pinned commit, and is skipped elsewhere.

- for every setting of the loss both backends give the same loss and the same gradient, to single precision;
- that holds for tokens whose ratio is clipped, whose weight is cut, and for sequences that the veto leaves out;
- an attempt that was removed from slime's batch changes neither, whatever the loss is a mean over.
"""

from __future__ import annotations

import importlib
import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tau2rl.config import GrpoConfig
from tau2rl.slime.argv import build_argv
from tau2rl.slime.hooks import count_trained
from tau2rl.slime.model import read_shape
from tau2rl.slime.run_context import SlimeRun, absolute, write_files
from tau2rl.train.losses import Totals, policy_loss
from tests.slime_configs import QWEN3_4B, load_slime
from tests.stubs.slime_stubs import parse

VOCAB, TEMPERATURE = 11, 0.7
PROMPTS, RESPONSES = (2, 3), (6, 4)  # tokens of two episodes
MASKS = ((1, 1, 0, 1, 1, 1), (1, 1, 1, 0))  # what the policy sampled
ADVANTAGES = (1.5, -0.8)
PLAIN = ["algo.correction=none", "algo.kl_coef=0", "train.num_minibatches=2", f"sampling.temperature={TEMPERATURE}"]

CASES = [
    ["algo.loss_aggregation=token-mean"],
    ["algo.loss_aggregation=seq-mean"],
    ["algo.loss_aggregation=constant", "algo.loss_scale=5"],
    ["algo.ratio=sequence", "algo.eps_low=0.003", "algo.eps_high=0.004"],
    ["algo.eps_low=0.05", "algo.eps_high=0.1"],
    ["algo.dual_clip=1.1"],
    ["algo.kl_coef=0.3", "algo.kl=k2"],
    ["algo.kl_coef=0.3", "algo.kl=k3"],
    ["algo.kl_coef=0.3", "algo.kl=k3", "algo.loss_aggregation=seq-mean", "algo.entropy_coef=0.2"],
    ["algo.entropy_coef=0.2"],
    ["algo.correction=tis", "algo.correction_high=1.1"],
    ["algo.correction=clip", "algo.correction_low=0.9", "algo.correction_high=1.1"],
    ["algo.correction=mis", "algo.correction_low=0.7", "algo.correction_high=1.3"],
    ["algo.correction=tis", "algo.correction_level=sequence", "algo.correction_high=1.1"],
    ["algo.correction=mis", "algo.correction_level=sequence", "algo.correction_low=0.5", "algo.correction_high=1.2"],
    ["algo.correction=clip", "algo.correction_level=geometric", "algo.correction_low=0.99", "algo.correction_high=1.01"],
    ["algo.correction=tis", "algo.veto=0.5"],
    ["algo.correction=mis", "algo.correction_level=geometric", "algo.veto=0.5", "algo.loss_aggregation=seq-mean"],
]


class Numbers:
    """Two episodes: logits over their tokens, and log-probabilities of three other models."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(7)
        lengths = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
        self.tokens = [torch.randint(VOCAB, (length,), generator=draw) for length in lengths]
        self.logits = [torch.randn(length, VOCAB, generator=draw) for length in lengths]
        own = [self.own(i) for i in range(2)]
        self.old, self.rollout, self.reference = (
            [logp + spread * torch.randn(logp.shape, generator=draw) for logp in own] for spread in (0.2, 0.3, 0.5)
        )

    def own(self, i: int) -> torch.Tensor:
        """Log-probabilities of an episode's response, [response]."""
        logp = (self.logits[i][:-1] / TEMPERATURE).log_softmax(-1)
        return logp.gather(-1, self.tokens[i][1:, None])[PROMPTS[i] - 1 :, 0]

    def entropy(self, i: int) -> torch.Tensor:
        logp = (self.logits[i][:-1] / TEMPERATURE).log_softmax(-1)[PROMPTS[i] - 1 :]
        return -(logp.exp() * logp).sum(-1)


def settings(case: list[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[GrpoConfig, Namespace]:
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(QWEN3_4B))
    config = load_slime("8xh100/grpo-api-user.yaml", f"model.init={checkpoint}", *PLAIN, *case)
    assert isinstance(config, GrpoConfig)
    config = absolute(config)
    run = SlimeRun(folder=checkpoint.parent / "run", shape=read_shape(checkpoint))
    write_files(config, run)
    assert isinstance(config, GrpoConfig)
    return config, parse(build_argv(config, run), monkeypatch)


REMOVED = [
    ["algo.loss_aggregation=seq-mean"],
    ["algo.loss_aggregation=constant", "algo.loss_scale=5"],
    ["algo.kl_coef=0.3", "algo.kl=k3", "algo.loss_aggregation=seq-mean", "algo.entropy_coef=0.2"],
]


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """Attempts are counted over a group of processes; here it has one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("case", REMOVED, ids=" ".join)
def test_a_removed_attempt_changes_nothing(
    case: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: None
) -> None:
    config, args = settings(case, tmp_path / "model", monkeypatch)
    theirs, ours = Numbers(), Numbers()
    slime = slime_loss(args, theirs, monkeypatch, removed=True)
    local = local_loss(config, ours)
    assert float(slime.detach()) == pytest.approx(float(local.detach()), abs=1e-6)
    gradients = [torch.autograd.grad(loss, numbers.logits) for loss, numbers in ((slime, theirs), (local, ours))]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_both_backends_have_the_same_loss(case: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, args = settings(case, tmp_path / "model", monkeypatch)
    theirs, ours = Numbers(), Numbers()
    slime = slime_loss(args, theirs, monkeypatch)
    local = local_loss(config, ours)
    assert float(slime.detach()) == pytest.approx(float(local.detach()), abs=1e-6)
    gradients = [torch.autograd.grad(loss, numbers.logits) for loss, numbers in ((slime, theirs), (local, ours))]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients[0])


def slime_loss(args: Namespace, numbers: Numbers, monkeypatch: pytest.MonkeyPatch, *, removed: bool = False) -> torch.Tensor:
    """The loss of a step of these two episodes on one GPU, after what Megatron divides by. `removed`: there was a third one."""
    monkeypatch.setattr(torch, "compile", lambda *args, **_: args[0] if args and callable(args[0]) else lambda function: function)
    loss: ModuleType = importlib.import_module("slime.backends.megatron_utils.loss")
    megatron = importlib.import_module("megatron.training.global_vars")
    monkeypatch.setattr(megatron, "get_args", lambda: args, raising=False)  # slime's `init` has set them
    for tensor in numbers.logits:
        tensor.requires_grad_(True)
    masks = [torch.tensor(mask, dtype=torch.float32) for mask in MASKS]
    batch: dict[str, Any] = {
        "unconcat_tokens": numbers.tokens,
        "total_lengths": [len(tokens) for tokens in numbers.tokens],
        "response_lengths": list(RESPONSES),
        "loss_masks": masks,
        "rollout_mask_sums": [mask.sum() for mask in masks],
        "advantages": [torch.full((n,), a) for n, a in zip(RESPONSES, ADVANTAGES, strict=True)],
        "log_probs": numbers.old,
        "rollout_log_probs": numbers.rollout,
        "ref_log_probs": numbers.reference,
    }
    logits = list(numbers.logits)
    if removed:  # a copy of the first one with nothing to learn
        for values in batch.values():
            values.append(values[0])
        logits.append(numbers.logits[0].detach())
        batch["loss_masks"][-1] = torch.zeros(RESPONSES[0])
        batch["rollout_mask_sums"][-1] = torch.tensor(0.0)
    data = {
        **batch,
        "rollout_mask_sums": torch.stack(batch["rollout_mask_sums"]),
        "micro_batch_indices": [list(range(len(logits)))],
        "num_microbatches": [1],
        "global_batch_sizes": [len(logits)],
    }
    if removed:
        count_trained(args, 0, data)
    value, divisor, _ = loss.loss_function(args, batch, 1, data["global_batch_sizes"][0], torch.cat(logits)[None])
    return value / divisor


def local_loss(config: GrpoConfig, numbers: Numbers) -> torch.Tensor:
    for tensor in numbers.logits:
        tensor.requires_grad_(True)
    mask = padded([torch.tensor(mask, dtype=torch.float32) for mask in MASKS])
    found = policy_loss(
        config.algo,
        logp=padded([numbers.own(i) for i in range(2)]),
        old_logp=padded(numbers.old),
        advantages=torch.tensor(ADVANTAGES)[:, None].expand_as(mask),
        mask=mask,
        totals=Totals(tokens=float(mask.sum()), sequences=2),
        ref_logp=padded(numbers.reference),
        rollout_logp=padded(numbers.rollout),
        entropy=padded([numbers.entropy(i) for i in range(2)]),
    )
    return found.loss


def padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
