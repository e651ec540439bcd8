"""Sampling for many requests at once: one key-value slot a conversation, one forward pass for everyone who waits.

Synchronous and single-threaded; `policy.py` puts it on a thread of its own.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from tau2rl.backends.local.cache import SlotCache
from tau2rl.backends.local.model import backbone, head
from tau2rl.backends.local.sampling import Sampling, draw
from tau2rl.types import Completion, FinishReason, Usage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True, eq=False)
class Request:
    """One turn being sampled; `result` is set when it is done."""

    session: str
    prompt: list[int]
    sampling: Sampling
    seed: int
    max_tokens: int
    draw: random.Random = field(init=False)
    output: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    slot: int = -1
    cached: int = 0  # prompt tokens whose keys and values were there already
    result: Completion | None = None
    abandoned: bool = False  # set from outside: nobody wants it any more; it leaves at the next step without a result

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)


class Generator:
    """A batch that requests join and leave at any step.

    The result of a request depends on its prompt, its seed and the weights; who else is in the batch changes only the
    rounding of the matrix products. Conversations keep their keys and values from turn to turn, so a turn costs its new tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        slots: int = 64,
        prefill_tokens: int = 16384,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._model = model
        self._decode = decode
        self._device = next(model.parameters()).device
        self._pad = 0
        self._num_layers = int(model.config.num_hidden_layers)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        self._slots = slots
        self._prefill_tokens = prefill_tokens
        self._waiting: list[Request] = []
        self._active: list[Request] = []
        self.forget()

    def forget(self) -> None:
        """Drop every stored key and value: the weights have changed."""
        if getattr(self, "_active", None):
            raise RuntimeError("the weights changed while turns were being sampled")
        self._cache = SlotCache(layers=self._num_layers, slots=self._slots, device=self._device)
        self._held: dict[int, list[int]] = {}  # slot -> the tokens whose keys and values it holds
        self._sessions: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._free = list(range(self._slots))
        self._donor: int | None = None  # the slot that was opened last; what it shares with a new one is copied

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._active)

    def add(self, request: Request) -> None:
        """Put a request in line."""
        if not request.prompt:
            raise ValueError("an empty prompt has nothing to continue")
        self._waiting.append(request)

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """Sample all of them to the end, in the order given."""
        for request in requests:
            self.add(request)
        while self.busy:
            self.step()
        return [r.result for r in requests if r.result is not None]

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Admit who waits, move everyone one token on; returns those that are done (or abandoned, without a result)."""
        done = [r for r in (*self._waiting, *self._active) if r.abandoned]
        self._waiting = [r for r in self._waiting if not r.abandoned]
        self._active = [r for r in self._active if not r.abandoned]
        self._model.eval()
        fresh = self._admit()
        left = len(done)
        if fresh:
            done += self._forward(fresh, [r.prompt[len(self._held[r.slot]) :] for r in fresh])
        going = [r for r in self._active if r not in fresh]
        if going:
            done += self._forward(going, [r.output[-1:] for r in going])
        for request in done[left:]:
            self._active.remove(request)
        return done

    def _admit(self) -> list[Request]:
        """Requests that get a slot now; a conversation that is being sampled, or no free slot, has to wait."""
        fresh: list[Request] = []
        used = {r.slot for r in self._active}
        budget = self._prefill_tokens
        for request in list(self._waiting):
            slot = self._slot_for(request.session, used)
            if slot is None:
                continue
            request.slot = slot
            self._share(request)
            new = len(request.prompt) - len(self._held[slot])
            if fresh and new > budget:
                break
            budget -= new
            used.add(slot)
            fresh.append(request)
            self._waiting.remove(request)
        self._active += fresh
        return fresh

    def _slot_for(self, session: str, used: set[int]) -> int | None:
        slot = self._sessions.get(session)
        if slot is not None:
            self._sessions.move_to_end(session)
            return None if slot in used else slot
        if self._free:
            slot = self._free.pop()
        else:
            old = next((s for s, held in self._sessions.items() if held not in used), None)
            if old is None:
                return None
            slot = self._sessions.pop(old)
        self._sessions[session] = slot
        self._held[slot] = []
        return slot

    def _share(self, request: Request) -> None:
        """Cut the slot back to what it has in common with the prompt, or copy a longer beginning from the donor."""
        slot, prompt = request.slot, request.prompt
        keep = min(_common(self._held[slot], prompt), len(prompt) - 1)
        self._held[slot] = prompt[:keep]
        donor = self._donor
        if donor is not None and donor != slot:
            shared = min(_common(self._held.get(donor, []), prompt), len(prompt) - 1)
            if shared > keep:
                self._cache.copy(donor, slot, shared)
                self._held[slot] = prompt[:shared]
        request.cached = len(self._held[slot])
        if keep == 0:
            self._donor = slot

    def _forward(self, batch: list[Request], new: list[list[int]]) -> list[Request]:
        """Feed each request its new tokens, sample one token for each; returns those that are done."""
        starts = [len(self._held[r.slot]) for r in batch]
        logits = self._logits([r.slot for r in batch], starts, new)
        for request, tokens in zip(batch, new, strict=True):
            self._held[request.slot].extend(tokens)
        tokens, logprobs = draw(logits, [r.sampling for r in batch], [r.draw.random() for r in batch])
        return [r for r, t, p in zip(batch, tokens, logprobs, strict=True) if self._take(r, t, p)]

    def _logits(self, slots: list[int], starts: list[int], new: list[list[int]]) -> Tensor:
        """Logits after the last new token of each row, [batch, vocab]."""
        longest, width = max(map(len, new)), max(s + len(n) for s, n in zip(starts, new, strict=True))
        self._cache.reserve(max(starts) + longest)
        ids = torch.tensor([n + [self._pad] * (longest - len(n)) for n in new], device=self._device)
        last = torch.tensor([len(n) - 1 for n in new], device=self._device)
        start = torch.tensor(starts, device=self._device)
        positions = start[:, None] + torch.arange(longest, device=self._device)
        # What a padded position writes lies after the row's last token: masked now, overwritten before anyone looks there.
        self._cache.rows = torch.tensor(slots, device=self._device)
        self._cache.columns = positions
        self._cache.width = width
        mask = torch.arange(width, device=self._device) <= positions[:, :, None]  # [batch, new, width]
        hidden = backbone(self._model)(
            input_ids=ids, attention_mask=mask[:, None], position_ids=positions, past_key_values=self._cache, use_cache=True
        ).last_hidden_state
        return head(self._model)(hidden[torch.arange(len(new), device=self._device), last]).float()

    def _take(self, request: Request, token: int, logprob: float) -> bool:
        request.output.append(token)
        request.logprobs.append(logprob)
        stopped = token in request.sampling.stop_token_ids or self._at_stop(request)
        if not stopped and len(request.output) < request.max_tokens:
            return False
        request.result = Completion(
            token_ids=tuple(request.output),
            logprobs=tuple(request.logprobs),
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            usage=Usage(prompt_tokens=len(request.prompt), completion_tokens=len(request.output), cached_tokens=request.cached),
        )
        return True

    def _at_stop(self, request: Request) -> bool:
        if not request.sampling.stop or self._decode is None:
            return False
        tail = self._decode(request.output[-16:])
        return any(tail.endswith(text) for text in request.sampling.stop)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    if a == b[: len(a)]:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
