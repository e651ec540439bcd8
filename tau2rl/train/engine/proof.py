"""Whether a model may have our attention and KV-cache slots: it may when they give what the library's own forward pass gives.

The proof is numeric. A copy of the model in float32, few layers of it where it is large, with weights large enough that no
softcap or sink hides in the rounding, scores a branching batch and samples two turns of several conversations. What does not
agree, or raises, takes the plain path: slower, and right.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tau2rl.config import SamplingConfig
from tau2rl.train.engine.forward import collate, plain_logits, score_tokens
from tau2rl.train.engine.generator import Sampler, SampleRequest, TokenGenerator
from tau2rl.train.engine.plain_generator import PlainGenerator
from tau2rl.train.engine.shared_prefix import attends, bare, switch_on
from tau2rl.types import TrainingSample

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # between log-probabilities, in nats
CACHE_TOLERANCE = 1e-3  # of the library's cache: recurrent layers amplify rounding, a lost state costs whole nats
GAIN = 1.0  # standard deviation of what a layer of the copy makes of inputs of 1
WHOLE = 20_000_000  # weights of a model that is copied whole
VOCABULARY = 64
WINDOW = 8  # of sliding layers in the copy, so that short rows reach beyond it


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How a model is computed, and why: `Engine(training="plain", sampling="cache", reason="its attention is eager")`."""

    training: Literal["shared-prefix", "plain"]
    sampling: Literal["slots", "cache", "recompute"]
    reason: str


PROVED = Engine(training="shared-prefix", sampling="slots", reason="log-probabilities are those of the plain pass")
_known: WeakKeyDictionary[nn.Module, Engine] = WeakKeyDictionary()


def engine_of(model: nn.Module) -> Engine:
    """The fastest right way to compute the model. The first call finds it, and gives the model our attention where that is it."""
    if attends(model):
        return PROVED
    return _known.setdefault(bare(model), _known.get(bare(model)) or _prove(model))


def record_engine(model: nn.Module, record: Callable[..., None]) -> None:
    """Say which way the model is computed, in the log and in what a run records (`RunFolder.record`)."""
    engine = engine_of(model)
    log.info("training: %s, sampling: %s (%s)", engine.training, engine.sampling, engine.reason)
    record(engine=asdict(engine))


def sampler_for(model: nn.Module, **settings: Any) -> Sampler:
    """What samples from the model. `settings`: those of `Sampler`."""
    engine = engine_of(model)
    if engine.sampling == "slots":
        return TokenGenerator(model, **settings)
    return PlainGenerator(model, cached=engine.sampling == "cache", **settings)


def _prove(model: nn.Module) -> Engine:
    with _own_random_numbers(model):
        try:
            twin = copy_of(bare(model))
        except Exception as error:  # noqa: BLE001 - whatever a model does on its way to a copy, it is still to be trained
            return Engine(training="plain", sampling="recompute", reason=f"no copy to prove it on: {_line(error)}")
        fault = _fault(twin)
        if not fault:
            switch_on(model)
            return PROVED
        return Engine(training="plain", sampling="recompute" if _cache_fault(twin) else "cache", reason=fault)


def _own_random_numbers(model: nn.Module) -> AbstractContextManager[None]:
    """Nobody else's random numbers move inside."""
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    return torch.random.fork_rng(devices=devices)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _fault(twin: nn.Module) -> str:
    """What speaks against our attention and slots for this model; "" for nothing."""
    config: Any = twin.config
    if config._attn_implementation != "sdpa":
        return f"its attention is `{config._attn_implementation}`, not torch's `sdpa`"
    plain = copy.deepcopy(twin)
    switch_on(twin)
    try:
        for what, apart in (
            ("shared prefixes", _scored_apart(twin, plain)),
            ("slots", _sampled_apart(TokenGenerator(twin), plain)),
        ):
            if not apart <= TOLERANCE:  # nan too
                return f"log-probabilities with {what} are {apart:.1g} nats from those of the plain pass"
    except Exception as error:  # noqa: BLE001 - a model that our attention cannot compute is a model for the plain path
        return f"our attention does not compute it: {_line(error)}"
    finally:
        cast(Any, twin).set_attn_implementation("sdpa")
    return ""


def _cache_fault(twin: nn.Module) -> bool:
    """Whether the library's cache does not give what its whole pass gives."""
    try:
        return not _sampled_apart(PlainGenerator(twin, cached=True), twin) <= CACHE_TOLERANCE
    except Exception:  # noqa: BLE001 - a model without a cache, or with one of its own kind
        return True


