"""From a checkpoint to a model that is ready: on its device, in its precision, wrapped for training, and back again."""

from __future__ import annotations

import math
import pickle
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from tau2rl.config import LocalConfig, LocalTrainConfig
from tau2rl.config.training import LoraConfig
from tau2rl.errors import UserError
from tau2rl.runs.checkpoints import refuse_code
from tau2rl.runs.provenance import refuse_adapter
from tau2rl.train.engine.proof import engine_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


DType = Literal["float32", "bfloat16"]
# What transformers raises for one that is damaged, of an unknown kind, quantized for a library that is not here, with code of its
# own, with a pickle that holds more than tensors, or with a config.json whose values are of other types.
NOT_READ = (
    *(OSError, ValueError, EOFError, RuntimeError, ImportError, AttributeError, LookupError, TypeError, ArithmeticError),
    pickle.UnpicklingError,
)


def load_model(folder: Path | str, *, device: str = "cpu", dtype: DType = "float32") -> PreTrainedModel:
    """A checkpoint as `from_pretrained` reads it, with every weight it should have.

    Raises UserError where there is none, or one that is damaged, not whole, not finite, or an adapter without its base.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    refuse_adapter(Path(folder))
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"no checkpoint in `{folder}`", hint="a checkpoint is a folder with config.json and model.safetensors")
    refuse_code(Path(folder), trusting=False)
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False, weights_only=True,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (*NOT_READ, SafetensorError, StrictDataclassError) as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"
        hint = "code that a checkpoint brings along is never run"
        if isinstance(error, FileNotFoundError | SafetensorError):
            hint = "a file of it is missing, cut off or a pointer to one that is elsewhere: copy or download it again"
        raise UserError(f"cannot read the checkpoint in `{folder}`: {reason}", hint=hint) from None
    model, info = found
    _refuse_parts(folder, model, info)
    _refuse_not_finite(folder, model)
    return cast("PreTrainedModel", cast(nn.Module, model).to(device))


WRAPPERS = {  # beginnings of names -> what wrote them, and what to save in place of it
    "_orig_mod.": "torch.compile wrote them: save `model._orig_mod`",
    "module.": "a data-parallel wrapper wrote them: save `model.module`",
    "base_model.model.": "peft wrote them: save `model.merge_and_unload()`",
}
NAMED = 3  # weights of each kind that an error names


def _refuse_parts(folder: Path | str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Raises UserError where weights are missing, left over or of another shape: the library would play them at random."""
    faults = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(f"{key[0]} ({list(key[1])}, not {list(key[2])})" for key in info["mismatched_keys"]),
    }
    if not any(faults.values()):
        return
    counts = [
        f"{len(names)} weights {what}: {', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}"
        for what, names in faults.items()
        if names
    ]
    hint = _way_out(faults["missing"], faults["unexpected"], model)
    raise UserError(f"the checkpoint in `{folder}` is not whole: {'; '.join(counts)}", hint=hint)


def _refuse_not_finite(folder: Path | str, model: PreTrainedModel) -> None:
    """Raises UserError where a weight is NaN or infinite: what such a model says is nothing that it learned."""
    names = [
        name
        for name, weight in model.named_parameters()
        if weight.numel() and not all(map(math.isfinite, map(float, weight.detach().aminmax())))  # NaN is least and greatest
    ]
    if names:
        some = f"{', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}"
        raise UserError(
            f"the checkpoint in `{folder}` has NaN or infinity in {len(names)} weights: {some}",
            hint="its training had diverged before it was saved: take an earlier checkpoint",
        )


def _way_out(missing: Sequence[str], unexpected: Sequence[str], model: PreTrainedModel) -> str:
    for prefix, way in WRAPPERS.items():
        if any(name.startswith(prefix) for name in unexpected):
            return f"its names begin with `{prefix}`; {way}"
    before = {name.removesuffix(missing[-1]) for name in unexpected if name.endswith(f".{missing[-1]}")} if missing else set()
    if wrapped := [start for start in before if {start + name for name in missing} <= set(unexpected)]:
        return f"its names begin with `{min(wrapped)}`: save the model itself, without what holds it"
    if any(name.endswith("lm_head.weight") for name in missing):
        return "the output layer is not in it: save it, or set `tie_word_embeddings` in config.json if it is the embedding"
    layers = {int(found[1]) for name in (*missing, *unexpected) if (found := re.search(r"\.layers\.(\d+)\.", name))}
    if layers:
        wanted = model.config.get_text_config().num_hidden_layers
        return f"config.json speaks of {wanted} layers, and the files differ in {_listed(layers)}: are all shards there?"
    return "its config.json and its weights are of two models, or a file of it is missing"


def _listed(layers: Collection[int]) -> str:
    shown = ", ".join(map(str, sorted(layers)[:NAMED]))
    return f"layer{'s' if len(layers) > 1 else ''} {shown}{', ...' if len(layers) > NAMED else ''}"


def save(model: nn.Module, folder: Path) -> None:
    """Write whole weights (LoRA merged into a copy) so that `AutoModelForCausalLM.from_pretrained` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    _merged(model).save_pretrained(str(folder))  # pyright: ignore[reportCallIssue]


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
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # pyright: ignore[reportCallIssue]
    except ValueError as error:
        raise UserError(f"this model keeps its activations: {error}", hint="`local.gradient_checkpointing: false`") from None


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
    """A checkpoint on its device, in evaluation mode, to be computed the fastest right way. Raises UserError."""
    dtype = prepare_machine(config)
    model = load_model(checkpoint, device=config.device, dtype=dtype)
    model.eval()
    engine_of(model)
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
