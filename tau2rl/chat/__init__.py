"""Messages <-> token ids. Three protocols behind one contract (`types.ChatCodec`), and the packing of an episode.

- `native.py`: the checkpoint's own chat template with `tools=`; plain text goes to the user, `<tool_call>` blocks are calls.
- `cookbook.py`: one `<tool_call>` a turn, `respond` and `done` among the tools; `cookbook_prompt.py` has its system prompt.
- `transcript.py`: JSON lines as bytes, for policies that read messages.
- `template.py`, `probes.py`: what a template writes around a sampled turn, and the proof that it never goes back on it.
- `parsing.py`, `arguments.py`, `writing.py`: a sampled turn to actions and back, every fault with its `MalformedKind`.
- `tokenizers.py`, `byte_tokenizer.py`: text <-> ids, for a checkpoint and without one.
- `pack.py`: an episode to a training sample.

No model, server, tau2 or torch here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tau2rl.config import ChatConfig
    from tau2rl.types import ChatCodec


def make_codec(config: ChatConfig, *, cookbook_prompt: Path | None = None) -> ChatCodec:
    """The codec that a run asks for. Raises UserError: no tokenizer, or a chat template that cannot be used.

    `cookbook_prompt` is a copy of the published checkpoints' own prompt file; see `cookbook_prompt.upstream_prompt`.
    """
    if config.protocol == "transcript":
        from tau2rl.chat.transcript import TranscriptCodec

        return TranscriptCodec()
    from tau2rl.chat.tokenizers import load_tokenizer
    from tau2rl.errors import UserError

    if not config.tokenizer:
        raise UserError(
            f"chat.protocol `{config.protocol}` needs chat.tokenizer",
            hint="the directory of the checkpoint's tokenizer, or `bytes` for the built-in one",
        )
    tokenizer = load_tokenizer(config.tokenizer)
    if config.protocol == "native":
        from tau2rl.chat.native import NativeCodec

        return NativeCodec(tokenizer)
    from tau2rl.chat.cookbook import CookbookCodec
    from tau2rl.chat.cookbook_prompt import OUR_PROMPT, upstream_prompt

    prompt = upstream_prompt(cookbook_prompt) if cookbook_prompt else OUR_PROMPT
    return CookbookCodec(tokenizer, compressed=config.policy_text == "compressed", prompt=prompt)