def copy_of(model: nn.Module) -> nn.Module:
    """A copy in float32 on the model's device, of random weights; of its first layers, with a small vocabulary."""
    config: Any = copy.deepcopy(model.config)
    text: Any = config.get_text_config()
    _cut_layers(model, text)
    for name, most in (("vocab_size", VOCABULARY), ("vocab_size_per_layer_input", VOCABULARY), ("sliding_window", WINDOW)):
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, min(getattr(text, name), most))
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None  # they may lie outside the vocabulary
    torch.manual_seed(0)
    twin = cast(Any, type(model))._from_config(config, dtype=torch.float32, attn_implementation=config._attn_implementation)
    twin = cast(nn.Module, twin).to(next(model.parameters()).device).eval()
    with torch.no_grad():
        for weight in twin.parameters():
            if weight.dim() > 1:
                weight.normal_(std=GAIN * weight.shape[-1] ** -0.5)
    return twin


def _cut_layers(model: nn.Module, text: Any) -> None:
    """Leave a large model's config one layer of each kind, two at least. Raises ValueError where layers differ more."""
    if sum(p.numel() for p in model.parameters()) <= WHOLE:
        return
    layers: Any = cast(Any, model).get_decoder().layers
    kinds = list(getattr(text, "layer_types", None) or ["full_attention"] * len(layers))
    shapes = [tuple((name, p.shape) for name, p in layer.named_parameters()) for layer in layers]
    if len(set(zip(kinds, shapes, strict=True))) != len(set(kinds)):
        raise ValueError("layers of one kind have different weights")
    kept = max(2, 1 + max(kinds.index(kind) for kind in kinds))
    text.num_hidden_layers = kept
    if getattr(text, "layer_types", None):
        text.layer_types = kinds[:kept]


def _tokens(count: int, seed: int, vocabulary: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(2, vocabulary) for _ in range(count)]


@torch.no_grad()
def _scored_apart(twin: nn.Module, plain: nn.Module) -> float:
    """How far the log-probabilities of a branching batch are from those of each row alone."""
    size = _vocabulary(twin)
    head, branch = _tokens(20, 0, size), _tokens(6, 1, size)
    rows = [[*head, *branch, *_tokens(9, 2, size)], [*head, *branch, *_tokens(5, 3, size)], [*head, *_tokens(12, 4, size)]]
    rows.append(_tokens(7, 5, size))
    samples = [TrainingSample(token_ids=tuple(r), loss_mask=(0, *[1] * (len(r) - 1)), logprobs=None, turn_spans=()) for r in rows]
    found = score_tokens(twin, collate(samples, device=next(twin.parameters()).device)).logp
    return max(
        abs(ours - theirs)
        for i, row in enumerate(rows)
        for ours, theirs in zip(found[i, 1 : len(row)].tolist(), _plain_logprobs(plain, row), strict=True)
    )


def _sampled_apart(generator: Sampler, plain: nn.Module) -> float:
    """How far the sampler's log-probabilities over two turns of several conversations are from those of the whole text."""
    size = _vocabulary(plain)
    head = _tokens(16, 6, size)
    texts = [[*head, *_tokens(3 + 4 * i, 7 + i, size)] for i in range(4)]
    sampled: list[dict[int, float]] = [{} for _ in texts]  # place -> log-probability
    for turn in range(2):
        requests = [
            SampleRequest(
                session=str(i), prompt=list(text), sampling=SamplingConfig(temperature=1.0), seed=i + turn, max_tokens=n
            )
            for i, (text, n) in enumerate(zip(texts, (6, 1, 3, 6), strict=True))
        ]
        for i, done in enumerate(generator.run(requests)):
            sampled[i] |= dict(enumerate(done.logprobs or (), start=len(texts[i])))
            texts[i] += [*done.token_ids, *_tokens(3, 20 + i, size)]
    wanted = [_plain_logprobs(plain, text) for text in texts]
    return max(abs(p - wanted[i][place - 1]) for i, each in enumerate(sampled) for place, p in each.items())


def _vocabulary(model: nn.Module) -> int:
    config: Any = model.config
    return min(VOCABULARY, int(config.get_text_config().vocab_size))


@torch.no_grad()
def _plain_logprobs(model: nn.Module, row: Sequence[int]) -> list[float]:
    """Of the second token and those behind it, each given all before it, by one forward pass over the row alone."""
    device = next(model.parameters()).device
    ids, columns = torch.tensor([row], device=device), torch.arange(len(row) - 1, device=device)
    logits = plain_logits(model, ids, torch.tensor([len(row)], device=device), torch.zeros_like(columns), columns)
    return logits.float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
