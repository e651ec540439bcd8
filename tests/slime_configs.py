"""The configs of clusters, for the tests that go over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tau2rl.config import STAGES, GrpoConfig, SftConfig, load_config, read_config_file
from tau2rl.slime.model import ModelShape, shape_of

ROOT = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(
    file.relative_to(ROOT).as_posix() for file in ROOT.glob("*/*.yaml") if read_config_file(file).get("backend") == "slime"
)  # "8xh100/grpo.yaml", ...

QWEN3_4B = {  # config.json of Qwen3-4B-Instruct-2507, what is read of it
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "max_position_embeddings": 262144,
}
SHAPE: ModelShape = shape_of(QWEN3_4B)


def qwen3_5(**text: Any) -> dict[str, Any]:
    """config.json of a dense Qwen3.5, what is read of it; the sizes that differ are given, those of 9B are not."""
    sizes = {
        "model_type": "qwen3_5_text",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "vocab_size": 248320,
        "rms_norm_eps": 1e-06,
        "attn_output_gate": True,
        "attention_bias": False,
        "full_attention_interval": 4,
        "mtp_num_hidden_layers": 1,
        "max_position_embeddings": 262144,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
        },
        **text,
    }
    layers = [("linear_attention", "full_attention")[(i + 1) % 4 == 0] for i in range(sizes["num_hidden_layers"])]
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": sizes["tie_word_embeddings"],
        "text_config": {"layer_types": layers, **sizes},
    }


_SMALL = {"num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_value_heads": 16}
# The published sizes: slime's scripts/models/qwen3.5-*.sh; of 2B that of THUDM/slime#1801; heads of linear attention, which no
# script has, as the checkpoints' own config.json has them.
QWEN3_5: dict[str, dict[str, Any]] = {
    "0.8B": qwen3_5(**_SMALL, hidden_size=1024, intermediate_size=3584, tie_word_embeddings=True),
    "2B": qwen3_5(**_SMALL, hidden_size=2048, intermediate_size=6144, tie_word_embeddings=True),
    "4B": qwen3_5(hidden_size=2560, intermediate_size=9216, tie_word_embeddings=True),
    "9B": qwen3_5(),
    "27B": qwen3_5(
        hidden_size=5120, intermediate_size=17408, num_hidden_layers=64, num_attention_heads=24, linear_num_value_heads=48
    ),
}


def model_of(name: str) -> dict[str, Any]:
    """config.json of the model that a config is for, as its file name says."""
    return QWEN3_5["4B"] if "qwen3.5" in name else QWEN3_4B


def load_slime(name: str, *sets: str) -> SftConfig | GrpoConfig:
    """A config by its place below `configs/`, with settings in front of it."""
    file = ROOT / name
    config = load_config(STAGES[read_config_file(file)["stage"]], file, sets)
    assert isinstance(config, SftConfig | GrpoConfig)
    return config
