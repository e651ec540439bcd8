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

SHARING_PAYS = 16  # shorter common beginnings are not worth a second pass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What the model says of a batch: exactly 0 wherever the mask is 0, with no gradient there."""

    logp: Tensor  # [batch, time]
    entropy: Tensor | None  # [batch, time], in nats


def score_tokens(
    model: nn.Module, batch: Batch, *, temperature: float = 1.0, entropy: bool = False, share: bool = True
) -> TokenScores:
    """Log-probability of each token that counts, given what stands before it.

    Logits only where a token counts: the output layer over whole conversations would cost more than the rest of a small model.
    `temperature` is that of the sampler, so that the ratio to its log-probabilities starts at 1. `share`: run the
    beginning that all rows have in common (system prompt and tools) once; the result is the same.
    """
    rows, columns = batch.mask.nonzero(as_tuple=True)
    prefix = _shared_prefix(batch) if share and not _checkpointed(model) else 0
    if prefix < SHARING_PAYS:
        prefix = 0
    hidden = _hidden(model, batch.ids, prefix)  # [batch, time - prefix, hidden]
    logits = head(model)(hidden[rows, columns - 1 - prefix]).float()
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


def _checkpointed(model: nn.Module) -> bool:
    """Whether activations are computed again in the backward pass: transformers then takes no keys and values from a cache."""
    return model.training and bool(getattr(backbone(model), "gradient_checkpointing", False))


def _shared_prefix(batch: Batch) -> int:
    """How many leading tokens all rows share, short of the one that predicts the first token that counts."""
    if len(batch.ids) < 2:
        return 0
    differ = (batch.ids != batch.ids[:1]).any(0) | (batch.mask.roll(-1, dims=1) > 0).any(0)
    where = differ.nonzero()
    return int(where[0]) if len(where) else 0


def _hidden(model: nn.Module, ids: Tensor, prefix: int) -> Tensor:
    """The last hidden states of what follows the shared prefix; gradients flow through the prefix too."""
    decoder = backbone(model)
    if not prefix:
        # Right-padded and causal: no real token looks at padding, so no mask is needed and the fast kernel is used.
        return decoder(input_ids=ids, use_cache=False).last_hidden_state
    from transformers import DynamicCache

    cache = DynamicCache()
    decoder(input_ids=ids[:1, :prefix], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(ids))
    positions = torch.arange(prefix, ids.shape[1], device=ids.device)
    mask = torch.arange(ids.shape[1], device=ids.device) <= positions[:, None]  # [time - prefix, time]
    return decoder(
        input_ids=ids[:, prefix:],
        attention_mask=mask[None, None],
        position_ids=positions[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
