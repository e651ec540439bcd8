"""Code that comes with a checkpoint is never run; pinned here:

- a model or a tokenizer whose `auto_map` names a file of the checkpoint is refused, also where somebody would answer "y"
- a known kind of model with an `auto_map`, or with a `generate` of its own, loads and samples with the class of `transformers`
- attention kernels that `config.json` names on a hub are not fetched, for the model or a part of it
- slime and its SGLang, which would run such code, are not given such a checkpoint: to train, or to serve the user simulator
- a checkpoint whose config.json or tokenizer files hold values of other types is refused with its folder's name
"""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tau2rl.chat.tokenizers import CHATML_TEMPLATE, HFTokenizer
from tau2rl.config import GrpoConfig, UserConfig
from tau2rl.config.training import ModelConfig, SlimeConfig, SlimeUserConfig
from tau2rl.errors import UserError
from tau2rl.slime.backend import SlimeBackend
from tau2rl.slime.model import read_shape
from tau2rl.train.model import load_model, save
from tests.unit.train.tiny import tiny_model

CODE = "import pathlib\npathlib.Path({mark!r}).touch()\nclass Mine: pass\n"


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real checkpoint to which code was added; the code leaves `ran` beside it."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")  # transformers asks on a terminal
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "checkpoint"
    save(tiny_model(), folder)
    (folder / "mine.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    add(folder / "config.json", auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"})
    return folder


def add(file: Path, **values: object) -> None:
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, **values}))


def test_a_model_that_is_code_is_refused(checkpoint: Path) -> None:
    add(checkpoint / "config.json", model_type="mine")
    with pytest.raises(UserError, match="custom code") as caught:
        load_model(checkpoint)
    assert "never run" in caught.value.hint
    assert not (checkpoint.parent / "ran").exists()


def test_a_known_model_loads_without_the_code_beside_it(checkpoint: Path) -> None:
    assert type(load_model(checkpoint)).__name__ == "Qwen3ForCausalLM"
    assert not (checkpoint.parent / "ran").exists()


def test_a_tokenizer_that_is_code_is_refused(checkpoint: Path) -> None:
    add(checkpoint / "config.json", model_type="mine")
    add(checkpoint / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        HFTokenizer(str(checkpoint))
    assert not (checkpoint.parent / "ran").exists()


def test_a_generate_of_its_own_is_not_taken(checkpoint: Path) -> None:
    add_generate(checkpoint)
    model = load_model(checkpoint)
    assert model.generate.__func__ is type(model).generate
    assert not (checkpoint.parent / "ran").exists()


@pytest.mark.parametrize("value", ["kernels-community/flash-attn", {"text_config": "somebody/attention@main:forward"}])
def test_kernels_of_a_hub_are_not_fetched(checkpoint: Path, value: object) -> None:
    add(checkpoint / "config.json", attn_implementation=value)
    with pytest.raises(UserError, match=r"code of its own.*`attn_implementation`"):
        load_model(checkpoint)


FILES = ("config", "tokenizer_config", "processor_config", "preprocessor_config", "video_preprocessor_config", "config.4.0.0")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("nested", [False, True])
def test_slime_is_not_given_a_checkpoint_that_brings_code(checkpoint: Path, file: str, nested: bool) -> None:
    known = {"auto_map": {"AutoProcessor": "mine.Mine"}}
    add(checkpoint / "config.json", auto_map=None)
    add(checkpoint / f"{file}.json", **({"text_config": [known]} if nested else known))
    with pytest.raises(UserError, match=rf"code of its own.*`auto_map` in .*{file}.json"):
        read_shape(checkpoint)


def test_slime_is_not_given_a_generate_of_its_own(checkpoint: Path) -> None:
    add(checkpoint / "config.json", auto_map=None)
    add_generate(checkpoint)
    with pytest.raises(UserError, match=r"code of its own.*custom_generate"):
        read_shape(checkpoint)


def test_no_user_simulator_that_brings_code_is_served(checkpoint: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    save(tiny_model(), trained)
    user = UserConfig(kind="llm")
    slime = SlimeConfig(user=SlimeUserConfig(gpus=1, checkpoint=checkpoint))
    config = GrpoConfig(backend="slime", model=ModelConfig(init=str(trained)), user=user, slime=slime)
    with pytest.raises(UserError, match=r"code of its own.*checkpoint/config.json"):
        SlimeBackend().plan(config, probe=False)


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},  # needs a library that is not here
        {"quantization_config": 5},
        {"num_attention_heads": 0},
        {"hidden_act": "nonsense"},
        {"model_type": ["qwen3"]},
        {"rope_scaling": {"type": "nonsense"}},
    ],
)
def test_a_config_of_other_values_is_refused(checkpoint: Path, change: dict[str, object]) -> None:
    add(checkpoint / "config.json", **change)
    with pytest.raises(UserError, match=r"cannot read the checkpoint in `.*/checkpoint`"):
        load_model(checkpoint)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer_config", '{"eos_token": 5}'),
        ("tokenizer_config", '{"added_tokens_decoder": [1]}'),
        ("tokenizer_config", '{"auto_map": "mine.Mine"}'),
        ("tokenizer_config", "[1]"),
        ("tokenizer_config", '{"a": ' + "[" * 100_000),
        ("tokenizer", '{"version": "1.0", "model": {"type": "nonsense"}}'),
        ("added_tokens", '{"a": "b"}'),
        ("generation_config", "[1]"),
    ],
)
def test_tokenizer_files_of_other_types_are_refused(tiny_tokenizer: Path, file: str, text: str) -> None:
    HFTokenizer(str(tiny_tokenizer))
    (tiny_tokenizer / f"{file}.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot (load a tokenizer from|read) `.*/tiny_tokenizer"):
        HFTokenizer(str(tiny_tokenizer))


def add_generate(checkpoint: Path) -> None:
    folder = checkpoint / "custom_generate"
    folder.mkdir()
    (folder / "generate.py").write_text(f"{CODE.format(mark=str(checkpoint.parent / 'ran'))}def generate(model): pass\n")


@pytest.fixture
def tiny_tokenizer(tmp_path: Path) -> Path:
    """A directory with a tokenizer of the printable ASCII characters."""
    vocabulary = {chr(code): code - 32 for code in range(32, 127)} | {"<|im_end|>": 95}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocab=vocabulary, merges=[])), eos_token="<|im_end|>")
    made.chat_template = CHATML_TEMPLATE
    folder = tmp_path / "tiny_tokenizer"
    made.save_pretrained(folder)
    return folder
