"""From a config to a model that is ready: on its device, in its precision, wrapped for training, and back to a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from tau2rl.chat.template import chat_dicts
from tau2rl.config import LocalConfig, LocalTrainConfig, ShapeConfig
from tau2rl.data.rows import BadRow, read_row
from tau2rl.errors import UserError
from tau2rl.train.tokenizer import CHAT_TEMPLATE, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Qwen3 small enough for a CPU: `Shape(hidden=96, layers=3, heads=3)`."""

    hidden: int = 96
    layers: int = 3
    heads: int = 3
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int = 32
    intermediate: int = 192
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    embedding_std: float = 0.1
    copy_gain: float = 0.3  # 0 turns the copy-friendly start off


def create(shape: Shape, *, vocab_size: int, seed: int, eos_token_id: int, pad_token_id: int) -> PreTrainedModel:
    """A randomly initialised Qwen3 (tied embeddings, fp32), the same for the same arguments."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        bos_token_id=None,
        use_cache=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        with torch.no_grad():
            nn.init.normal_(model.model.embed_tokens.weight, std=shape.embedding_std)
            if shape.copy_gain:
                _make_copying_easy(model, shape)
    return cast("PreTrainedModel", model)


def _make_copying_easy(model: nn.Module, shape: Shape) -> None:
    """Start attention as a weak copier: what a head reads from a token it writes back as that token.

    With tied embeddings an output projection that is the transpose of the value projection sends the attended token's
    embedding to its own logit. A plain start has to find that pairing first: at this size it takes ten times the steps.
    """
    for layer in model.model.layers:  # pyright: ignore[reportAttributeAccessIssue, reportGeneralTypeIssues]
        value = layer.self_attn.v_proj.weight  # [kv_heads * head_dim, hidden]
        nn.init.orthogonal_(value)
        groups = layer.self_attn.num_key_value_groups
        heads = value.view(-1, shape.head_dim, shape.hidden).repeat_interleave(groups, dim=0).reshape(-1, shape.hidden)
        layer.self_attn.o_proj.weight.copy_(shape.copy_gain * heads.T)


def load(folder: Path | str, *, device: str = "cpu", dtype: DType = "float32") -> PreTrainedModel:
    """A checkpoint as `from_pretrained` reads it. Raises UserError when there is none, or it is of a kind that is not played."""
    from transformers import AutoModelForCausalLM

    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"no checkpoint in `{folder}`", hint="it should hold config.json and model.safetensors")
    given = {"dtype": getattr(torch, dtype), "local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), **given)
    except ValueError as error:  # an unknown kind of model, or one that comes as code
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot load `{folder}`: {reason}", hint="code that a checkpoint brings along is never run") from None
    _check_logits(model.config, folder)
    return cast("PreTrainedModel", cast(nn.Module, model).to(device))


def _check_logits(config: object, folder: Path | str) -> None:
    """Raises UserError for a model that does more to its logits than its output layer: `head` would leave that out."""
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"the model in `{folder}` changes its logits (`{name}`), which the `local` backend does not",
                hint="train it with backend `slime`; Qwen, Llama and Mistral models work here",
            )


def save(model: nn.Module, folder: Path, *, dtype: DType | None = None) -> None:
    """Write whole weights (LoRA merged into a copy) so that `AutoModelForCausalLM.from_pretrained` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = _merged(model)
    state = None if dtype is None else {k: v.to(getattr(torch, dtype)) for k, v in whole.state_dict().items()}
    whole.save_pretrained(str(folder), state_dict=state)  # pyright: ignore[reportCallIssue]


def _merged(model: nn.Module) -> nn.Module:
    if not hasattr(model, "merge_and_unload"):
        return model
    import copy

    return cast(nn.Module, copy.deepcopy(model).merge_and_unload())  # pyright: ignore[reportCallIssue]


def with_lora(model: PreTrainedModel, *, rank: int, alpha: float, dropout: float = 0.0, targets: str = "all-linear") -> nn.Module:
    """Train low-rank additions in place of the weights (peft)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=int(alpha), lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    return cast(nn.Module, get_peft_model(model, config))


def save_memory(model: nn.Module) -> None:
    """Compute activations again in the backward pass in place of keeping them: a third more time, far less memory."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # pyright: ignore[reportCallIssue]


def _bare(model: nn.Module) -> nn.Module:
    """The causal LM inside LoRA's wrapper, adapters included; any other model as it is."""
    return cast(nn.Module, model.get_base_model()) if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]


def backbone(model: nn.Module) -> nn.Module:
    """The decoder without its output layer."""
    return cast(nn.Module, _bare(model).model)


def head(model: nn.Module) -> nn.Module:
    """The output layer: hidden states to logits."""
    return cast(nn.Module, _bare(model).get_output_embeddings())  # pyright: ignore[reportCallIssue]


def num_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """How many weights, tied ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


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
