"""Log-probabilities of the tokens that count: the one forward pass that SFT, GRPO and the frozen reference share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from tau2rl.train.engine.attention import attends
from tau2rl.train.engine.batching import micro_batches, padded_batches
from tau2rl.train.engine.shared_prefix import lay_out
from tau2rl.train.model import backbone, head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tau2rl.train.engine.batching import Batch
    from tau2rl.types import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a forward pass had to do: `Work(tokens=4000, computed=1500, padding=120)`."""

    tokens: int = 0  # of the rows, up to the last that counts
    computed: int = 0  # positions that went through the model
    padding: int = 0  # places without a token, in attention or, where nothing can be shared, in the whole model

    def __add__(self, other: Work) -> Work:
        """The sum, field by field."""
        return Work(
            tokens=self.tokens + other.tokens, computed=self.computed + other.computed, padding=self.padding + other.padding
        )

    @property
    def padding_share(self) -> float:
        """Of all places.

        >>> Work(tokens=900, computed=500, padding=100).padding_share
        0.1
        """
        return self.padding / max(1, self.tokens + self.padding)

    @property
    def shared_share(self) -> float:
        """Of the tokens, those that went through the model with another row; below 0 where padding did so too.

        >>> Work(tokens=1000, computed=400).shared_share
        0.6
        """
        return 1.0 - self.computed / max(1, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What the model says of a batch: exactly 0 wherever the mask is 0, with no gradient there."""

    logp: Tensor  # [batch, time]
    entropy: Tensor | None  # [batch, time], in nats
    work: Work


def cut(model: nn.Module, samples: Sequence[TrainingSample], *, max_tokens: int) -> list[list[int]]:
    """Indices of the samples of one pass each: as many as `max_tokens` positions allow, in the order that costs least."""
    if attends(model):
        return micro_batches([s.token_ids for s in samples], max_tokens=max_tokens)
    return padded_batches([len(s.token_ids) for s in samples], max_tokens=max_tokens)


def score_tokens(
    model: nn.Module,
    batch: Batch,
    *,
    temperature: float = 1.0,
    entropy: Literal["none", "value", "gradient"] = "none",
    share: bool = True,
) -> TokenScores:
    """Log-probability of each token that counts, given what stands before it.

    Logits only where a token counts: the output layer over whole conversations would cost more than the rest of a small model.
    `temperature` is that of the sampler, so that the ratio to its log-probabilities starts at 1. `entropy`: not, as a number,
    or to be learned from. `share`: compute what rows have in common once; the result is the same.
    """
    rows, columns = batch.mask.nonzero(as_tuple=True)
    hidden, place, work = _hidden(model, batch, share=share and len(rows) > 0 and attends(model))
    asked, index = place[rows, columns - 1].unique(return_inverse=True)  # rows that were alike so far ask once
    logits = head(model)(hidden.index_select(0, asked)).float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    logp_all = torch.log_softmax(logits, dim=-1)  # [asked, vocab]
    chosen = logp_all.flatten().index_select(0, index * logp_all.shape[1] + batch.ids[rows, columns])
    blank = torch.zeros(batch.ids.shape, dtype=chosen.dtype, device=chosen.device)
    spread = None
    if entropy != "none":
        known = logp_all if entropy == "gradient" else logp_all.detach()
        spread = blank.index_put((rows, columns), -(known.exp() * known).sum(-1).index_select(0, index))
    return TokenScores(logp=blank.index_put((rows, columns), chosen), entropy=spread, work=work)


def _hidden(model: nn.Module, batch: Batch, *, share: bool) -> tuple[Tensor, Tensor, Work]:
    """The last hidden states in a line, [positions, hidden]; where each token's stands, [batch, time]; what it took."""
    decoder = backbone(model)
    if share:
        layout = lay_out(batch)
        work = Work(tokens=layout.tokens, computed=len(layout.ids), padding=layout.padding)
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids.device)  # one is given, so transformers makes none
        hidden = decoder(
            input_ids=layout.ids[None],
            attention_mask=no_mask,
            position_ids=layout.depth[None],
            use_cache=False,
            tau2rl_layout=layout,
        ).last_hidden_state
        return hidden[0], layout.place, work
    # Right-padded and causal: no real token attends to padding, so no mask is needed and the fast kernel is used.
    hidden = decoder(input_ids=batch.ids, use_cache=False).last_hidden_state
    place = torch.arange(batch.ids.numel(), device=batch.ids.device).view_as(batch.ids)
    tokens = int((batch.mask * torch.arange(1, batch.ids.shape[1] + 1, device=batch.ids.device)).amax(1).sum())
    work = Work(tokens=tokens, computed=batch.ids.numel(), padding=batch.ids.numel() - tokens)
    return hidden.flatten(0, 1), place, work
