"""Episodes as lines of JSON: `episodes.jsonl`, `failures.jsonl`, the files of validations. `docs/formats.md` defines the fields.

A reader takes what it knows: a field that a line lacks has its default, and one that is not known is passed over. `SCHEMA` is
raised when that is not enough.

A validation of a training is `val/step_00020.jsonl`: the episodes of the model behind step 20; step 0 is before training. It is
written when it is over, whole or not at all, because a part of it would be taken for the result of all tasks.

`trainer_logprobs/step_00020.jsonl` has what the trainer thought of the tokens that it was about to learn from, a line an attempt:

    {"attempt": "mock/create_task_1#37", "turns": [[-0.693147, -0.0021], [-1.2]]}

A list a turn, a number a token, by the weights before the step: the old log-probabilities of the loss. Beside the sampler's,
which the record has, they show where the two disagree. A step has the attempts that it learned from. A file is whole or absent.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from tau2rl.config import GrpoConfig
from tau2rl.errors import UserError
from tau2rl.runs.files import json_lines, replacing
from tau2rl.runs.secrets import Redactor
from tau2rl.types import EpisodeRecord

# The layout of a line; raised when a reader of the old one would misread the new one. 2: turns may have `kept` and `forced`.
SCHEMA = 2
READ = (1, SCHEMA)
VALIDATIONS, FIRST_VALIDATIONS = "val", "select"  # folders; the second in runs of the first format
FILES = ("episodes.jsonl", "failures.jsonl")  # of a run: what is evidence, and what FAILED


def encode(record: EpisodeRecord) -> bytes:
    r"""One line, its newline included; what `decode` returns is equal to what came in.

    UTF-8 has no lone surrogates (a model can sample half a pair): each becomes `?`. The token ids still have the truth.
    """
    try:
        return _writer().dump_json((record,), by_alias=True)[1:-1] + b"\n"
    except PydanticSerializationError:  # a lone surrogate
        values = _reader().dump_python(record, by_alias=True)
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace") + b"\n"


def decode(line: bytes) -> EpisodeRecord:
    """The record in a line. Raises UserError."""
    try:
        record = _reader().validate_json(line)
    except ValidationError as error:
        _refuse_other_schema(line)
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"not an episode record: {where + ': ' if where else ''}{first['msg']}") from None
    if record.schema not in READ:
        raise _other_schema(record.schema)
    return record


def read_records(path: Path) -> Iterator[EpisodeRecord]:
    """The records of a file, one at a time; nothing where there is no file.

    A last line without its newline was cut by a kill while it was written and is not a record. Any other line that
    cannot be read raises UserError with file and line.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode(line)
            except UserError as error:
                raise UserError(f"`{path}` line {number}: {error.message}", hint=error.hint) from None


def record_files_of(run: Path) -> list[Path]:
    """The files of a run folder that hold its episodes, as far as they are there; those that FAILED last."""
    return [file for name in FILES if (file := run / name).is_file()]


def read_run(run: Path) -> Iterator[EpisodeRecord]:
    """Every record of a run folder, one at a time, those that FAILED behind the others. Raises UserError."""
    return chain.from_iterable(map(read_records, record_files_of(run)))


@cache
def _reader() -> TypeAdapter[EpisodeRecord]:
    return TypeAdapter(EpisodeRecord)


@cache
def _writer() -> TypeAdapter[tuple[EpisodeRecord]]:
    # Infinite log-probabilities stay what they are, which is a matter of the outermost type's config; a dataclass has none.
    return TypeAdapter(tuple[EpisodeRecord], config=ConfigDict(ser_json_inf_nan="constants"))


def _refuse_other_schema(line: bytes) -> None:
    try:
        values: object = from_json(line)  # json.loads has no depth limit of its own
    except ValueError:
        return
    schema = cast("dict[str, object]", values).get("schema", SCHEMA) if isinstance(values, dict) else SCHEMA
    if schema not in READ:
        raise _other_schema(schema)


def _other_schema(schema: object) -> UserError:
    return UserError(
        f"record of schema {schema!r}, this version reads schemas 1 and {SCHEMA}",
        hint="read it with the version of tau2rl that `environment.json` beside it names",
    )


def validation_file(run: Path, step: int) -> Path:
    """Where the validation behind a step goes.

    >>> validation_file(Path("outputs/grpo/a"), 20).as_posix()
    'outputs/grpo/a/val/step_00020.jsonl'
    """
    return run / VALIDATIONS / f"step_{step:05}.jsonl"


def write_validation(run: Path, step: int, episodes: Iterable[EpisodeRecord], *, redactor: Redactor) -> Path:
    """Keep every episode of a validation, FAILED ones too; replaces an earlier one behind the same step."""
    path = validation_file(run, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.writelines(encode(redactor.record(episode)) for episode in episodes)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def validations(run: Path) -> dict[int, Path]:
    """Step -> file of every validation of a run, by step. A run that goes on in the present format replaces older files."""
    files = [file for folder in (FIRST_VALIDATIONS, VALIDATIONS) for file in (run / folder).glob("step_*.jsonl")]
    named = ((re.fullmatch(r"step_(\d+)\.jsonl", file.name), file) for file in files)
    return dict(sorted({int(name[1]): file for name, file in named if name}.items()))


TRAINER_LOGPROBS = "trainer_logprobs"
LOGPROB_DIGITS = 6  # behind the point; a sampler in bfloat16 is apart from its trainer by thousandths
TurnLogprobs = Sequence[Sequence[float | None]]  # [num_turns][num_tokens]


def first_index(config: GrpoConfig, step: int, resample: int = 0) -> int:
    """The number of the first attempt of a step, or of one of its resample rounds; those of earlier steps are smaller."""
    batches = step * (config.algo.max_resample_rounds + 1) + resample
    return batches * config.train.tasks_per_step * config.rollout.num_samples


def write_logprobs(run: Path, step: int, logprobs: Mapping[str, TurnLogprobs]) -> None:
    """Keep those of a step: key of an attempt -> log-probabilities. Raises OSError."""
    file = run / TRAINER_LOGPROBS / f"step_{step:05}.jsonl"
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as out:
        for attempt, turns in logprobs.items():
            rounded = [[_rounded(value) for value in turn] for turn in turns]
            out.write(json.dumps({"attempt": attempt, "turns": rounded}, separators=(",", ":")).encode() + b"\n")


def read_logprobs(run: Path, config: GrpoConfig, index: int, key: str) -> TurnLogprobs | None:
    """Those of the attempt of this number and key; None where the step did not learn from it, or nothing was kept."""
    file = run / TRAINER_LOGPROBS / f"step_{index // first_index(config, 1):05}.jsonl"
    if not file.is_file():
        return None
    try:
        found = next((values for _, values in json_lines(file) if values.get("attempt") == key), None)
    except UserError:  # derived, and of no weight: a damaged file is none
        return None
    return None if found is None else cast("TurnLogprobs", found["turns"])


def rewind_logprobs(run: Path, *, before: int) -> None:
    """Take away the files of step `before` and of those behind it: they are done again."""
    for file in (run / TRAINER_LOGPROBS).glob("step_*.jsonl"):
        if (named := re.fullmatch(r"step_(\d+)", file.stem)) and int(named[1]) >= before:
            file.unlink()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, LOGPROB_DIGITS)
