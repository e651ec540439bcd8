"""Turns sampled from any `AutoModelForCausalLM`, by the library's own forward pass: slower than `Generator`, and right.

Recurrent layers, sliding windows, soft-capping: what the model does to its tokens is left to the library, its cache too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tau2rl.train.engine.forward import accepts_argument, plain_logits, text_only
from tau2rl.train.engine.generator import Sampler, SampleRequest
from tau2rl.train.engine.shared_prefix import bare

if TYPE_CHECKING:
    from torch import Tensor

BATCHES = 8  # that run beside each other: who arrives when so many run waits, so that batches stay large


@dataclass(slots=True, kw_only=True)
class _Batch:
    """Requests that began together. Nobody joins; who is done stays, unheard, until fewer than half are left."""

    requests: list[SampleRequest]
    real: Tensor  # [batch, time], 1 on tokens and 0 on the padding at their left
    cache: Any = None  # the library's own, whatever its layers keep


class PlainGenerator(Sampler):
    """Requests that wait are sampled together, padded on the left. Each turn computes its whole prompt.

    `cached`: the library keeps keys, values and recurrent states while a turn is sampled. Without: every token computes the whole
    conversation, for models whose cache does not give what a whole pass gives.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        cached: bool,
        slots: int = 64,
        prefill_tokens: int = 16384,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        super().__init__(model, slots=slots, prefill_tokens=prefill_tokens, decode=decode)
        self._cached = cached
        self._batches: list[_Batch] = []

    def clear_cache(self) -> None:
        """Nothing outlives a turn, but a batch whose turns were all given up."""
        self._refuse_while_sampling()
        self._batches = []

    def _advance(self) -> list[SampleRequest]:
        if not self._cached:
            self._active += self._admit(self._count - len(self._active))
            return [done for batch in self._recomputed() for done in self._sample(batch, self._whole_logits(batch))]
        if len(self._batches) < BATCHES and (fresh := self._admit(self._count - len(self._active))):
            self._active += fresh
            self._batches.append(_Batch(requests=fresh, real=torch.zeros(0)))
        done: list[SampleRequest] = []
        for batch in self._batches:
            done += self._move(batch)
        alive = [r for r in self._active if r not in done]
        self._batches = [b for b in self._batches if any(r in alive for r in b.requests)]
        return done

    def _admit(self, room: int) -> list[SampleRequest]:
        """Those in line that fit into one padded forward pass; at least one, however long."""
        fresh: list[SampleRequest] = []
        longest = 0
        for request in self._waiting[:room]:
            longest = max(longest, len(request.prompt))
            if fresh and longest * (len(fresh) + 1) > self._prefill_tokens:
                break
            fresh.append(request)
        self._waiting = self._waiting[len(fresh) :]
        return fresh

    def _move(self, batch: _Batch) -> list[SampleRequest]:
        """One token more for each request of the batch that is still being sampled; returns those that are done."""
        going = [i for i, r in enumerate(batch.requests) if r in self._active]
        if not going:
            return []
        if batch.cache is None:
            logits = self._prefill(batch)
        else:
            if len(going) <= len(batch.requests) // 2:
                self._narrow(batch, going)
                going = list(range(len(going)))
            logits = self._next(batch)
        return self._sample([batch.requests[i] for i in going], logits[going])

    def _prefill(self, batch: _Batch) -> Tensor:
        prompts = [r.prompt for r in batch.requests]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=self._device)
        padding = torch.tensor([longest - len(p) for p in prompts], device=self._device)
        batch.real = (torch.arange(longest, device=self._device) >= padding[:, None]).long()
        return self._forward(batch, ids, batch.real.cumsum(1).sub(1).clamp(min=0))

    def _next(self, batch: _Batch) -> Tensor:
        """Who is done is fed its last token again: its row is not read."""
        ids = torch.tensor([r.output[-1:] for r in batch.requests], device=self._device)
        positions = batch.real.sum(1, keepdim=True)
        batch.real = torch.cat([batch.real, torch.ones_like(ids)], dim=1)
        return self._forward(batch, ids, positions)

    def _forward(self, batch: _Batch, ids: Tensor, positions: Tensor) -> Tensor:
        """Logits behind the last token, [batch, vocab]. Raises RuntimeError for a model without a cache."""
        out = bare(self._model)(
            input_ids=ids,
            attention_mask=batch.real,
            position_ids=positions,
            past_key_values=batch.cache,
            use_cache=True,
            **({"logits_to_keep": 1} if accepts_argument(self._model, "logits_to_keep") else {}),
            **text_only(self._model, ids),
        )
        batch.cache = out.get("past_key_values")
        if batch.cache is None:
            raise RuntimeError("the model returns no cache")
        return out.logits[:, -1].float()

    def _narrow(self, batch: _Batch, kept: Sequence[int]) -> None:
        """Let go of who is done."""
        index = torch.tensor(kept, device=self._device)
        batch.cache.reorder_cache(index)  # every kind of layer has it; `batch_select_indices` recurrent ones do not
        batch.real = batch.real[index]
        batch.requests = [batch.requests[i] for i in kept]

    def _recomputed(self) -> list[list[SampleRequest]]:
        """Those being sampled, in passes of at most `prefill_tokens` places."""
        passes: list[list[SampleRequest]] = []
        for request in sorted(self._active, key=lambda r: len(r.prompt) + len(r.output)):
            length = len(request.prompt) + len(request.output)
            if passes and length * (len(passes[-1]) + 1) <= self._prefill_tokens:
                passes[-1].append(request)
            else:
                passes.append([request])
        return passes

    def _whole_logits(self, batch: Sequence[SampleRequest]) -> Tensor:
        """Logits behind the last token of each conversation, computed from its first token on, [batch, vocab]."""
        rows = [r.prompt + r.output for r in batch]
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        longest = int(lengths.max())
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self._device)
        return plain_logits(self._model, ids, lengths, torch.arange(len(rows), device=self._device), lengths - 1).float()
