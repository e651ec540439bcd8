"""The configs of clusters, for the tests that go over all of them."""

from __future__ import annotations

from pathlib import Path

from tau2rl.config import STAGES, GrpoConfig, SftConfig, load, read_file
from tau2rl.slime.model import ModelShape, shape_of

ROOT = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(
    file.relative_to(ROOT).as_posix() for file in ROOT.glob("*/*.yaml") if read_file(file).get("backend") == "slime"
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


def load_slime(name: str, *sets: str) -> SftConfig | GrpoConfig:
    """A config by its place below `configs/`, with settings in front of it."""
    file = ROOT / name
    config = load(STAGES[read_file(file)["stage"]], file, sets)
    assert isinstance(config, SftConfig | GrpoConfig)
    return config
