"""Write `tau2rl/slime/options.json` again: the names, types and choices of every option of slime's `train.py`.

`--survey slime_args.json`: all options, from a survey of slime, Megatron-LM and SGLang at one set of versions.
`--checkout /root/slime`: slime's own options alone, read from the source of a checkout; Megatron's and SGLang's stay as they are.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "tau2rl" / "slime" / "options.json"
SOURCES = {"slime/utils/arguments.py": "slime", "slime/backends/sglang_utils/arguments.py": "slime(sglang)"}
# slime's image has a fork of the router (docker/Dockerfile: zhuzilin/sgl-router) with one policy more than the release on PyPI.
FORK = {"--router-policy": "consistent_hashing"}
TYPES = {"int": "int", "float": "float", "json.loads": "json", "json_list_type": "json"}
SWITCHES = ("store_true", "store_false")


def from_survey(survey: Mapping[str, Any]) -> dict[str, Any]:
    """The contract in the survey."""
    options = [_entry(o["names"], source=o["source"], action=o["action"], type_=o["type"], nargs=o["nargs"], choices=o["choices"])
               for o in survey["options"] if o["action"] != "HelpAction"]  # fmt: skip
    # Negations that argparse makes by itself, which the survey's reading of the source cannot see.
    more = [name for name in survey["cross_check"]["only_in_real"] if name.startswith("--no-")]
    options += [{"names": [name], "source": "sglang", "nargs": 0} for name in more]
    for option in options:
        if (more_choice := FORK.get(option["names"][0])) and more_choice not in option["choices"]:
            option["choices"].append(more_choice)
    return {"versions": {name: text.split()[0] for name, text in survey["versions"].items()}, "options": options}


def from_checkout(root: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """The contract with slime's own options as this checkout has them."""
    others = [o for o in known["options"] if not o["source"].startswith("slime")]
    taken = {name for o in others for name in o["names"]}
    own = [o for file, source in SOURCES.items() for o in read_source((root / file).read_text("utf-8"), source, taken)]
    before = {name: o["source"] for o in known["options"] for name in o["names"]}
    own = [{**o, "source": before.get(o["names"][0], o["source"])} for o in own]
    commit = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {"versions": {**known["versions"], "slime": commit or known["versions"]["slime"]}, "options": others + own}


def read_source(text: str, source: str, taken: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The options that a module adds. `reset_arg` of an option that another parser made only moves its default."""
    for call in ast.walk(ast.parse(text)):
        if not isinstance(call, ast.Call) or not (name := ast.unparse(call.func)).endswith(("add_argument", "reset_arg")):
            continue
        words = [a.value for a in call.args if isinstance(a, ast.Constant)]
        names = [word for word in words if isinstance(word, str) and word.startswith("--")]
        if not names or (name == "reset_arg" and names[0] in taken) or ("temp_parser" in name and source != "slime"):
            continue
        keywords = {k.arg: k.value for k in call.keywords}
        action, type_ = (_text(keywords.get(key)) for key in ("action", "type"))
        nargs, choices = (ast.literal_eval(keywords[key]) if key in keywords else None for key in ("nargs", "choices"))
        yield _entry(names, source=source, action=action, type_=type_, nargs=nargs, choices=choices)


def _text(node: ast.expr | None) -> str | None:
    return None if node is None else str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _entry(names: list[str], *, source: str, action: str | None, type_: str | None, nargs: Any, choices: Any) -> dict[str, Any]:
    """One option, what is usual left out."""
    if action == "argparse.BooleanOptionalAction":
        names = names if any(n.startswith("--no-") for n in names) else [*names, *(f"--no-{n[2:]}" for n in names)]
        nargs = 0
    entry: dict[str, Any] = {"names": names, "source": source}
    if type_ in TYPES:
        entry["type"] = TYPES[type_]
    if action in SWITCHES:
        nargs = 0
    if nargs is not None:
        entry["nargs"] = nargs
    if choices:
        entry["choices"] = [str(choice).rpartition(".")[2] if type_ == "AttnBackend" else str(choice) for choice in choices]
    if action == "append":
        entry["repeats"] = True
    return entry


def write(contract: Mapping[str, Any], file: Path) -> None:
    """One option a line, by name, so that a change is read in a diff."""
    options = sorted(contract["options"], key=lambda o: o["names"][0])
    lines = ",\n".join(json.dumps(o) for o in options)
    file.write_text(f'{{"versions": {json.dumps(contract["versions"])},\n"options": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--survey", type=Path)
    group.add_argument("--checkout", type=Path)
    args = parser.parse_args()
    if args.survey:
        made = from_survey(json.loads(args.survey.read_text("utf-8")))
    else:
        made = from_checkout(args.checkout, json.loads(TARGET.read_text("utf-8")))
    write(made, TARGET)
    print(f"{len(made['options'])} options in {TARGET}")
