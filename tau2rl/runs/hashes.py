"""Hashes of data files and checkpoints, by which reports say what went in and what came out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tau2rl.errors import UserError

# What makes a model what it is; a README, an optimizer state or a log beside it does not.
MODEL_FILES = (
    "*.safetensors", "config.json", "generation_config.json", "tokenizer*", "chat_template*", "vocab*", "merges*",
)  # fmt: skip


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes. Raises UserError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read `{path}`: {error.strerror}") from None
    return digest.hexdigest()


def checkpoint_hash(folder: Path) -> str:
    """sha256 over names and contents of the files that make the model. Raises UserError when there is no checkpoint."""
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})
    if not (folder / "config.json").is_file() or not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"no checkpoint in `{folder}`", hint="it should hold config.json and model.safetensors")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file_hash(file)}\n".encode())
    return digest.hexdigest()


def described(files: Iterable[Path]) -> list[dict[str, Any]]:
    """`[{"path": ..., "sha256": ...}]` of data files."""
    return [{"path": str(file), "sha256": file_hash(file)} for file in files]


def described_checkpoint(folder: Path) -> dict[str, Any]:
    """`{"path": ..., "sha256": ...}` of a checkpoint."""
    return {"path": str(folder), "sha256": checkpoint_hash(folder)}
