"""From a config to a model that is ready: on its device, in its precision, wrapped for training, and back to a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tau2rl.backends.local.model import DType, Shape, create, load, save, save_memory, with_lora
from tau2rl.backends.local.tokenizer import CHAT_TEMPLATE, save_tokenizer, train_tokenizer
from tau2rl.chat.template import chat_dicts
from tau2rl.config import LocalConfig, LocalTrainConfig, ShapeConfig
from tau2rl.errors import UserError
from tau2rl.store.rows import BadRow, read_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_ROWS = 500  # conversations that a tokenizer is made from; more of the same kind teach it nothing
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "chat_template*",
    "special_tokens_map*",
    "added_tokens*",
    "generation_config*",
)


def prepare_machine(config: LocalConfig) -> DType:
    """Set the number of threads; the precision that `auto` means on this device. Raises UserError for a missing device."""
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()  # bars for files that are there at once
    torch.set_num_threads(config.threads)
    try:
        kind = torch.device(config.device).type
    except RuntimeError as error:
        raise UserError(
            f"no such device `{config.device}`: {str(error).splitlines()[0]}", hint="`cpu`, `cuda`, `cuda:1`"
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device", hint="`--set local.device=cpu`, or look at `tau2rl doctor`")
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if kind == "cuda" else "float32"


def open_model(checkpoint: Path, config: LocalConfig) -> PreTrainedModel:
    """A checkpoint on its device, in evaluation mode. Raises UserError."""
    dtype = prepare_machine(config)
    model = load(checkpoint, device=config.device, dtype=dtype)
    model.eval()
    return model


def trainable(model: PreTrainedModel, config: LocalTrainConfig, *, seed: int) -> nn.Module:
    """The model as it is trained: low-rank additions where asked for, activations kept or not."""
    torch.manual_seed(seed)  # of the additions' weights and of every dropout
    ready: nn.Module = model
    lora = config.lora
    if lora.rank:
        ready = with_lora(model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets)
    if config.gradient_checkpointing:
        save_memory(ready)
    return ready


def create_tiny(rows: Iterable[tuple[str, Mapping[str, Any]]], shape: ShapeConfig, folder: Path, *, seed: int) -> None:
    """Write a randomly initialised model and a tokenizer made from the first rows: the same files for the same rows and seed."""
    texts = list(islice(render_rows(rows), TOKENIZER_ROWS))
    if not texts:
        raise UserError("no row to make a tokenizer from", hint="`data.files` names the rows")
    tokenizer = train_tokenizer(texts, vocab_size=shape.vocab_size)
    model = create(
        Shape(
            hidden=shape.hidden,
            layers=shape.layers,
            heads=shape.heads,
            head_dim=shape.head_dim,
            intermediate=shape.intermediate,
            copy_gain=shape.copy_gain,
        ),
        vocab_size=len(tokenizer),
        seed=seed,
        eos_token_id=_id(tokenizer.eos_token_id),
        pad_token_id=_id(tokenizer.pad_token_id),
    )
    draft = _draft(folder)
    save(model, draft)
    save_tokenizer(tokenizer, draft)
    _publish(draft, folder)


def write_checkpoint(model: nn.Module, folder: Path, *, tokenizer: Path) -> None:
    """Whole weights with the tokenizer files of another checkpoint; `from_pretrained` reads it. Whole or absent."""
    draft = _draft(folder)
    save(model, draft)
    for pattern in TOKENIZER_FILES:
        for file in tokenizer.glob(pattern):
            shutil.copy(file, draft / file.name)
    _publish(draft, folder)


def render_rows(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterable[str]:
    """The text of each row that can be read, as the tiny model's chat template writes it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    for name, data in rows:
        try:
            row = read_row(data, name=name)
        except BadRow:  # named in the report, by whoever encodes the rows
            continue
        tools: Sequence[Any] = row.tools
        found: Any = render_jinja_template(
            conversations=[chat_dicts(row.messages)], tools=list(tools) or None, chat_template=CHAT_TEMPLATE
        )
        yield str(found[0][0])


def _id(token: Any) -> int:
    assert isinstance(token, int)  # the tokenizer that we train has one
    return token


def _draft(folder: Path) -> Path:
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def _publish(draft: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
