"""The options that build a model, made from a checkpoint's `config.json`.

- for the Qwen2.5, Qwen3 and Qwen3.5 models that slime has scripts for they are the options of its scripts, in any order;
- a checkpoint that transformers 5 wrote, with the rotary base in `rope_parameters`, gives the same;
- a mixture of experts, a stretched rotary embedding, attention without its gate and a file that lacks a number are refused;
- weights, cached bytes and states of a hybrid model are those that can be counted on paper;
- slime's two converters take each other's weights of Qwen3.5 back to the bit (with a checkout of slime).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tau2rl.errors import UserError
from tau2rl.slime.model import ModelShape, read_shape, shape_of, shape_options
from tests.slime_configs import QWEN3_4B, QWEN3_5, SHAPE, qwen3_5
from tests.stubs.slime_stubs import checkout, install

# MODEL_ARGS of slime's scripts/models/qwen3-4B-Instruct-2507.sh, which is qwen3-4B.sh with another rotary base
SCRIPT_4B = """
--swiglu --num-layers 36 --hidden-size 2560 --ffn-hidden-size 9728 --num-attention-heads 32 --group-query-attention
--num-query-groups 8 --use-rotary-position-embeddings --disable-bias-linear --normalization RMSNorm --norm-epsilon 1e-06
--rotary-base 5000000 --vocab-size 151936 --kv-channels 128 --qk-layernorm
"""
OTHERS: dict[str, dict[str, Any]] = {
    "qwen3-0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4B": {},
    "qwen3-8B": {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    "qwen3-14B": {
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5B": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": None,
    },
}


QWEN3_4B_SHAPE = ModelShape(  # as slime/scripts/models/qwen3-4B.sh has it, not as our reader reads it
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
)


def options(words: Sequence[str]) -> dict[str, str]:
    """Options with their values, whatever the order."""
    found = re.findall(r"(--\S+)((?: [^-\s]\S*)*)", " ".join(words))
    return {name: f"{float(value):g}" if re.fullmatch(r"[\d.e-]+", value.strip()) else value.strip() for name, value in found}


def test_qwen3_4b_is_what_slimes_script_says() -> None:
    assert shape_of(QWEN3_4B) == QWEN3_4B_SHAPE
    assert options(shape_options(SHAPE)) == options(SCRIPT_4B.split())


def script(name: str) -> dict[str, str]:
    """The options of slime's script for a model."""
    text = (checkout() / "scripts" / "models" / f"{name}.sh").read_text("utf-8")
    text = text.replace('"${MODEL_ARGS_ROTARY_BASE:-1000000}"', "1000000").replace('"', "")
    return options(re.sub(r"#.*", "", text).split("(", 1)[1].rsplit(")", 1)[0].split())


@pytest.mark.parametrize("name", OTHERS)
def test_each_model_is_what_its_script_says(name: str) -> None:
    wanted = script(name)
    made = options(shape_options(shape_of({**QWEN3_4B, "rope_theta": 1000000, **OTHERS[name]})))
    if "--kv-channels" not in wanted:
        assert int(made.pop("--kv-channels")) == 896 // 14  # Megatron's default: the width by the heads
    assert made == wanted


# MODEL_ARGS of slime's scripts/models/qwen3.5-4B.sh; qwen3.5-2B.sh is that of THUDM/slime#1801, which the pin does not have
SCRIPT_QWEN3_5_4B = """
--spec slime_plugins.models.qwen3_5 get_qwen3_5_spec --disable-bias-linear --qk-layernorm --group-query-attention
--num-attention-heads 16 --num-query-groups 4 --kv-channels 256 --num-layers 32 --hidden-size 2560 --ffn-hidden-size 9216
--use-gated-attention --normalization RMSNorm --apply-layernorm-1p --position-embedding-type rope --norm-epsilon 1e-6
--rotary-percent 0.25 --swiglu --vocab-size 248320 --rotary-base 10000000 --attention-output-gate
"""
SCRIPT_QWEN3_5_2B = (
    SCRIPT_QWEN3_5_4B.replace("heads 16", "heads 8").replace("groups 4", "groups 2").replace("layers 32", "layers 24")
    .replace("2560", "2048").replace("9216", "6144")
)  # fmt: skip


def test_qwen3_5_is_what_slimes_scripts_say() -> None:
    assert options(shape_options(shape_of(QWEN3_5["4B"]))) == options(SCRIPT_QWEN3_5_4B.split())
    assert options(shape_options(shape_of(QWEN3_5["2B"]))) == options(SCRIPT_QWEN3_5_2B.split())


@pytest.mark.parametrize("size", ["0.8B", "4B", "9B", "27B"])
def test_each_qwen3_5_is_what_its_script_says(size: str) -> None:
    assert options(shape_options(shape_of(QWEN3_5[size]))) == script(f"qwen3.5-{size}")


