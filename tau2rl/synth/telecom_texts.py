"""A telecom task in words: what its user says and how they behave, and the reference conversation of an agent that solves it.

The user says everything in `reason_for_call` and in the lines of `known_info`; the phone is looked at and changed by the user's
own tools, which the agent can only ask for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from tau2rl.enums import TRANSFER_TOOL
from tau2rl.synth.generator import Json
from tau2rl.synth.llm_writer import ASK as ASK_KIND, CORRECT, IDENTIFY, NOT_KNOW, WriterLine, within
from tau2rl.synth.request import count_words, joined
from tau2rl.synth.telecom_problems import REBOOT, Case, CaseStep, ProblemBook, filled, user_look
from tau2rl.synth.texts import ASK, CORRECT as PUT_RIGHT, DONE, PACES, STYLES, TWISTED, Text

REASONS = {
    "service": (
        "my phone has had no signal since this morning", "my phone says that it has no service",
        "my phone finds no network any more", "my phone lost its network and doesn't get it back",
    ),
    "mobile_data": (
        "the internet on my phone is slow or doesn't work at all", "my mobile data doesn't work the way it should",
        "pages hardly load on my phone when I'm not on Wi-Fi", "I can't get a decent internet connection on my phone",
    ),
    "mms": (
        "I can't send pictures from my messaging app", "my picture messages don't go out any more",
        "every MMS that I try to send fails", "my phone refuses to send photos as messages",
    ),
}  # fmt: skip
OPENINGS = {
    "plain": ("Hello, I'm calling because {reason}.", "Hi, I need help: {reason}.", "Good morning. I have a problem: {reason}."),
    "terse": ("Problem: {reason}.", "I need help: {reason}.", "Please help: {reason}."),
    "chatty": (
        "Hi! I hope you are having a good day. Mine would be better if it weren't for this: {reason}.",
        "Hello there, thanks for picking up! You won't believe it, but {reason}.",
    ),
    "impatient": ("I don't have much time, so quickly: {reason}.", "Please be quick, I'm in a rush: {reason}."),
}  # fmt: skip
CONTENT = {  # when the user considers it done
    "service": "You are content once the status bar of your phone shows a signal.",
    "mobile_data": "You are content once a speed test of your phone says excellent; with less you are not.",
    "mms": "You are content once your phone says that it can send MMS.",
}
WANTED = {
    "service": (),
    "mobile_data": ("Anything slower than an excellent speed won't do for me.", "I need the speed test to say excellent."),
    "mms": ("All I want is to send an MMS again.",),
}
AMOUNT_RIGHT = ("Sorry, I got that amount wrong. It is {gb} GB that I'd add.", "Sorry, I meant another amount: {gb} GB.")
NOT_KNOWN = (
    "I don't know my customer number, I'm afraid. You would have to look it up.",
    "Sorry, I don't have my customer number at hand. Could you find me without it?",
    "I couldn't tell you my customer number.",
)
DOES_NOT_KNOW = "When the agent asks you for your customer number, you do not know it."
ASK_NUMBER = ("Thank you. Do you also have your customer number?", "Thank you. Could you tell me your customer number, too?")
TELECOM_TWISTS = ("none", "corrected", "does_not_know")
PAYS = ("If there is an open bill, I'll pay it.", "If I still owe you something, I'm ready to pay it.")
REFUELS = (
    "If my data is used up, I'd add {gb} GB, but I'm keeping my plan.",
    "I'm willing to add {gb} GB of data if that is needed, and I don't want another plan.",
)
PURPOSES = {"service": "has_no_service", "mobile_data": "has_no_or_slow_data", "mms": "cannot_send_mms"}
KINDS = (*PURPOSES.values(), "says_what_they_would_pay_for", "says_where_they_are", "says_what_they_expect")
CORES = {  # of what is wrong, the words that stay when a model says it anew
    "service": ("no signal since this morning", "no service", "no network", "lost its network"),
    "mobile_data": (
        "slow or doesn't work at all", "mobile data doesn't work", "pages hardly load", "not on Wi-Fi",
        "decent internet connection",
    ),
    "mms": (
        "can't send pictures", "messaging app", "picture messages don't go out", "every MMS", "fails", "refuses to send photos",
    ),
}  # fmt: skip
KEPT = ("keeping my plan", "another plan", "excellent", "send an MMS", "customer number", "open bill", "still owe")
COUNTRIES = ("Portugal", "Italy", "Japan", "Mexico", "Norway", "Greece", "Canada", "Morocco")
PERSONAS = {
    "easy": (
        "You run a small shop and use your phone for everything. You find most settings yourself and say precisely what you see.",
        "You are an engineer. Phones hold no secrets for you, and you answer questions about yours quickly and exactly.",
        "You are a nurse, calm and used to instructions; you do what you are told step by step and report back.",
    ),
    "hard": (
        "You are a gardener. You can call and take photos; words like APN or roaming mean nothing to you.",
        "You got your first smartphone last year. You are afraid of breaking it, and ask before every step whether it is safe.",
        "You worry easily, mix up the names of settings and need to be told twice where to look.",
    ),
}
BEHAVE = (
    "Before you say anything about your phone, look at it with your tools, and report what they show; never guess it. "
    "Do what the agent asks you to do on your phone, one thing after the other. "
    "Say yes to what the known info says that you are willing to do, and to nothing else."
)
STOP = "When it works again or you were handed over to a human, and every question of yours was answered, end the conversation."
ASK_WHO = (
    "I'm sorry to hear that. May I have your name and phone number, please?",
    "I'd be happy to help with that. What is your name, and which phone number is it about?",
    "Let us look into it. Could you tell me your name and your phone number?",
)
FOUND = (
    "Thank you, {name}, I have found your line. Is there anything else that I should know?",
    "Thank you, {name}, I see your account. What else should I know?",
)
MORE = ("Noted. Is there anything else?", "All right. Anything else that I should know?", "I see. What else should I know?")
CHECKS = ("Please {what}, and tell me what {it}.", "Could you {what}, and tell me what {it}?")
AT_ONCE = 3  # looks in one message
GOALS = {
    "service": user_look("check_status_bar", "look at the status bar of your phone once more"),
    "mobile_data": user_look("run_speed_test", "run a speed test"),
    "mms": user_look("can_send_mms", "check whether your phone can send MMS now"),
}
BILLS = "get_bills_for_customer"
TRANSFERRED = "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON."


def case_text(case: Case, persona: str, rng: random.Random, twists: Sequence[str] = TELECOM_TWISTS) -> Text:
    """One of the ways in which this user could talk; `persona`: how well they know their phone."""
    pace, style, identity = rng.choice(sorted(PACES)), rng.choice(sorted(STYLES)), rng.choice(("birth_date", "phone"))
    number = case.line["phone_number"]
    who = f"My name is {case.person.name}, and the phone number is {number}."
    if identity == "birth_date":
        who = f"I'm {case.person.name}, born on {case.person.born}. It's about the phone with the number {number}."
    twist = _twist(case, pace, rng, twists)
    more = [[rng.choice(PAYS)]] if case.intent == "service" else [[_place(case, rng)], _willing(case, twist, rng)]
    more += [[rng.choice(WANTED[case.intent])]] if WANTED[case.intent] else []
    rng.shuffle(more)
    unsure = [rng.choice(NOT_KNOWN)] if twist == "does_not_know" else []
    of_twist = {"corrected": [PUT_RIGHT], "does_not_know": [DOES_NOT_KNOW]}.get(twist, [])
    question = [rng.choice(ASK).format(question=case.question.say)] if case.question else []
    return Text(
        reason=rng.choice(OPENINGS[style]).format(reason=rng.choice(REASONS[case.intent])),
        known=(who, *unsure, *(line for lines in more for line in lines), *question),
        unknown="You do not know what is wrong with your phone or line, or any ids of your account.",
        instructions=" ".join([PACES[pace], STYLES[style].format(table="phone"), *of_twist, BEHAVE, CONTENT[case.intent], STOP]),
        persona=rng.choice(PERSONAS[persona]) if persona in PERSONAS else None,
        behaviour={"pace": pace, "style": style, "twist": twist, "identity": identity, "persona": persona},
    )


def _twist(case: Case, pace: str, rng: random.Random, twists: Sequence[str]) -> str:
    """One of the twists that this user can have; nobody corrects themselves who says everything in one breath."""
    can = {"corrected": pace == "bit_by_bit" and case.intent != "service", "does_not_know": pace != "all_at_once"}
    possible = [twist for twist in TELECOM_TWISTS if twist in twists and can.get(twist, False)]
    return rng.choice(possible) if possible and ("none" not in twists or rng.random() < TWISTED) else "none"


def case_facts(case: Case, text: Text) -> list[str]:
    """What a user has to say, word for word."""
    said = [case.person.name, case.line["phone_number"]]
    said += [case.person.born] if text.behaviour["identity"] == "birth_date" else []
    said += [] if case.intent == "service" else [f"{case.values['gb']:g} GB", "abroad" if case.abroad else "the United States"]
    return [*said, *([case.question.say] if case.question else [])]


def _place(case: Case, rng: random.Random) -> str:
    if case.abroad:
        return f"I'm abroad at the moment, in {rng.choice(COUNTRIES)}."
    return rng.choice(("I'm at home in the United States.", "I'm not traveling, I'm in the United States."))


def _willing(case: Case, twist: str, rng: random.Random) -> list[str]:
    """How much data they would take; of who corrects themselves, another amount first."""
    right, say = f"{case.values['gb']:g}", rng.choice(REFUELS)
    if twist != "corrected":
        return [say.format(gb=right)]
    wrong = rng.choice([gb for gb in ("1", "1.5", "2") if gb != right])
    return [say.format(gb=wrong), rng.choice(AMOUNT_RIGHT).format(gb=right)]


def case_lines(case: Case, text: Text) -> tuple[WriterLine, ...]:
    """The lines of a text with what each is for and the words that must stay."""
    facts = [*case_facts(case, text), *CORES[case.intent], *KEPT, *COUNTRIES, "1 GB", "1.5 GB", "2 GB"]
    return tuple(WriterLine(say=line, kind=_kind(case, line), keep=within(line, facts)) for line in (text.reason, *text.known))


def _kind(case: Case, line: str) -> str:
    """What a line is for, of `KINDS`."""
    if line in NOT_KNOWN:
        return NOT_KNOW
    if line.startswith("Sorry, "):
        return CORRECT
    if case.person.name in line:
        return IDENTIFY
    if case.question and case.question.say in line:
        return ASK_KIND
    if line in PAYS or " GB" in line:
        return "says_what_they_would_pay_for"
    if "abroad" in line or "the United States" in line:
        return "says_where_they_are"
    return "says_what_they_expect" if line in WANTED[case.intent] else PURPOSES[case.intent]


def demonstrate_case(case: Case, text: Text, book: ProblemBook, actions: Sequence[Json], rng: random.Random) -> list[Json]:
    """The steps, in the form that `env/task_files.py` reads; `actions` are the reference actions of both sides."""
    agent = {action["name"]: action["action_id"] for action in actions if action["requestor"] == "assistant"}
    lines = text.known if text.behaviour["pace"] != "all_at_once" else ()
    steps = [*_listen(case, text, lines, rng)]
    if case.beyond:
        steps += [*_hand_over(case, agent[TRANSFER_TOOL], rng)]
    else:
        steps += [*_repair(case, book, agent, rng), {"say": _last_words(case, rng)}]
    return steps


def _listen(case: Case, text: Text, lines: Sequence[str], rng: random.Random) -> Iterator[Json]:
    """Ask who it is, look them and their lines up, then ask for a line at a time until there are no more."""
    if lines:
        yield {"say": rng.choice(ASK_WHO)}
    unsure = text.behaviour["twist"] == "does_not_know"
    if unsure:
        yield {"say": rng.choice(ASK_NUMBER)}
    if text.behaviour["identity"] == "birth_date":
        yield _call("get_customer_by_name", full_name=case.person.name, dob=case.person.born)
    else:
        yield _call("get_customer_by_phone", phone_number=case.line["phone_number"])
    for line in case.person.lines[: case.person.lines.index(dict(case.line)) + 1]:  # which one it is is not said before
        yield _call("get_details_by_id", id=line["line_id"])
    first = 2 if unsure else 1
    for number in range(first, len(lines) + 1 if lines else 0):
        yield {"say": rng.choice(FOUND).format(name=case.person.name.split()[0]) if number == first else rng.choice(MORE)}


def _repair(case: Case, book: ProblemBook, agent: dict[str, str], rng: random.Random) -> Iterator[Json]:
    """Look at one thing after the other, put right what is wrong, up to the last problem; then see whether it works."""
    left = [problem.group for problem in case.problems]
    seen: set[str] = set()
    asked: list[CaseStep] = []  # looks that go into the next message
    for group in book.groups.values():
        if not left or case.intent not in group.intents or (group.abroad and not case.abroad):
            continue
        for step in group.looks:
            if step.by == "assistant":
                yield from _flush(asked, rng)
                yield _call(step.call, **filled(step, case.values))
            elif step.call not in seen:
                asked.append(step)
            seen.add(step.call)
        if group in left or len(asked) == AT_ONCE:
            yield from _flush(asked, rng)
        if group in left:
            left.remove(group)
            problem = next(problem for problem in case.problems if problem.group is group)
            for step in problem.fixes:
                yield from _fix(case, step, agent)
    if case.fixes[-1].call == REBOOT.call:
        yield from _fix(case, REBOOT, agent)
    yield _ask([GOALS[case.intent]], rng)
    if case.question:
        yield _call(BILLS, customer_id=case.person.customer_id)


def _flush(asked: list[CaseStep], rng: random.Random) -> Iterator[Json]:
    """Ask for the looks that wait, if there are any, and keep none."""
    if asked:
        yield _ask(asked, rng)
    asked.clear()


def _ask(looks: Sequence[CaseStep], rng: random.Random) -> Json:
    """Ask the user to look at something."""
    what = joined([f"{step.words} ({step.call})" for step in looks])
    return {"say": rng.choice(CHECKS).format(what=what, it="it shows" if len(looks) == 1 else "they show")}


def _fix(case: Case, step: CaseStep, agent: dict[str, str]) -> Iterator[Json]:
    for each in step.looks:
        yield _call(each.call, **filled(each, case.values))
    if step.say:
        yield {"say": step.say.format(tool=step.call, **case.values)}
    if step.by == "assistant":
        yield {"action": agent[step.call]}


def _hand_over(case: Case, transfer: str, rng: random.Random) -> Iterator[Json]:
    """Look at what is beyond the agent, say so, answer the question, and hand over."""
    problem = case.beyond
    assert problem is not None and case.question is not None
    for step in problem.group.looks:
        if step.by == "user":
            yield _ask([step], rng)
        elif step.call != BILLS:
            yield _call(step.call, **filled(step, case.values))
    yield _call(BILLS, customer_id=case.person.customer_id)
    why = f"I am sorry, but {problem.because}. {_answer(case)}"
    yield {"say": f"{why} I will hand you over to a human agent who can go on with this."}
    yield {"action": transfer}
    yield {"say": TRANSFERRED}


def _last_words(case: Case, rng: random.Random) -> str:
    return " ".join([rng.choice(DONE), *([_answer(case)] if case.question else []), "Is there anything else?"])


def _answer(case: Case) -> str:
    assert case.question is not None
    return f"The amount that you asked for is ${case.question.value}."


def _call(tool: str, **arguments: Any) -> Json:
    """A call of the agent that is no reference action: it looks something up."""
    return {"call": tool, "arguments": arguments}


def purpose(case: Case) -> str:
    """What the task is about, for people: `mms, 2 problems: airplane_mode_on and bad_wifi_calling`."""
    said = f"{case.intent}, {count_words(len(case.problems), 'problem')}: {joined([p.name for p in case.problems])}"
    return f"{said}; must be handed over for {case.beyond.name}" if case.beyond else said
