"""Log-probabilities of the tokens that count: the one forward pass that SFT, GRPO and the frozen reference share."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from tau2rl.train.engine.shared_prefix import attends, backbone, bare, head, lay_out
from tau2rl.types import TrainingSample

if TYPE_CHECKING:
    from torch import Tensor


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
    or to be learned from. `share`: compute what rows have in common once, where the model can; the result is the same.
    """
    rows, columns = batch.mask.nonzero(as_tuple=True)
    blank = torch.zeros(batch.ids.shape, device=batch.ids.device)
    if not len(rows):
        return TokenScores(logp=blank, entropy=None if entropy == "none" else blank, work=Work())
    compute = _shared_logits if share and attends(model) else _plain_logits
    logits, index, work = compute(model, batch, rows, columns)
    logits = logits.float()
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    logp_all = torch.log_softmax(logits, dim=-1)  # [asked, vocab]
    chosen = logp_all.flatten().index_select(0, index * logp_all.shape[1] + batch.ids[rows, columns])
    spread = None
    if entropy != "none":
        known = logp_all if entropy == "gradient" else logp_all.detach()
        spread = blank.index_put((rows, columns), -(known.exp() * known).sum(-1).index_select(0, index))
    return TokenScores(logp=blank.index_put((rows, columns), chosen), entropy=spread, work=work)


def _shared_logits(model: nn.Module, batch: Batch, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Work]:
    """Logits, [asked, vocab]; which of them each token's are, [tokens]; what it took. Rows that were alike so far ask once."""
    layout = lay_out(batch)
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids.device)  # one is given, so transformers makes none
    hidden = backbone(model)(
        input_ids=layout.ids[None], attention_mask=no_mask, position_ids=layout.depth[None], use_cache=False, tau2rl_layout=layout
    ).last_hidden_state
    asked, index = layout.place[rows, columns - 1].unique(return_inverse=True)
    work = Work(tokens=layout.tokens, computed=len(layout.ids), padding=layout.padding)
    return head(model)(hidden[0].index_select(0, asked)), index, work


def _plain_logits(model: nn.Module, batch: Batch, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Work]:
    """The same from the library's own forward pass, whatever the model does to its tokens and logits."""
    places = torch.arange(1, batch.ids.shape[1] + 1, device=batch.ids.device)
    ends = (batch.mask * places).amax(1)  # [batch]; what stands behind the last token that counts has no gradient
    ids = batch.ids[:, : int(ends.max())]
    logits = plain_logits(model, ids, ends, rows, columns - 1)
    tokens = int(ends.sum())
    return (
        logits,
        torch.arange(len(rows), device=rows.device),
        Work(tokens=tokens, computed=ids.numel(), padding=ids.numel() - tokens),
    )