@pytest.mark.parametrize("size", QWEN3_5)
def test_transformers_writes_a_qwen3_5_that_is_read_the_same(size: str) -> None:
    from transformers import Qwen3_5Config

    written = Qwen3_5Config.from_dict(QWEN3_5[size]).to_dict()
    assert shape_of({**written, "auto_map": None}) == shape_of(QWEN3_5[size])


def test_a_hybrid_model_on_paper() -> None:
    shape = shape_of(QWEN3_5["4B"])
    linear = 2560 * (8192 + 4096 + 2 * 32) + 8192 * 4 + 4096 * 2560  # queries, keys, values; gate; decay; convolution; output
    full = 2560 * 256 * (2 * 16 + 16 + 2 * 4)  # queries and their gate, output, keys and values
    assert shape.parameters == 24 * linear + 8 * full + 32 * 3 * 2560 * 9216 + 248320 * 2560  # 4.2 billion
    assert [round(shape_of(config).parameters / 1e9, 1) for config in QWEN3_5.values()] == [0.8, 1.9, 4.2, 9.0, 26.9]


def test_the_rotary_base_is_found_where_transformers_5_writes_it() -> None:
    written = {**QWEN3_4B, "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5000000}}
    assert shape_of(written) == QWEN3_4B_SHAPE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "qwen3_moe"}, "models of type `qwen3_moe`"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary embeddings of type `yarn`"),
        ({"num_hidden_layers": None}, "has no number `num_hidden_layers`"),
        ({"rope_theta": None}, "has no `rope_theta`"),
    ],
)
def test_what_would_train_another_model_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        shape_of({**QWEN3_4B, **change})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (qwen3_5(attn_output_gate=False), "without its gate"),
        (qwen3_5(attention_bias=True), "with a bias"),
        (qwen3_5(layer_types=["full_attention"] * 31), "`layer_types`"),
        (qwen3_5(layer_types=["sliding_attention"] * 32), "`layer_types`"),
        (qwen3_5(linear_num_value_heads=None), "no number `linear_num_value_heads`"),
        (qwen3_5(rope_parameters={"rope_type": "yarn", "rope_theta": 1e7}), "rotary embeddings of type `yarn`"),
        ({"model_type": "qwen3_5"}, "no `text_config`"),
        (qwen3_5()["text_config"], "models of type `qwen3_5_text`"),
        ({**qwen3_5(), "model_type": "qwen3_5_moe"}, "models of type `qwen3_5_moe`"),
    ],
)
def test_a_qwen3_5_that_slime_would_build_otherwise_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        shape_of(config)


TINY = qwen3_5(hidden_size=8, intermediate_size=12, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
LAYER = "model.language_model.layers.3"
WEIGHTS = {  # of Megatron -> of Hugging Face with their shapes
    "decoder.layers.3.self_attention.linear_qkv.weight": {
        f"{LAYER}.self_attn.q_proj.weight": (32, 8),
        f"{LAYER}.self_attn.k_proj.weight": (8, 8),
        f"{LAYER}.self_attn.v_proj.weight": (8, 8),
    },
    "decoder.layers.3.self_attention.linear_proj.weight": {f"{LAYER}.self_attn.o_proj.weight": (8, 16)},
    "decoder.layers.3.self_attention.q_layernorm.weight": {f"{LAYER}.self_attn.q_norm.weight": (4,)},
    "decoder.layers.3.mlp.linear_fc1.weight": {f"{LAYER}.mlp.gate_proj.weight": (12, 8), f"{LAYER}.mlp.up_proj.weight": (12, 8)},
    "decoder.layers.0.self_attention.linear_attn.in_proj_qkv.weight": {
        "model.language_model.layers.0.linear_attn.in_proj_qkv.weight": (24, 8)
    },
    "decoder.layers.0.self_attention.linear_attn.A_log": {"model.language_model.layers.0.linear_attn.A_log": (2,)},
    "embedding.word_embeddings.weight": {"model.language_model.embed_tokens.weight": (16, 8)},
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_slimes_converters_take_each_others_weights_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    to_megatron = importlib.import_module("slime.backends.megatron_utils.hf_to_megatron.qwen3_5")
    to_hf = importlib.import_module("slime.backends.megatron_utils.megatron_to_hf.qwen3_5")
    weights = {key: torch.randn(shape) for key, shape in WEIGHTS[name].items()}
    text = SimpleNamespace(**TINY["text_config"])
    loaded = to_megatron.qwen3_5_hf_tensor(
        name, SimpleNamespace(get_tensor=weights.__getitem__), SimpleNamespace(text_config=text)
    )
    args = SimpleNamespace(kv_channels=4, num_attention_heads=4, num_query_groups=2, hidden_size=8)
    back = dict(to_hf.convert_qwen3_5_to_hf(args, f"module.module.{name}", loaded))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no `config\.json`"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        read_shape(tmp_path)


def test_the_number_of_weights_is_the_one_on_the_models_card() -> None:
    assert QWEN3_4B_SHAPE.parameters == 36 * (2560 * 128 * 80 + 3 * 2560 * 9728) + 151936 * 2560  # 4.0 billion
