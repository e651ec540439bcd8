"""Code that comes with a checkpoint is never run; pinned here:

- a model or a tokenizer whose `auto_map` names a file of the checkpoint is refused, also where somebody would answer "y"
- a known kind of model with an `auto_map` loads with the class of `transformers`
- slime, which would run such code, is not given such a checkpoint
"""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest

from tau2rl.chat.tokenizers import HFTokenizer
from tau2rl.errors import UserError
from tau2rl.slime.model import read_shape
from tau2rl.train.model import load, save
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
        load(checkpoint)
    assert "never run" in caught.value.hint
    assert not (checkpoint.parent / "ran").exists()


def test_a_known_model_loads_without_the_code_beside_it(checkpoint: Path) -> None:
    assert type(load(checkpoint)).__name__ == "Qwen3ForCausalLM"
    assert not (checkpoint.parent / "ran").exists()


def test_a_tokenizer_that_is_code_is_refused(checkpoint: Path) -> None:
    add(checkpoint / "config.json", model_type="mine")
    add(checkpoint / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        HFTokenizer(str(checkpoint))
    assert not (checkpoint.parent / "ran").exists()


def test_slime_is_not_given_a_checkpoint_that_brings_code(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="brings code of its own"):
        read_shape(checkpoint)
