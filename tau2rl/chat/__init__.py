"""Messages <-> token ids: chat protocols behind one contract, `protocols.ChatCodec`.

A protocol is a module of its own that `chat.protocol` names and that has `codec(config)`; or a class of the user's,
`package.module:Name`, made with the tokenizer and `chat.options`.

- `native.py`: the checkpoint's own chat template with `tools=`; plain text goes to the user, calls in the model's own format.
- `cookbook.py`: one `<tool_call>` a turn, `respond` and `done` among the tools; `short_policies.py` has its short texts.
- `transcript.py`: JSON lines as bytes, for policies that read messages.
- `template.py`: what a template writes around a sampled turn. `families.py`: how each family of models writes the turn itself.
- `proof.py`: that a template and a family do what the protocol promises, or a refusal that says what they do not.
- `parsing.py`: JSON, calls and types, a call against its tool's schema, every fault with its `MalformedKind`.
- `tokenizers.py`: text <-> ids, for a checkpoint and without one.

No model, server, tau2 or torch here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tau2rl import plugins

if TYPE_CHECKING:
    from tau2rl.config import ChatConfig
    from tau2rl.protocols import ChatCodec


def make_codec(config: ChatConfig) -> ChatCodec:
    """The codec that a run asks for.

    Raises UserError: no tokenizer, a chat template that cannot be used, a prompt file that is not the published one, or a
    codec of the user's that cannot be loaded.
    """
    if plugins.is_reference(config.protocol):
        from tau2rl.chat.tokenizers import load_tokenizer

        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
        return plugins.make_plugin(config.protocol, tokenizer, kind="chat codec", options=config.options)
    return importlib.import_module(f"tau2rl.chat.{config.protocol}").codec(config)


def codec_fingerprint(codec: ChatCodec) -> str:
    """16 hex digits that name what a codec writes: the token ids of one fixed conversation.

    A different tokenizer, chat template, system prompt or way to think gives another; it belongs to a run's identity.
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
    thinking = getattr(getattr(codec, "chat", None), "thinking", "off")
    return prefix_hash([*ids, *(b"" if thinking == "off" else thinking.encode())])
