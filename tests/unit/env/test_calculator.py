"""tau2's `calculate` with a bound, pinned here:

- whatever is written in its characters, with spaces, signs and parentheses anywhere, the answer or error is tau2's own
- so it is for arguments that are no text, calls, and expressions that are thousands of operations deep
- numbers past the bound are an error message: one power cannot stop the process, nor can a chain of products
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tau2rl.env.domain import domain

from tau2.data_model.message import ToolCall
from tau2.registry import registry

OURS, TAU2 = domain("airline").environment(), registry.get_env_constructor("airline")()
SPACES = st.sampled_from(["", "", " ", "  "])
# Small ones: what comes of a few of them in a row stays far below the bound.
NUMBERS = st.sampled_from(["0", "1", "2", "3", "7", "10", "99", "2.5", ".5", "3.", "007", "1 2", "", "()", "...", "."])


def answer(environment: Any, expression: Any) -> tuple[str, bool]:
    call = ToolCall(id="c", name="calculate", arguments={"expression": expression})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # `2(3)`
        said = environment.get_response(call)
    return said.content, said.error


def join(parts: tuple[str, ...]) -> str:
    return "".join(parts)


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", "//", "**"])
    exponents = st.sampled_from(["2", "-2", "+3", ".5", "(1/3)", "0", "-1", "- 1", "2 ** 2"])
    return st.one_of(
        st.tuples(inner, SPACES, operators.filter(lambda o: o != "**"), SPACES, inner).map(join),
        st.tuples(inner, SPACES, st.just("**"), SPACES, exponents).map(join),
        st.tuples(SPACES, st.sampled_from(["-", "+", "--", "- +"]), SPACES, inner).map(join),
        st.tuples(SPACES, st.just("("), inner, SPACES, st.just(")"), SPACES).map(join),
        st.tuples(inner, st.just("("), inner, st.just(")")).map(join),  # a call
        st.tuples(inner, st.sampled_from(["(", ")", "**", "*", " "])).map(join),  # broken
    )


@given(st.recursive(NUMBERS, larger, max_leaves=5))
def test_every_expression_has_tau2s_answer_or_error(expression: str) -> None:
    assert answer(OURS, expression) == answer(TAU2, expression)


@pytest.mark.parametrize(
    "expression",
    [" 2 ** 3", "(-8)**(1/3)", "2**", "2 ** x", "9**99//9**98", "1e5", "2(1/0)**2", "-" * 300 + "2**2", "9.9**9999", "\t2**3"],
)
def test_these_have_tau2s_answer_or_error(expression: str) -> None:
    assert answer(OURS, expression) == answer(TAU2, expression)


@pytest.mark.parametrize("value", [5, 2.5, None, True, [], ["**"], ["2", "**", "2"], [["**"]], {}, {"**": 1}], ids=repr)
def test_what_is_no_text_has_tau2s_error(value: Any) -> None:
    assert answer(OURS, value) == answer(TAU2, value)


@pytest.mark.parametrize("depth", [100, 989, 1000, 2500, 3500, 20_000])
@pytest.mark.parametrize("shape", ["2**2{+1}", "2**2{*1}", "{-}2**2", "{1**}2", "2**2{()}", "{(}2**2{)}", "2{(*}3{**2)}"])
def test_a_deep_expression_has_tau2s_answer_or_error(shape: str, depth: int) -> None:
    expression = re.sub(r"\{(.+?)\}", lambda found: found[1] * depth, shape)
    assert answer(OURS, expression) == answer(TAU2, expression)


@pytest.mark.parametrize("expression", ["9**9**9", "(-9)**99999999", "*".join(["9**30000"] * 400), "2**((9**9)**9)"])
def test_a_huge_number_is_an_error_message_and_not_the_end_of_the_process(expression: str) -> None:
    program = (
        "import sys\n"
        "from tau2rl.env.domain import domain\n"
        "from tau2.data_model.message import ToolCall\n"
        "call = ToolCall(id='c', name='calculate', arguments={'expression': sys.argv[1]})\n"
        "print(domain('retail').environment().get_response(call).content)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, expression], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "Error: int too large to convert to float"
