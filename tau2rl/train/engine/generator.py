"""Continuous batching: one KV-cache slot a conversation, one forward pass for every request that waits for a token.

What a request is, and what every sampler does with one, stands here too; models without slots: `plain_generator.py`.
Synchronous and single-threaded; `train/policy.py` puts it on a thread of its own.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from tau2rl.train.engine.forward import CALL, begins, common_length, padded_batches
from tau2rl.train.engine.kv_cache import SHARING_PAYS, KVCache, SlotTable
from tau2rl.train.engine.shared_prefix import attends, backbone, head
from tau2rl.types import Completion, FinishReason, Usage

if TYPE_CHECKING:
    from torch import Tensor

    from tau2rl.config import SamplingConfig

COPY = 3  # attention for so many new tokens costs as much as a copy of the keys and values that it attends to


@dataclass(slots=True, eq=False)
class SampleRequest:
    """One turn being sampled; `result` is set when it is done."""

    session: str
    prompt: list[int]
    sampling: SamplingConfig
    seed: int
    max_tokens: int  # sampled at most, whatever `sampling.max_tokens` says
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    draw: random.Random = field(init=False)
    output: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    slot: int = -1  # in the KV cache
    cached: int = 0  # prompt tokens whose keys and values were there already
    result: Completion | None = None
    abandoned: bool = False  # set from outside: nobody wants it any more; it leaves at the next step without a result

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)


class Sampler(ABC):
    """Requests in line and being sampled; how their tokens are computed is the subclass's.

    The result of a request depends on its prompt, its seed and the weights; who else is in the batch changes only the
    rounding of the matrix products.
    """

    def __init__(
        self, model: nn.Module, *, slots: int, prefill_tokens: int, decode: Callable[[Sequence[int]], str] | None
    ) -> None:
        """`slots`: requests that are sampled at once. `prefill_tokens`: places of one forward pass over prompts.

        `decode` is needed by stop strings only.
        """
        self._model = model
        self._decode = decode
        self._device = next(model.parameters()).device
        self._count = slots
        self._prefill_tokens = prefill_tokens
        self._waiting: list[SampleRequest] = []
        self._active: list[SampleRequest] = []

    @abstractmethod
    def clear_cache(self) -> None:
        """Drop every stored key and value: the weights have changed. Raises RuntimeError while turns are being sampled."""

    @abstractmethod
    def _advance(self) -> list[SampleRequest]:
        """Admit who waits, into `_active`, move everyone one token on; returns those that are done."""

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._active)

    def add(self, request: SampleRequest) -> None:
        """Put a request in line."""
        if not request.prompt:
            raise ValueError("an empty prompt has nothing to continue")
        self._waiting.append(request)

    def run(self, requests: Sequence[SampleRequest]) -> list[Completion]:
        """Sample all of them to the end, in the order given."""
        for request in requests:
            self.add(request)
        while self.busy:
            self.step()
        return [r.result for r in requests if r.result is not None]

    @torch.inference_mode()
    def step(self) -> list[SampleRequest]:
        """Admit who waits, move everyone one token on; returns those that are done (or abandoned, without a result)."""
        left = [r for r in (*self._waiting, *self._active) if r.abandoned]
        self._waiting = [r for r in self._waiting if not r.abandoned]
        self._active = [r for r in self._active if not r.abandoned]
        self._model.eval()
        done = self._advance()
        for request in done:
            self._active.remove(request)
        return left + done

    def _refuse_while_sampling(self) -> None:
        if self._active:
            raise RuntimeError("the weights changed while turns were being sampled")

    def _sample(self, batch: Sequence[SampleRequest], logits: Tensor) -> list[SampleRequest]:
        """Sample one token for each request from its row of `logits`, [batch, vocab]; returns those that are done."""
        tokens, logprobs = sample_tokens(logits, [r.sampling for r in batch], [r.draw.random() for r in batch])
        return [r for r, t, p in zip(batch, tokens, logprobs, strict=True) if self._take(r, t, p)]

    def _take(self, request: SampleRequest, token: int, logprob: float) -> bool:
        request.output.append(token)
        request.logprobs.append(logprob)
        full = len(request.output) >= request.max_tokens  # which comes before a stop, as SGLang has it
        stopped = not full and (token in request.stop_token_ids or self._at_stop(request))
        if not stopped and not full:
            return False
        request.result = Completion(
            token_ids=tuple(request.output),
            logprobs=tuple(request.logprobs),
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            usage=Usage(prompt_tokens=len(request.prompt), completion_tokens=len(request.output), cached_tokens=request.cached),
        )
        return True

    def _at_stop(self, request: SampleRequest) -> bool:
        if not request.stop or self._decode is None:
            return False
        tail = self._decode(request.output[-16:])
        return any(tail.endswith(text) for text in request.stop)


class TokenGenerator(Sampler):
    """A batch that requests join and leave at any step, for a model that `proof.prove` switched to our attention.

    Conversations keep their keys and values from turn to turn, so a turn costs its new tokens; what a conversation has in common
    with any other that is kept, or that starts beside it, is copied and not computed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        slots: int = 64,
        prefill_tokens: int = 16384,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """Raises ValueError for a model that was not switched to our attention."""
        if not attends(model):
            raise ValueError("KV-cache slots are for models that `tau2rl.train.engine.proof.engine_of` has proved them on")
        super().__init__(model, slots=slots, prefill_tokens=prefill_tokens, decode=decode)
        self._pad = 0
        layers = int(backbone(model).config.get_text_config().num_hidden_layers)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        self._cache = KVCache(layers=layers, slots=slots, device=self._device)
        self.computed = 0  # tokens whose keys and values were computed, since the beginning
        self.clear_cache()

    def clear_cache(self) -> None:
        """Drop every stored key and value: the weights have changed."""
        self._refuse_while_sampling()
        self._cache.clear()
        self._slots = SlotTable(self._count)

    def _advance(self) -> list[SampleRequest]:
        done: list[SampleRequest] = []
        going = list(self._active)
        budget = self._prefill_tokens
        while fresh := self._admit(budget):  # again: who shares a beginning with these has waited for it
            new = [r.prompt[r.cached :] for r in fresh]
            budget -= sum(map(len, new))
            for group in padded_batches([len(n) for n in new], max_tokens=self._prefill_tokens):
                done += self._forward([fresh[i] for i in group], [new[i] for i in group])
        if going:
            going.sort(key=lambda r: r.slot)
            done += self._forward(going, [r.output[-1:] for r in going])
        return done

    def _admit(self, budget: int) -> list[SampleRequest]:
        """Requests that get a KV-cache slot now, of at most `budget` new tokens; at least one of a step, however long.

        Who begins like another of them waits until that beginning is computed and can be copied, if that saves enough.
        """
        fresh: list[SampleRequest] = []
        saved = self._assign_slots(fresh, budget, may_wait=True)
        if 0 < saved < CALL:
            self._assign_slots(fresh, budget - sum(len(r.prompt) - r.cached for r in fresh), may_wait=False)
        self._active += fresh
        return fresh

    def _assign_slots(self, fresh: list[SampleRequest], budget: int, *, may_wait: bool) -> int:
        """Give slots, adding to `fresh`; the tokens that need not be computed because somebody waits.

        A conversation that is being sampled has to wait, and one without a free slot.
        """
        used = {r.slot for r in (*self._active, *fresh)}
        saved = 0
        for request in list(self._waiting):
            slot = self._slots.find(request.session, used)
            if slot is None:
                continue
            wanted = request.prompt[:-1]  # the last token has to be computed: its logits are asked for
            donor, kept = self._slots.donor(wanted, slot)
            leader = next((r for r in fresh if begins(r.prompt, wanted, kept + SHARING_PAYS)), None) if may_wait else None
            if leader is not None:
                saved += common_length(leader.prompt, wanted) - kept
                continue
            new = len(request.prompt) - kept
            if new > budget and (fresh or budget < self._prefill_tokens):
                break
            budget -= new
            if donor != slot:
                self._cache.copy(donor, slot, kept)
            self._slots.open(request.session, slot, wanted[:kept])
            request.slot, request.cached = slot, kept
            used.add(slot)
            fresh.append(request)
            self._waiting.remove(request)
        return saved

    def _forward(self, batch: list[SampleRequest], new: list[list[int]]) -> list[SampleRequest]:
        """Feed each request its new tokens, sample one token for each; returns those that are done."""
        starts = [len(self._slots.held[r.slot]) for r in batch]
        logits = self._logits([r.slot for r in batch], starts, new)
        for request, tokens in zip(batch, new, strict=True):
            self._slots.held[request.slot].extend(tokens)
        return self._sample(batch, logits)

    def _logits(self, slots: list[int], starts: list[int], new: list[list[int]]) -> Tensor:
        """Logits after the last new token of each row, [batch, vocab]."""
        longest, width = max(map(len, new)), max(s + len(n) for s, n in zip(starts, new, strict=True))
        self._cache.reserve(max(starts) + longest)
        self.computed += sum(map(len, new))
        ids = torch.tensor([n + [self._pad] * (longest - len(n)) for n in new], device=self._device)
        last = torch.tensor([len(n) - 1 for n in new], device=self._device)
        start = torch.tensor(starts, device=self._device)
        positions = start[:, None] + torch.arange(longest, device=self._device)
        # What a padded position writes lies after the row's last token: masked now, overwritten before it is read.
        self._cache.rows = torch.tensor(slots, device=self._device)
        self._cache.columns = positions
        self._cache.width = width
        self._cache.window = self._window(slots, longest)
        at = positions
        more: dict[str, Tensor] = {}
        if (window := self._cache.window) is not None and slots != list(range(window.start, window.stop)):
            more["tau2rl_rows"] = self._cache.rows - window.start
            # A slot between them, which asks nothing, may attend to everything: with nothing to attend to it would be nan.
            at = at.new_full((window.stop - window.start, longest), width).index_copy_(0, more["tau2rl_rows"], at)
        mask = torch.arange(width, device=self._device) <= at[:, :, None]  # [rows, new, width]
        more["tau2rl_positions"] = at  # for layers with a sliding window
        hidden = backbone(self._model)(
            input_ids=ids,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **more,
        ).last_hidden_state
        return head(self._model)(hidden[torch.arange(len(new), device=self._device), last]).float()

    def _window(self, slots: Sequence[int], new: int) -> slice | None:
        """The slots from the first to the last of these, where attending to those between too is cheaper than copying these."""
        window = slice(min(slots), max(slots) + 1)
        pays = (window.stop - window.start) * new <= len(slots) * (new + COPY)
        return window if pays else None


