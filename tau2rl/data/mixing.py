"""Row files mixed by weight: duplicates across sources dropped, near ones too, the origin and licence of every row kept with it.

A row stays as it was, in its own layout, which every stage reads; its `metadata` gets what it lacks of `source`, `source_row`,
`layout` and `licence`. Which rows are drawn, and in which order they stand, are hashes of the seed and of what a row teaches: the
same command gives the same bytes, and another order of the rows in a source changes nothing but `source_row`.

Near duplicates are exactly those pairs whose sets of word 3-grams have a Jaccard similarity of a threshold or more. No pair is
missed and none is guessed. With a threshold t a set of n grams can only be as similar to an earlier one if the two share one of
their n - ceil(t n) + 1 rarest grams (prefix filtering; Bayardo, Ma and Srikant 2007), so only those are looked up, and each
candidate is then compared whole. A row costs 8 bytes a gram.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from tau2rl.data.jsonl import WrittenRows, naming, read_row_file, row_line, save_rows
from tau2rl.data.layouts import NOT_SAID, row_facts
from tau2rl.data.rows import BadRow
from tau2rl.errors import UserError
from tau2rl.runs.provenance import file_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedFile:
    """A file and its share of the mix: `MixedFile(file=Path("writ.parquet"), weight=2.0, licence="mit")`."""

    file: Path
    weight: float | None = None  # None: all of its rows
    licence: str = ""  # of rows that do not name theirs

    @property
    def name(self) -> str:
        """What rows without a source of their own are said to be from."""
        return "/".join(self.file.expanduser().absolute().parts[-2:])


@dataclass(slots=True, kw_only=True)
class Drawn:
    """What became of a source's rows."""

    read: int = 0
    bad: list[str] = field(default_factory=list[str])  # with name and reason
    duplicates: int = 0
    near_duplicates: int = 0
    grams: list[array[int]] = field(default_factory=list["array[int]"])  # of each place, where near duplicates are looked for
    places: list[tuple[bytes, int, int]] = field(default_factory=list[tuple[bytes, int, int]])  # hash, where it lies, its length
    kept: int = 0
    sha256: str = ""
    licences: set[str] = field(default_factory=set[str])


def mix(
    sources: Sequence[MixedFile], output: Path, *, seed: int, rows: int | None, skip_bad: bool, near: float | None = None
) -> tuple[WrittenRows, list[Drawn]]:
    """Write the mix. Raises UserError.

    `rows`: of the whole; None: as many as the weights allow. `near`: from which similarity on a conversation is a duplicate of an
    earlier one, 0 < near <= 1.
    """
    refuse_odd_weights(sources, rows)
    seen = set[bytes]()
    with tempfile.TemporaryFile() as spool:
        drawn = [_read(source, spool, seen, seed=seed, skip_bad=skip_bad, near=near is not None) for source in sources]
        if near is not None:
            _drop_near(drawn, near)
        for one, count in zip(drawn, row_shares(sources, [len(d.places) for d in drawn], rows), strict=True):
            one.places = sorted(one.places)[:count]
            one.kept = count
        order = sorted((_hash(f"order/{seed}", key), at, size) for one in drawn for key, at, size in one.places)

        def taken() -> Iterator[dict[str, Any]]:
            for _, at, size in order:
                spool.seek(at)
                yield json.loads(spool.read(size))

        return save_rows(output, taken), drawn


def refuse_odd_weights(sources: Sequence[MixedFile], rows: int | None) -> None:
    """Raise UserError for weights that say nothing."""
    weighed = [source for source in sources if source.weight is not None]
    if any(not 0 < cast("float", source.weight) < float("inf") for source in weighed):
        raise UserError("a weight is a number above 0", hint="`--from rows.jsonl=2`")
    if weighed and len(weighed) < len(sources):
        raise UserError("some sources have a weight and others have none", hint="give each one, or none: then all rows are taken")
    if rows is not None and not weighed:
        raise UserError("a number of rows needs a weight for each source", hint="`--from a.jsonl=1 --from b.jsonl=1`")
    if len({source.file.expanduser().absolute() for source in sources}) < len(sources):
        raise UserError("a file is named twice", hint="give it one weight")


