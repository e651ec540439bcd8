"""A model that is asked outside of any conversation: who judges or reviews episodes, who puts made tasks into words.

What it said is kept on disk by the content of the question: the messages, the model, where it is served, its temperature. The
same question is never asked twice, and the answers can be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from tau2rl.config import UserConfig
from tau2rl.env.chat_client import ChatAnswer
from tau2rl.env.user_simulator import UnusableAnswer, UserModel, answer_text, user_usage
from tau2rl.errors import UserError, UserSimulatorFailure
from tau2rl.runs.files import make_folder, read_json, write_json, writing
from tau2rl.types import Usage

T = TypeVar("T")
AT_ONCE = 8  # questions in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """What was made of an answer, and what it took: `Answer(value=0.9, calls=1, usage=Usage(prompt_tokens=900, ...))`."""

    value: T
    calls: int = 0  # 0: it was kept
    usage: Usage = field(default_factory=Usage)


class AskedModel:
    """A model with its kept answers, safe from several threads: `AskedModel(config, cache=Path("judgments"), who="judge")`."""

    def __init__(self, config: UserConfig, *, cache: Path, who: str) -> None:
        """`config`: how it is asked; `who` it is, in messages. Raises UserError for a key that is not set."""
        self._config, self._cache, self._who = config, cache, who
        self.model = config.model
        self.asked = 0  # questions of `answers` that the cache could not answer
        self.known = 0  # those that it could
        self.usage = Usage()  # of what was asked now
        self._user_model()

    def answers(self, version: str, questions: Sequence[str], read: Callable[[str], T | None]) -> list[T]:
        """What `read` makes of each answer, in order, counted in `spent`; `version` is kept beside the answer.

        Raises UserError where a question stays without a usable answer; the answers to the others are kept.
        """
        unique = list(dict.fromkeys(questions))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [pool.submit(self.ask, [{"role": "user", "content": one}], read=read, version=version) for one in unique]
            found = [future.result() for future in asked]
        for answer in found:
            self.asked += answer.calls > 0
            self.known += answer.calls == 0
            self.usage += answer.usage
        values = {question: answer.value for question, answer in zip(unique, found, strict=True)}
        return [values[question] for question in questions]

    def ask(self, messages: Sequence[Mapping[str, str]], *, read: Callable[[str], T | None], version: str = "") -> Answer[T]:
        """What `read` makes of the answer; one of which it makes None is asked for again. Raises UserError."""
        file = self._file(version, messages)
        if file.is_file() and (found := read(str(read_json(file).get("answer", "")))) is not None:
            return Answer(value=found)
        text, answer = self._ask(messages, read)
        make_folder(file.parent)
        with writing(file):
            write_json(file, {"prompt": version, "model": self.model, "answer": text, "usage": asdict(answer.usage)})
        return answer

    def spent(self) -> dict[str, Any]:
        """Questions, tokens and dollars of `answers`, JSON-ready."""
        return {"model": self.model, "asked": self.asked, "cached": self.known, **asdict(self.usage)}

    def _file(self, version: str, messages: Sequence[Mapping[str, str]]) -> Path:
        config = self._config
        content = json.dumps([version, config.model, config.api_base, config.temperature, list(messages)])
        name = hashlib.sha256(content.encode()).hexdigest()
        return self._cache / name[:2] / f"{name}.json"

    def _ask(self, messages: Sequence[Mapping[str, str]], read: Callable[[str], T | None]) -> tuple[str, Answer[T]]:
        calls, usage = 0, Usage()

        def read_body(answer: ChatAnswer) -> tuple[str, T]:
            nonlocal calls, usage
            calls, usage = calls + 1, usage + user_usage(answer.body) + Usage(cost_usd=answer.cost_usd)
            text = answer_text(answer.body)
            if (value := read(text)) is None:
                raise UnusableAnswer("its answer does not end as it was told to")
            return text, value

        try:
            text, value = self._user_model().ask([dict(message) for message in messages], read=read_body)
        except UserSimulatorFailure as failure:
            raise UserError(str(failure), hint="what it has answered is kept: run it again to go on") from None
        return text, Answer(value=value, calls=calls, usage=usage)

    def _user_model(self) -> UserModel:
        """One for each question: its seed goes on with the tries."""
        return UserModel(self._config, (), seed=0, aside=lambda call: call(), who=self._who)
