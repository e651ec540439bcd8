"""Log-probabilities of the tokens that count: the one forward pass that SFT, GRPO and the frozen reference share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tau2rl.backends.local.model import backbone, head

if TYPE_CHECKING:
    from torch import Tensor

    from tau2rl.backends.local.data import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What the model says of a batch: exactly 0 wherever the mask is 0, with no gradient there."""

    logp: Tensor  # [batch, time]
    entropy: Tensor | None  # [batch, time], in nats


def score_tokens(model: nn.Module, batch: Batch, *, temperature: float = 1.0, entropy: bool = False) -> TokenScores:
    """Log-probability of each token that counts, given what stands before it.

    Logits only where a token counts: the output layer over whole conversations would cost more than the rest of a small model.
    `temperature` is that of the sampler, so that the ratio to its log-probabilities starts at 1.
    """
    rows, columns = batch.mask.nonzero(as_tuple=True)
    # Right-padded and causal: no real token looks at padding, so no mask is needed and the fast kernel is used.
    hidden = backbone(model)(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = head(model)(hidden[rows, columns - 1]).float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    logp_all = torch.log_softmax(logits, dim=-1)
    chosen = logp_all.gather(1, batch.ids[rows, columns][:, None])[:, 0]
    blank = torch.zeros(batch.ids.shape, dtype=chosen.dtype, device=chosen.device)
    spread = -(logp_all.exp() * logp_all).sum(-1) if entropy else None
    return TokenScores(
        logp=blank.index_put((rows, columns), chosen),
        entropy=None if spread is None else blank.index_put((rows, columns), spread),
    )
