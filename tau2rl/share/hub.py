"""The upload of a model to the Hugging Face hub: its files and card as one commit, by huggingface_hub, and no secret in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tau2rl.config import dump
from tau2rl.errors import RunIncomplete, UserError
from tau2rl.report.tables import printable
from tau2rl.runs.folder import read_config
from tau2rl.runs.provenance import MODEL_FILES, checkpoint_hash
from tau2rl.runs.secrets import Redactor, key_variables
from tau2rl.share.card import Card

Files = dict[str, Path | bytes]  # by their names in the repository
READ_OF_WEIGHTS = 1 << 20  # bytes of a file of weights in which text may stand: its header


def hub_files(made: Card, run: Path) -> Files:
    """What goes up: the checkpoint's own files, `README.md`, `.eval_results/`.

    Raises UserError where the checkpoint has not the hash any more that its run recorded, or a file holds a secret: the value of
    a variable that is named like one, of one that the run's config names, or the login of the hub.
    """
    found = checkpoint_hash(made.checkpoint)
    if found != made.sha256:
        raise UserError(
            f"`{made.checkpoint}` has the sha256 {found[:16]}, and its run recorded {made.sha256[:16]}",
            hint="it was changed since: the card would be of another model",
        )
    files: Files = {
        file.name: file for pattern in MODEL_FILES for file in sorted(made.checkpoint.glob(pattern)) if file.is_file()
    }
    files["README.md"] = made.text.encode("utf-8", "replace")
    if made.eval_results:
        files[".eval_results/tau2-bench.yaml"] = made.eval_results.encode("utf-8", "replace")
    _refuse_secrets(files, Redactor(key_variables(dump(read_config(run)))))
    return files


def size_of(content: Path | bytes) -> int:
    """In bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def upload(repo: str, files: Mapping[str, Path | bytes], *, private: bool) -> str:
    """Make the repository where there is none, and commit the files; its address.

    Raises UserError without a login, and for a public repository that was meant to be private; RunIncomplete where the hub
    refuses or is not there: the repository may have been made then, and has none of the files.
    """
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not get_token():
        raise UserError("there is no login for the hub", hint="`hf auth login`, or set `HF_TOKEN`")
    api = HfApi(library_name="tau2rl")
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    try:
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        if private and not api.model_info(repo).private:
            raise UserError(f"`{repo}` is there already, and everybody can read it", hint="`--public` uploads to it all the same")
        api.create_commit(repo, operations, commit_message="Model, card and results by tau2rl")
    # What huggingface_hub raises for an answer, a network, a card or a file that it cannot send.
    except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if not line.startswith("For more information check:")]
        words = " ".join(filter(None, lines)) or type(error).__name__
        raise RunIncomplete(f"the hub did not take it: {printable(words)}") from None
    return address


def _refuse_secrets(files: Mapping[str, Path | bytes], redactor: Redactor) -> None:
    from huggingface_hub import get_token

    login = get_token()
    for name, content in files.items():
        text = _text(content)
        if redactor.text(text) != text or (login and login in text):
            raise UserError(f"`{name}` holds the value of a secret, and nothing is uploaded", hint="take it out of the file")


def _text(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return content.decode("utf-8", "replace")
    with content.open("rb") as file:
        return file.read(READ_OF_WEIGHTS if content.suffix == ".safetensors" else -1).decode("utf-8", "replace")
