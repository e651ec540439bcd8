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

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tau2rl.config import ChatConfig
    from tau2rl.types import ChatCodec


def make_codec(config: ChatConfig) -> ChatCodec:
    """The codec that a run asks for.

    Raises UserError: no tokenizer, a chat template that cannot be used, or a prompt file that is not the published one.
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
    from tau2rl.chat.cookbook import OUR_PROMPT, CookbookCodec, upstream_prompt

    prompt = upstream_prompt(config.cookbook_prompt) if config.cookbook_prompt else OUR_PROMPT
    return CookbookCodec(tokenizer, compressed=config.policy_text == "compressed", prompt=prompt)


def fingerprint(codec: ChatCodec) -> str:
    """16 hex digits that name what a codec writes: the token ids of one fixed conversation.

    A different tokenizer, chat template or system prompt gives another; it belongs to a run's identity.
    """
    from tau2rl.hashing import prefix_hash
    from tau2rl.types import CallTool, Message, Opening, Say

    parameters = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    tool = {"type": "function", "function": {"name": "create_task", "description": "Create a task.", "parameters": parameters}}
    greeting = (Message(role="assistant", content="Hi!"), Message(role="user", content="Make a task.\nThanks."))
    ids = codec.open(Opening(domain_policy="# Policy\nBe brief.", messages=greeting, tools=(tool,)))
    for actions, reply in (
        ((CallTool(name="create_task", arguments={"title": "a"}),), Message(role="tool", content='{"id": 1}')),
        ((Say(text="Done."),), Message(role="user", content="Thank you.")),
    ):
        ids = codec.extend(ids, codec.write(actions), (reply,))
    return prefix_hash(ids)
