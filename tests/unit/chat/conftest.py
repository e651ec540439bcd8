"""One codec of each protocol, over bytes and over a real BPE."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2rl.chat import make_codec
from tau2rl.chat.tokenizers import HFTokenizer, load_tokenizer
from tau2rl.config import ChatConfig
from tau2rl.protocols import ChatCodec
from tests.unit.chat.talk import save_bpe

KINDS = ("native-bytes", "native-bpe", "cookbook-bytes", "cookbook-bpe", "transcript")


@pytest.fixture(scope="session")
def bpe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the small BPE tokenizer."""
    return save_bpe(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="session")
def bpe(bpe_path: Path) -> HFTokenizer:
    """The small BPE, through the same door as a checkpoint's."""
    found = load_tokenizer(str(bpe_path))
    assert isinstance(found, HFTokenizer)
    return found


@pytest.fixture(scope="session")
def codecs(bpe_path: Path) -> dict[str, ChatCodec]:
    """Every codec by its name."""
    made = {
        f"{protocol}-{name}": make_codec(ChatConfig(protocol=protocol, tokenizer=path))
        for protocol in ("native", "cookbook")
        for name, path in (("bytes", "bytes"), ("bpe", str(bpe_path)))
    }
    return {**made, "transcript": make_codec(ChatConfig(protocol="transcript"))}


@pytest.fixture(params=KINDS)
def codec(request: pytest.FixtureRequest, codecs: dict[str, ChatCodec]) -> ChatCodec:
    """One codec after the other."""
    return codecs[request.param]
