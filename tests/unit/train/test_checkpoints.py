"""Pins that a checkpoint is loaded whole or not at all:

- weights that are missing, left over or of another shape are an error that names some of them and the way out; tied ones are not
- NaN and infinity are an error that names the weights, at the command line, too
- a peft adapter is sent to be merged
- files of pickled tensors load, and what else a pickle holds is never run
- the language model of a checkpoint that sees images as well is loaded without the rest, and is whole
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
from typer.testing import CliRunner

from tau2rl.cli import app
from tau2rl.config.training import LoraConfig
from tau2rl.errors import UserError
from tau2rl.train.model import load_model, save, with_lora
from tau2rl.train.tiny import create_tiny
from tests.unit.chat.talk import save_bpe
from tests.unit.train.test_families import BASE, HELLO, LINEAR, family
from tests.unit.train.tiny import SHAPE, tiny_model

Weights = dict[str, Tensor]
ONE_LAYER = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}


def renamed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def held_in_part(weights: Weights) -> Weights:
    left = without("layers.1.")(weights)
    return {"old." + name if name == "model.norm.weight" else name: value for name, value in left.items()}


def changed(folder: Path, change: Callable[[Weights], Weights], **config: Any) -> Path:
    """A checkpoint with an output layer of its own, and what `change` makes of its weights."""
    save(family("qwen3"), folder)
    file = folder / "model.safetensors"
    weights = change(load_file(file))
    os.remove(file)
    save_file(weights, file, metadata={"format": "pt"})
    settings = folder / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text("utf-8")) | config), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "config", "fault", "way"),
    [
        (renamed("_orig_mod."), {}, "unexpected: _orig_mod", r"model\._orig_mod"),
        (renamed("module."), {}, "unexpected: module", r"model\.module"),
        (renamed("base_model.model."), {}, "unexpected: base_model.model", "merge_and_unload"),
        (renamed("actor.inner."), {}, "unexpected: actor", r"begin with `actor\.inner\.`: save the model itself"),
        (held_in_part, {}, r"unexpected: old\.model\.norm", "2 layers, .* layer 1:"),
        (without("lm_head"), {}, r"1 weights missing: lm_head\.weight\n", "tie_word_embeddings"),
        (without("layers.1."), {}, r"11 weights missing: model\.layers\.1\..*, \.\.\.", "2 layers, .* layer 1:"),
        (lambda w: w, ONE_LAYER, r"11 weights unexpected: model\.layers\.1\.", "1 layers, .* layer 1:"),
        (without("embed_tokens"), {}, r"missing: model\.embed_tokens\.weight\n", "two models"),
        (lambda w: w, {"intermediate_size": 32}, r"of another shape: .*mlp.*\[24", "two models"),
    ],
    ids=[
        *("compiled", "data-parallel", "peft", "held", "held in part"),
        *("untied head", "missing layer", "layer left over", "embedding", "shape"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(
    change: Callable[[Weights], Weights], config: dict[str, Any], fault: str, way: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=fault) as refused:
        load_model(changed(tmp_path / "model", change, **config))
    assert "is not whole" in str(refused.value)
    assert re.search(way, refused.value.hint or "")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_their_names(value: float, tmp_path: Path) -> None:
    def spoil(weights: Weights) -> Weights:
        weights["model.layers.1.mlp.up_proj.weight"][3, 2] = value
        return weights

    folder = changed(tmp_path / "model", spoil)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(UserError, match=r"NaN or infinity in 1 weights: model\.layers\.1\.mlp\.up_proj\.weight"):
            load_model(folder, dtype=dtype)


def test_a_stage_that_is_given_such_weights_ends_before_it_plays(tmp_path: Path) -> None:
    start = tmp_path / "start"
    create_tiny([("a", {"messages": HELLO})], SHAPE, start, seed=0)
    weights = load_file(start / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    words = ["--domains", "mock", "--task-split", "synth-train", "--user-model", "scripted", "--output", str(tmp_path / "run")]
    words += ["--set", "limits.context_tokens=4096"]
    result = CliRunner().invoke(app, ["grpo", "--model", str(start), *words, "--inline"])
    assert result.exit_code == 2, result.output
    assert "NaN or infinity in 1 weights: model.norm.weight" in result.output
    assert "an earlier checkpoint" in result.output


def test_a_config_that_contradicts_itself_is_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_model(changed(tmp_path / "model", lambda w: w, num_hidden_layers=1))


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    save(tiny_model(), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path).get_output_embeddings().weight, load_model(tmp_path).get_input_embeddings().weight)  # type: ignore[union-attr]


def test_a_head_of_its_own_is_kept_whatever_the_config_says_of_it(tmp_path: Path) -> None:
    model = load_model(changed(tmp_path / "model", lambda w: w, tie_word_embeddings=True))
    assert torch.equal(model.get_output_embeddings().weight, family("qwen3").get_output_embeddings().weight)  # type: ignore[operator, union-attr]
    save(model, tmp_path / "again")
    assert torch.equal(load_model(tmp_path / "again").get_output_embeddings().weight, model.get_output_embeddings().weight)  # type: ignore[union-attr]


def test_an_adapter_is_sent_to_be_merged(tmp_path: Path) -> None:
    with_lora(tiny_model(), LoraConfig(rank=2)).save_pretrained(tmp_path)  # type: ignore[arg-type, operator]
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"base_model_name_or_path": "some/base"}), "utf-8")
    with pytest.raises(UserError, match=r"adapter of `some/base`, .*merge it first") as refused:
        load_model(tmp_path)
    assert "merge_and_unload" in (refused.value.hint or "")
    words = ["--domains", "mock", "--task-split", "base", "--user-model", "scripted", "--output", str(tmp_path / "run")]
    agent = ["--policy", "local", "--checkpoint", str(save_bpe(tmp_path))]
    result = CliRunner().invoke(app, ["eval", *agent, *words, "--inline"])
    assert result.exit_code == 2
    assert "adapter of `some/base`" in result.output


@pytest.mark.parametrize("left", ["a shard", "half a file", "a pointer", "nothing"])
def test_a_file_that_is_not_there_as_a_whole_is_named(left: str, tmp_path: Path) -> None:
    family("qwen3").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(
        {"half a file": whole[: len(whole) // 2], "a pointer": b"version https://git-lfs.github.com/spec/v1\n"}.get(left, b"")
    )
    if left == "a shard":
        shard.unlink()
    with pytest.raises(UserError, match="cannot read the checkpoint") as refused:
        load_model(tmp_path)
    assert "copy or download it again" in (refused.value.hint or "")


def test_pickled_tensors_load_and_nothing_else_of_a_pickle_is_run(tmp_path: Path) -> None:
    model = family("qwen3")
    save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), file)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in load_model(tmp_path).state_dict().items())

    class Run:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({**model.state_dict(), "more": Run()}, file)
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_language_model_of_one_that_sees_images_is_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {"hidden_size": 8, "intermediate_size": 8, "depth": 1, "num_heads": 1, "out_hidden_size": 16}
    text = {**BASE, "num_hidden_layers": 4, **LINEAR}
    both = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision)).eval()
    save(both, tmp_path / "both")
    model = load_model(tmp_path / "both").eval()
    save(model, tmp_path / "text")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        want = both(input_ids=ids).logits
        for each in (model, load_model(tmp_path / "text")):
            torch.testing.assert_close(each(input_ids=ids).logits, want)