def sample_tokens(logits: Tensor, rows: Sequence[SamplingConfig], points: Sequence[float]) -> tuple[list[int], list[float]]:
    """One token and its log-probability for each row of `logits`, [batch, vocab].

    `points` are uniform in [0, 1), one from each request's own stream, so a draw does not depend on who shares the batch.
    A greedy row reports the log-probability at temperature 1: at 0 it would always be 0.
    """
    temperature = torch.tensor([r.temperature or 1.0 for r in rows], device=logits.device)
    logp = torch.log_softmax(logits / temperature[:, None], dim=-1)
    if any(r.top_k > 0 or r.top_p < 1 for r in rows):
        logp = _truncate(logp, rows)
    cumulative = logp.exp().double().cumsum(-1)
    heights = torch.tensor(points, dtype=torch.double, device=logits.device) * cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, heights[:, None], right=True)[:, 0]
    tokens = tokens.clamp(max=logits.shape[1] - 1)
    greedy = torch.tensor([r.temperature == 0 for r in rows], device=logits.device)
    tokens = torch.where(greedy, logits.argmax(-1), tokens)
    return tokens.tolist(), logp.gather(1, tokens[:, None])[:, 0].tolist()


def _truncate(logp: Tensor, rows: Sequence[SamplingConfig]) -> Tensor:
    """Keep each row's top-k tokens, of them the smallest set whose mass reaches top-p, and renormalize."""
    ordered, index = logp.sort(dim=-1, descending=True)
    rank = torch.arange(logp.shape[1], device=logp.device)
    top_k = torch.tensor([r.top_k if r.top_k > 0 else logp.shape[1] for r in rows], device=logp.device)
    kept = torch.where(rank < top_k[:, None], ordered, -torch.inf).log_softmax(-1)
    before = kept.exp().cumsum(-1) - kept.exp()
    top_p = torch.tensor([r.top_p for r in rows], device=logp.device)
    kept = torch.where((before < top_p[:, None]) | (rank == 0), kept, -torch.inf).log_softmax(-1)
    return torch.empty_like(logp).scatter_(1, index, kept)
