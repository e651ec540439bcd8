"""The shape of a model as Megatron has to be told it: from the checkpoint's `config.json` to options.

Megatron builds the model from options and only then reads weights into it. slime's scripts keep one list of options a model
(`scripts/models/qwen3.5-4B.sh`); here the same options are read off the checkpoint, so that the two cannot disagree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tau2rl.errors import UserError
from tau2rl.runs.checkpoints import refuse_code

FAMILIES = ("qwen2", "qwen3", "qwen3_5")  # dense models that slime has scripts for, and whose checkpoints it reads and writes
QWEN3_5_SPEC = ("slime_plugins.models.qwen3_5", "get_qwen3_5_spec")  # reads the kind of each layer off `config.json` itself
USUAL_ROPE = ("default", None)
FULL, LINEAR = "full_attention", "linear_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """The layers of a hybrid model that keep one state a sequence (Gated DeltaNet) in place of keys and values a token.

    slime computes them whole on every GPU that shares a layer or a sequence (slime_plugins/models/hf_attention.py): neither
    `slime.tensor_parallel` nor `slime.context_parallel` makes them smaller.
    """

    layers: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int  # tokens that its convolution sees

    @property
    def mixed(self) -> int:
        """Channels of queries, keys and values together."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def parameters(self, hidden: int) -> int:
        """Weights of these layers' attention, norms and biases left out."""
        inner = self.value_heads * self.value_dim
        return self.layers * (hidden * (self.mixed + 2 * inner + 2 * self.value_heads) + self.mixed * self.kernel)


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
    rope_share: float = 1.0  # of a head's dimensions that are rotated
    linear: LinearAttention | None = None  # None: every layer has full attention

    @property
    def parameters(self) -> int:
        """Weights of the language model, norms left out."""
        queries = 2 * self.heads if self.family == "qwen3_5" else self.heads  # with the gate on what attention puts out
        attention = self.hidden * self.head_dim * (queries + self.heads + 2 * self.groups)
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        linear = self.linear.parameters(self.hidden) if self.linear else 0
        return self.full_layers * attention + linear + 3 * self.layers * self.hidden * self.ffn + embeddings

    @property
    def full_layers(self) -> int:
        """Layers that keep keys and values of every token."""
        return self.layers - (self.linear.layers if self.linear else 0)


