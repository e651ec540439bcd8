"""The options that build a model, made from a checkpoint's `config.json`.

- for the Qwen3 and Qwen2.5 models that slime has scripts for they are the options of its scripts, in any order;
- a checkpoint that transformers 5 wrote, with the rotary base in `rope_parameters`, gives the same;
- a mixture of experts, a stretched rotary embedding and a file that lacks a number are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tau2rl.errors import UserError
from tau2rl.slime.model import SHAPE_4B, read_shape, shape_of, shape_options
from tests.slime_configs import QWEN3_4B, SHAPE
from tests.stubs.slime_stubs import checkout

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


def options(words: Sequence[str]) -> dict[str, str]:
    """Options with their values, whatever the order; the width of a head is left out where it is the usual one."""
    found = re.findall(r"(--\S+)((?: [^-\s]\S*)*)", " ".join(words))
    return {name: f"{float(value):g}" if re.fullmatch(r"[\d.e-]+", value.strip()) else value.strip() for name, value in found}


def test_qwen3_4b_is_what_slimes_script_says() -> None:
    assert shape_of(QWEN3_4B) == SHAPE_4B
    assert options(shape_options(SHAPE)) == options(SCRIPT_4B.split())


@pytest.mark.parametrize("name", OTHERS)
def test_each_model_is_what_its_script_says(name: str) -> None:
    script = (checkout() / "scripts" / "models" / f"{name}.sh").read_text("utf-8")
    script = script.replace('"${MODEL_ARGS_ROTARY_BASE:-1000000}"', "1000000").replace('"', "")
    wanted = options(script.split("(", 1)[1].rsplit(")", 1)[0].split())
    made = options(shape_options(shape_of({**QWEN3_4B, "rope_theta": 1000000, **OTHERS[name]})))
    if "--kv-channels" not in wanted:
        assert int(made.pop("--kv-channels")) == 896 // 14  # Megatron's default: the width by the heads
    assert made == wanted


def test_the_rotary_base_is_found_where_transformers_5_writes_it() -> None:
    written = {**QWEN3_4B, "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5000000}}
    assert shape_of(written) == SHAPE_4B


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


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no `config\.json`"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        read_shape(tmp_path)


def test_the_number_of_weights_is_the_one_on_the_models_card() -> None:
    assert SHAPE_4B.parameters == 36 * (2560 * 128 * 80 + 3 * 2560 * 9728) + 151936 * 2560  # 4.0 billion
