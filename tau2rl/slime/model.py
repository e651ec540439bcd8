"""The shape of a model as Megatron has to be told it: from the checkpoint's `config.json` to options.

Megatron builds the model from options and only then reads weights into it. slime's scripts keep one list of options a model
(`scripts/models/qwen3-4B-Instruct-2507.sh`); here the same options are read off the checkpoint, so that the two cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tau2rl.errors import UserError

FAMILIES = ("qwen2", "qwen3")  # dense models that slime has scripts for, and whose Hugging Face directories it reads and writes
USUAL_ROPE = ("default", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A dense decoder: `ModelShape(family="qwen3", layers=36, hidden=2560, ...)` is Qwen3-4B."""

    family: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int  # heads of keys and values
    head_dim: int
    vocab: int
    norm_eps: float
    rope_base: int
    tied: bool  # whether the output layer is the embedding
    longest: int  # positions that the model was made for

    @property
    def parameters(self) -> int:
        """Weights in all, norms left out.

        >>> SHAPE_4B.parameters
        4022272000
        """
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.groups)
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + 3 * self.hidden * self.ffn) + embeddings


SHAPE_4B = ModelShape(
    family="qwen3",
    layers=36,
    hidden=2560,
    ffn=9728,
    heads=32,
    groups=8,
    head_dim=128,
    vocab=151936,
    norm_eps=1e-6,
    rope_base=5_000_000,
    tied=True,
    longest=262144,
)  # Qwen3-4B-Instruct-2507


def read_shape(checkpoint: Path) -> ModelShape:
    """The shape in a checkpoint's directory. Raises UserError."""
    file = checkpoint.expanduser() / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no `config.json` in `{checkpoint}`", hint="model.init is a directory in Hugging Face's layout"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read `{file}`: {error}") from None
    return shape_of(values)


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a `config.json` describes. Raises UserError for a kind of model that is not known to work."""
    family = str(config.get("model_type"))
    if config.get("auto_map"):  # slime and its SGLang load every checkpoint with `trust_remote_code=True`
        raise UserError("the checkpoint brings code of its own (`auto_map`), which slime would run", hint="take `auto_map` out")
    if family not in FAMILIES:
        raise UserError(
            f"models of type `{family}` are not known to train here", hint=f"known: {', '.join(FAMILIES)}; see docs/slime.md"
        )
    heads, hidden = _number(config, "num_attention_heads"), _number(config, "hidden_size")
    return ModelShape(
        family=family,
        layers=_number(config, "num_hidden_layers"),
        hidden=hidden,
        ffn=_number(config, "intermediate_size"),
        heads=heads,
        groups=_number(config, "num_key_value_heads"),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocab=_number(config, "vocab_size"),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_base=_rope_base(config),
        tied=bool(config.get("tie_word_embeddings", False)),
        longest=_number(config, "max_position_embeddings"),
    )


def shape_options(shape: ModelShape) -> list[str]:
    """The options that build the model.

    >>> shape_options(SHAPE_4B)[:5]
    ['--swiglu', '--num-layers', '36', '--hidden-size', '2560']
    """
    options = [
        *("--swiglu", "--num-layers", f"{shape.layers}", "--hidden-size", f"{shape.hidden}"),
        *("--ffn-hidden-size", f"{shape.ffn}", "--num-attention-heads", f"{shape.heads}"),
        *("--group-query-attention", "--num-query-groups", f"{shape.groups}", "--kv-channels", f"{shape.head_dim}"),
        *("--use-rotary-position-embeddings", "--rotary-base", f"{shape.rope_base}"),
        *("--disable-bias-linear", "--normalization", "RMSNorm", "--norm-epsilon", f"{shape.norm_eps:g}"),
        *("--vocab-size", f"{shape.vocab}"),
    ]
    if shape.family == "qwen3":
        options.append("--qk-layernorm")
    if shape.family == "qwen2":
        options.append("--add-qkv-bias")
    if not shape.tied:
        options.append("--untie-embeddings-and-output-weights")
    return options


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int):
        raise UserError(f"the checkpoint's `config.json` has no number `{key}`")
    return value


def _rope_base(config: Mapping[str, Any]) -> int:
    """The base of the rotary embedding, in the layout of transformers 4 or 5; a stretched one would need more options."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}
    if (kind := rope.get("rope_type", rope.get("type"))) not in USUAL_ROPE:
        raise UserError(
            f"rotary embeddings of type `{kind}` are not known to train here", hint="a checkpoint without `rope_scaling`"
        )
    base = rope.get("rope_theta", config.get("rope_theta"))
    if base is None:
        raise UserError("the checkpoint's `config.json` has no `rope_theta`")
    return int(base)