def read_shape(checkpoint: Path) -> ModelShape:
    """The shape in a checkpoint's directory. Raises UserError."""
    file = checkpoint.expanduser() / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no `config.json` in `{checkpoint}`", hint="model.init is a directory in Hugging Face's layout"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read `{file}`: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"`{file}` is not a JSON object")
    refuse_code(checkpoint, trusting=True)
    return shape_of(cast("dict[str, Any]", values))


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a `config.json` describes. Raises UserError for a kind of model that is not known to work."""
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise UserError(
            f"models of type `{family}` are not known to train here",
            hint="slime reads the whole model, `qwen3_5`, as it is published"
            if family == "qwen3_5_text"
            else f"known: {', '.join(FAMILIES)}; see docs/slime.md",
        )
    # The language model of one that sees, too; either place may say that the output layer is the embedding.
    tied = bool(config.get("tie_word_embeddings", False))
    config = _text_config(config) if family == "qwen3_5" else config
    heads, hidden = _number(config, "num_attention_heads"), _number(config, "hidden_size")
    return ModelShape(
        family=family,
        layers=_number(config, "num_hidden_layers"),
        hidden=hidden,
        ffn=_number(config, "intermediate_size"),
        heads=heads,
        groups=_number(config, "num_key_value_heads"),
        head_dim=_number(config, "head_dim") if config.get("head_dim") else hidden // heads,
        vocab=_number(config, "vocab_size"),
        norm_eps=_real("rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
        rope_base=_rope_base(config),
        tied=tied or bool(config.get("tie_word_embeddings", False)),
        longest=_number(config, "max_position_embeddings"),
        rope_share=_rope_share(config) if family == "qwen3_5" else 1.0,
        linear=_linear(config) if family == "qwen3_5" else None,
    )


def shape_options(shape: ModelShape) -> list[str]:
    """The options that build the model."""
    options = [
        *("--swiglu", "--num-layers", f"{shape.layers}", "--hidden-size", f"{shape.hidden}"),
        *("--ffn-hidden-size", f"{shape.ffn}", "--num-attention-heads", f"{shape.heads}"),
        *("--group-query-attention", "--num-query-groups", f"{shape.groups}", "--kv-channels", f"{shape.head_dim}"),
        *POSITIONS[shape.family], *("--rotary-base", f"{shape.rope_base}"),
        *("--disable-bias-linear", "--normalization", "RMSNorm", "--norm-epsilon", f"{shape.norm_eps:g}"),
        *("--vocab-size", f"{shape.vocab}"),
    ]  # fmt: skip
    match shape.family:
        case "qwen2":
            options.append("--add-qkv-bias")
        case "qwen3":
            options.append("--qk-layernorm")
        case _:
            options += ["--rotary-percent", f"{shape.rope_share:g}", "--qk-layernorm", "--apply-layernorm-1p"]
            options += ["--use-gated-attention", "--attention-output-gate", "--spec", *QWEN3_5_SPEC]
    if not shape.tied:
        options.append("--untie-embeddings-and-output-weights")
    return options


POSITIONS = {
    "qwen2": ("--use-rotary-position-embeddings",),
    "qwen3": ("--use-rotary-position-embeddings",),
    "qwen3_5": ("--position-embedding-type", "rope"),  # its three axes of positions are one for text
}


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part. Raises UserError for one that slime would build otherwise, without a word."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise UserError("the checkpoint's `config.json` has no `text_config`", hint="slime would take the sizes of a 9B model")
    text = cast("Mapping[str, Any]", text)
    if not text.get("attn_output_gate", True) or text.get("attention_bias", False):
        raise UserError(
            "attention without its gate, or with a bias, is not known to train here",
            hint="`attn_output_gate` and `attention_bias` of the published Qwen3.5 are true and false",
        )
    return text


def _linear(config: Mapping[str, Any]) -> LinearAttention:
    layers = _number(config, "num_hidden_layers")
    every = int(config.get("full_attention_interval") or 4)  # as slime's spec and transformers have it
    kinds = config.get("layer_types") or [FULL if (i + 1) % every == 0 else LINEAR for i in range(layers)]
    if len(kinds) != layers or not set(kinds) <= {FULL, LINEAR}:
        raise UserError(
            "`layer_types` in the checkpoint's `config.json` does not fit its layers", hint=f"{layers} of {FULL}, {LINEAR}"
        )
    return LinearAttention(
        layers=kinds.count(LINEAR),
        key_heads=_number(config, "linear_num_key_heads"),
        value_heads=_number(config, "linear_num_value_heads"),
        key_dim=_number(config, "linear_key_head_dim"),
        value_dim=_number(config, "linear_value_head_dim"),
        kernel=_number(config, "linear_conv_kernel_dim"),
    )


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"the checkpoint's `config.json` has no number `{key}`")
    return value


def _real(key: str, value: object) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"the checkpoint's `config.json` has a `{key}` that is no positive number")
    return float(value)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `config.json` says of the rotary embedding, in the layout of transformers 4 or 5."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def _rope_share(config: Mapping[str, Any]) -> float:
    key = "partial_rotary_factor"
    return _real(key, _rope(config).get(key, config.get(key, 0.25)))


def _rope_base(config: Mapping[str, Any]) -> int:
    """The base of the rotary embedding; a stretched one would need more options."""
    rope = _rope(config)
    if (kind := rope.get("rope_type", rope.get("type"))) not in USUAL_ROPE:
        raise UserError(
            f"rotary embeddings of type `{kind}` are not known to train here", hint="a checkpoint without `rope_scaling`"
        )
    base = rope.get("rope_theta", config.get("rope_theta"))
    if base is None:
        raise UserError("the checkpoint's `config.json` has no `rope_theta`")
    return int(_real("rope_theta", base))