def plain_logits(model: nn.Module, ids: Tensor, lengths: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits at (row, column) of right-padded rows, [asked, vocab], by the library's own forward pass without a cache."""
    real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    kept, place = columns.unique(return_inverse=True)
    more: dict[str, Tensor] = {} if bool(real.all()) else {"attention_mask": real.long()}
    if accepts_argument(model, "logits_to_keep"):
        more["logits_to_keep"] = kept
    else:
        place = columns
    return bare(model)(input_ids=ids, use_cache=False, **more, **text_only(model, ids)).logits[rows, place]


def text_only(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """What a model that sees images as well wants to be told: that every token is text."""
    config: Any = bare(model).config
    if getattr(config, "vision_config", None) is None:
        return {}
    return {name: torch.zeros_like(ids) for name in ("token_type_ids", "mm_token_type_ids") if accepts_argument(model, name)}


def accepts_argument(model: nn.Module, name: str) -> bool:
    """Whether the model's forward pass has a parameter of this name."""
    return name in inspect.signature(bare(model).forward).parameters


REPEATS = 8
BLOCK = 64  # tokens that are compared at once
CALL = 64  # tokens that cost about as much as one forward pass more


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Right-padded sequences. Column t of `mask` speaks of token t, which is predicted at t - 1."""

    ids: Tensor  # [batch, time]
    mask: Tensor  # [batch, time], 1.0 on tokens that count
    logprobs: Tensor | None  # [batch, time], of the sampling distribution, 0 where the mask is 0

    @property
    def num_tokens(self) -> float:
        """How many tokens count."""
        return float(self.mask.sum())


def collate(samples: Sequence[TrainingSample], *, device: str | torch.device = "cpu") -> Batch:
    """One batch; it has sampling log-probabilities only when every sample has them."""
    width = max(len(s.token_ids) for s in samples)
    rows = [list(s.token_ids) + [0] * (width - len(s.token_ids)) for s in samples]
    masks = [[float(m) for m in s.loss_mask] + [0.0] * (width - len(s.loss_mask)) for s in samples]
    mask = torch.tensor(masks, device=device)
    mask[:, 0] = 0.0  # nothing predicts the first token
    logprobs: Tensor | None = None
    if all(s.logprobs is not None for s in samples):
        padded = [list(s.logprobs or ()) + [0.0] * (width - len(s.token_ids)) for s in samples]
        logprobs = torch.tensor(padded, device=device) * mask
    return Batch(ids=torch.tensor(rows, device=device), mask=mask, logprobs=logprobs)


def micro_batches(rows: Sequence[tuple[int, ...]], *, max_tokens: int) -> list[list[int]]:
    """Indices of rows of one forward pass each: rows that begin alike together, at most `max_tokens` that have to be computed.

    A token that stands behind the same tokens in several rows of a pass counts once. A longer row stands alone. The tokens of
    all rows of a pass are at most `REPEATS` times `max_tokens`: attention has them all in memory.

    >>> micro_batches([(1, 2, 3, 4), (7, 8), (1, 2, 3, 5), (1, 2, 3, 6, 7)], max_tokens=7)
    [[0, 2, 3], [1]]
    """
    groups: list[list[int]] = []
    computed = held = 0
    for i in sorted(range(len(rows)), key=rows.__getitem__):
        size = len(rows[i])
        new = size - (common_length(rows[groups[-1][-1]], rows[i]) if groups else 0)
        if groups and computed + new <= max_tokens and held + size <= REPEATS * max_tokens:
            groups[-1].append(i)
            computed, held = computed + new, held + size
        else:
            groups.append([i])
            computed = held = size
    return groups


def padded_batches(lengths: Sequence[int], *, max_tokens: int, call: int = CALL) -> list[list[int]]:
    """Indices grouped by similar length, each group at most `max_tokens` when padded (a longer sequence stands alone).

    Padding is worth it as long as it costs less than one group more, which costs as much as `call` tokens.

    >>> padded_batches([3, 9, 4, 10], max_tokens=20, call=8)
    [[0, 2], [1, 3]]
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        longest, rows = (lengths[groups[-1][-1]], len(groups[-1])) if groups else (0, 0)
        if groups and lengths[i] * (rows + 1) <= max_tokens and rows * (lengths[i] - longest) <= call:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences of one type share; as fast as comparing them.

    >>> common_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    shorter, i = min(len(a), len(b)), 0
    while i < shorter and a[i : i + BLOCK] == b[i : i + BLOCK]:
        i += BLOCK
    while i < shorter and a[i] == b[i]:
        i += 1
    return min(i, shorter)


def begins(tokens: Sequence[int], wanted: Sequence[int], least: int) -> bool:
    """Whether both begin with the same `least` tokens; most pairs are told apart by one of them.

    >>> begins([1, 2, 3], [1, 2, 4], 2), begins([1, 2, 3], [1, 2, 4], 3)
    (True, False)
    """
    long_enough = min(len(tokens), len(wanted)) >= least
    return long_enough and tokens[least - 1] == wanted[least - 1] and tokens[:least] == wanted[:least]
