"""The system prompt of the `cookbook` protocol: our own wording, or the exact text that the published checkpoints read.

Qwen3-4B-tau2-sft1 and -grpo-v1 were trained with the prompt in `tau2_rl_pipeline/prompting.py` of
github.com/jbarnes850/Tau2-RL-Pipeline (Apache-2.0). That text is not part of this project: `upstream_prompt` takes it,
byte for byte, from a copy of the file, which is read as data and never run.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2rl.chat.short_policies import SHORT_POLICIES
from tau2rl.errors import UserError
from tau2rl.types import ToolSchema

UPSTREAM = "https://github.com/jbarnes850/Tau2-RL-Pipeline"
UPSTREAM_COMMIT = "c0d434b453719e149aac70452325f6e04ac086cf"
UPSTREAM_SHA256 = "a0e54902aa13283bdbcd1d87e5622ee18eb4f41f87f7634b76d348cd8a156ab6"  # of prompting.py at that commit

# The gym adds this tool behind the domain's own, so the prompt lists it too.
DONE_TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": "done",
        "description": "Call this function when you are done with the task.",
        "parameters": {"properties": {}, "title": "parameters", "type": "object"},
    },
}
FIELDS = ("domain", "policy", "tools_text")
# One tool that no other domain has: an opening carries no domain name, and the prompt needs it.
_DOMAIN_OF_TOOL = {
    "book_reservation": "airline",
    "exchange_delivered_order_items": "retail",
    "refuel_data": "telecom",
    "update_task_status": "mock",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CookbookPrompt:
    """`CookbookPrompt(source="...", parts=("You help ", ("domain",), ":\\n", ("policy",)), short_policies={})`."""

    source: str  # where the words come from, for a run's record
    parts: tuple[str | tuple[str], ...]  # literal text, or a field's name in a tuple of its own
    short_policies: Mapping[str, str]  # by domain; a domain without one keeps its full policy

    def text(self, policy: str, tools: Sequence[ToolSchema], *, compressed: bool) -> str:
        """The system message for a domain's policy and tools."""
        domain = domain_of(tools)
        if compressed:
            policy = self.short_policies.get(domain, policy)
        fields = {"domain": domain, "policy": policy, "tools_text": tools_text(tools)}
        return "".join(part if isinstance(part, str) else fields[part[0]] for part in self.parts)


OUR_PROMPT = CookbookPrompt(
    source="tau2rl",
    parts=(
        "You are a customer service agent (domain: ",
        ("domain",),
        """).

# How to answer
Each of your turns is a single tool call and nothing beside it:
<tool_call>
{"name": "NAME", "arguments": {"PARAMETER": "VALUE"}}
</tool_call>

Two tools stand for what is not a look-up or a change:
- `respond` sends a message to the customer: {"name": "respond", "arguments": {"content": "TEXT"}}
- `done` ends the conversation, once everything the customer wanted is settled: {"name": "done", "arguments": {}}

Know who the customer is before you change anything, have every change confirmed by them first, and tell them what came of it.

# Policy
""",
        ("policy",),
        "\n\n# Tools\n",
        ("tools_text",),
        "\n",
    ),
    short_policies=SHORT_POLICIES,
)


def tools_text(tools: Sequence[ToolSchema]) -> str:
    """The tools as the prompt lists them: name, description and parameters, indented JSON, `done` at the end."""
    functions: list[dict[str, Any]] = [tool.get("function", tool) for tool in tools]
    if not any(function["name"] == "done" for function in functions):
        functions.append(DONE_TOOL["function"])
    keys: dict[str, Any] = {"name": "unknown", "description": "", "parameters": {"type": "object", "properties": {}}}
    return json.dumps([{key: function.get(key, default) for key, default in keys.items()} for function in functions], indent=2)


def domain_of(tools: Sequence[ToolSchema]) -> str:
    """The tau2 domain that has these tools, "general" for tools of none.

    >>> domain_of([{"type": "function", "function": {"name": "refuel_data"}}])
    'telecom'
    """
    names = (tool.get("function", tool).get("name", "") for tool in tools)
    return next((_DOMAIN_OF_TOOL[name] for name in names if name in _DOMAIN_OF_TOOL), "general")


def upstream_prompt(file: Path, *, sha256: str = UPSTREAM_SHA256) -> CookbookPrompt:
    """The published checkpoints' own prompt, from a copy of their `prompting.py`. Raises UserError: missing, or another text."""
    try:
        source = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the cookbook's prompt `{file}`: {error.strerror}", hint=_HINT) from None
    found = hashlib.sha256(source).hexdigest()
    if found != sha256:
        raise UserError(
            f"`{file}` is not the prompt that the checkpoints were trained with (sha256 {found[:12]}, not {sha256[:12]})",
            hint=_HINT,
        )
    tree = ast.parse(source)
    short = {
        name.removeprefix("COMPRESSED_POLICY_").lower(): text
        for name, text in _constants(tree)
        if name.startswith("COMPRESSED_POLICY_")
    }
    return CookbookPrompt(source=f"upstream sha256:{found[:12]}", parts=_template(tree), short_policies=short)


_HINT = f"git clone {UPSTREAM}, check out {UPSTREAM_COMMIT[:7]} and name its tau2_rl_pipeline/prompting.py"


def _constants(tree: ast.Module) -> list[tuple[str, str]]:
    return [
        (target.id, node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def _template(tree: ast.Module) -> tuple[str | tuple[str], ...]:
    """The one f-string that has all the fields, as parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = tuple(part for value in node.values if (part := _part(value)) is not None)
            if len(parts) == len(node.values) and {part[0] for part in parts if isinstance(part, tuple)} == set(FIELDS):
                return parts
    raise UserError("the cookbook's prompt file has no text with " + ", ".join(f"`{field}`" for field in FIELDS), hint=_HINT)


def _part(value: ast.expr) -> str | tuple[str] | None:
    match value:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=ast.Name(id=name)):
            return (name,)
        case _:
            return None
