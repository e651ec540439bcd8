"""From a checkpoint to a model that is ready: on its device, in its precision, wrapped for training, and back again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from tau2rl.config import LocalConfig, LocalTrainConfig
from tau2rl.config.training import LoraConfig
from tau2rl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


DType = Literal["float32", "bfloat16"]


def load(folder: Path | str, *, device: str = "cpu", dtype: DType = "float32") -> PreTrainedModel:
    """A checkpoint as `from_pretrained` reads it. Raises UserError where there is none, or one that cannot be trained here."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"no checkpoint in `{folder}`", hint="it should hold config.json and model.safetensors")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:  # damaged, of an unknown kind, or with code of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        hint = "code that a checkpoint brings along is never run"
        raise UserError(f"cannot read the checkpoint in `{folder}`: {reason}", hint=hint) from None
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


def with_lora(model: PreTrainedModel, lora: LoraConfig) -> nn.Module:
    """Train low-rank additions in place of the weights (peft); their output is scaled by `alpha / rank`."""
    import peft

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] - typed int, divided by the rank and no more
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    return cast(nn.Module, peft.get_peft_model(model, config))


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
    if config.lora.rank:
        ready = with_lora(model, config.lora)
    if config.gradient_checkpointing:
        save_memory(ready)
    return ready


def write_checkpoint(model: nn.Module, folder: Path, *, tokenizer: Path) -> None:
    """Whole weights with the tokenizer files of another checkpoint; `from_pretrained` reads it. Whole or absent."""
    draft = unpublished(folder)
    save(model, draft)
    for pattern in TOKENIZER_FILES:
        for file in tokenizer.glob(pattern):
            shutil.copy(file, draft / file.name)
    publish(draft, folder)


def unpublished(folder: Path) -> Path:
    """An empty directory beside `folder`, to be filled and then published."""
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def publish(draft: Path, folder: Path) -> None:
    """Put a filled directory in the place of `folder`: a reader sees the old one, the new one or none, never a part."""
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