def row_shares(sources: Sequence[MixedFile], available: Sequence[int], rows: int | None) -> list[int]:
    """How many rows of each source: largest remainders of the weights. Raises UserError where one has too few.

    >>> row_shares([MixedFile(file=Path("a"), weight=3), MixedFile(file=Path("b"), weight=1)], [90, 40], None)
    [90, 30]
    """
    if any(source.weight is None for source in sources):
        return list(available)
    weights = [cast("float", source.weight) for source in sources]
    total = sum(weights)
    if rows is None:
        rows = int(min(count * total / weight for count, weight in zip(available, weights, strict=True)))
    exact = [rows * weight / total for weight in weights]
    counts = [int(one) for one in exact]
    rest = sorted(range(len(counts)), key=lambda i: (counts[i] - exact[i], i))
    for index in rest[: rows - sum(counts)]:
        counts[index] += 1
    for source, count, had in zip(sources, counts, available, strict=True):
        if count > had:
            raise UserError(
                f"`{source.file}` has {had} rows that are left, and its weight asks for {count}",
                hint="fewer rows (`--rows`), or a smaller weight: no row is written twice",
            )
    return counts


def _drop_near(drawn: Sequence[Drawn], threshold: float) -> None:
    """Take away what is nearly an earlier row of the same or an earlier source."""
    found = near_duplicates([grams for one in drawn for grams in one.grams], threshold)
    first = 0
    for one in drawn:
        kept = [place for number, place in enumerate(one.places, start=first) if number not in found]
        first += len(one.places)
        one.near_duplicates = len(one.places) - len(kept)
        one.places, one.grams = kept, []


def _read(source: MixedFile, spool: BinaryIO, seen: set[bytes], *, seed: int, skip_bad: bool, near: bool) -> Drawn:
    """Put a source's rows down, those that are new. Raises UserError."""
    found = Drawn()
    bad = naming(found.bad if skip_bad else None)
    path = source.file.expanduser()
    for at, data in read_row_file(path, on_bad=bad):
        found.read += 1
        try:
            _, said = row_facts(data, name=at, licence=source.licence, source=source.name)
            row = _with_origin(data, at, source=said.source, layout=said.layout.value, licence=said.licence)
        except BadRow as error:
            bad(at, str(error))
            continue
        if said.fingerprint in seen:
            found.duplicates += 1
            continue
        seen.add(said.fingerprint)
        found.licences.add(said.licence)
        line = row_line(row)
        found.places.append((_hash(f"draw/{seed}", said.fingerprint), spool.seek(0, 2), len(line)))
        spool.write(line)
        if near:
            found.grams.append(grams(f"{said.said}\n{[(call.name, call.arguments) for call in said.calls]}"))
    found.sha256 = file_hash(path)
    return found


def _with_origin(data: Mapping[str, Any], at: str, **origin: str) -> dict[str, Any]:
    metadata = data.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise BadRow("`metadata` that is no object: the origin of the row has no place")
    given = cast("Mapping[str, Any]", metadata)
    kept = {key: value for key, value in given.items() if not (key == "licence" and value == NOT_SAID)}
    return {**data, "metadata": {**origin, "source_row": at, **kept}}


def _hash(salt: str, key: bytes) -> bytes:
    return hashlib.sha256(salt.encode() + key).digest()[:16]


GRAM = 3  # words


def grams(text: str) -> array[int]:
    """The hashes (64 bits) of a text's runs of `GRAM` words, each once, sorted; a shorter text is one of its own.

    >>> len(grams("cancel my order, please")), len(grams("Cancel my order")), len(grams(" ?"))
    (2, 1, 0)
    """
    words = re.findall(r"\w+", text.lower())
    runs = {" ".join(words[i : i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))} if words else set[str]()
    return array("Q", sorted(int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) for run in runs))


def near_duplicates(sets: Sequence[array[int]], threshold: float) -> dict[int, int]:
    """Position of each set that is as similar to an earlier one that is kept -> that one; the others are kept.

    An empty set is like no other. `threshold`: 0 < t <= 1.

    >>> near_duplicates([grams("a b c d e f"), grams("a b c d e g"), grams("x y z")], 0.6)
    {1: 0}
    """
    often = Counter(gram for one in sets for gram in one)
    index: dict[int, list[int]] = {}  # gram -> kept sets that have it among their rarest
    found: dict[int, int] = {}
    for place, one in enumerate(sets):
        if not one:
            continue
        rarest = sorted(one, key=lambda gram: (often[gram], gram))[: len(one) - math.ceil(threshold * len(one) - 1e-9) + 1]
        candidates = sorted({other for gram in rarest for other in index.get(gram, ())})
        mine = set(one)
        like = next((other for other in candidates if _similar(mine, sets[other], threshold)), None)
        if like is not None:
            found[place] = like
            continue
        for gram in rarest:
            index.setdefault(gram, []).append(place)
    return found


def _similar(mine: set[int], other: array[int], threshold: float) -> bool:
    if min(len(mine), len(other)) < threshold * max(len(mine), len(other)) - 1e-9:
        return False
    both = sum(gram in mine for gram in other)
    return both >= threshold * (len(mine) + len(other) - both) - 1e-9
