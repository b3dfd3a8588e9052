"""The text of a stack: what is read, what is refused and how, and that it is written as it is read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyadapter.algorithms.errors import FileError, StackError
from anyadapter.algorithms.stack import (
    BLANKS,
    LARGEST_SEED,
    LARGEST_STRENGTH,
    Row,
    find_adapter,
    format_stack,
    parse_stack,
    rows_of,
)

CASES: Any = json.loads(
    (Path(__file__).parents[1] / "support" / "stack_cases.json").read_text(encoding="utf-8")
)
"""The page is held to the same ones in tests/browser/test_stack_editor.py."""


def row_of(values: list[Any]) -> Row:
    """A row of the cases; JSON tells whole numbers from others, and a row does not."""
    return Row(*(float(one) if place in (1, 2, 5, 6) else one for place, one in enumerate(values)))


def case_id(value: dict[str, Any]) -> str:
    return value.get("case") or value["name"]


@pytest.mark.parametrize("case", CASES["read"], ids=case_id)
def test_a_text_is_read(case: dict[str, Any]):
    assert parse_stack(case["text"]) == tuple(map(row_of, case["rows"]))


@pytest.mark.parametrize("case", CASES["read"], ids=case_id)
def test_rows_are_written(case: dict[str, Any]):
    assert format_stack(map(row_of, case["rows"])) == case["written"]


@pytest.mark.parametrize("case", CASES["refused"], ids=case_id)
def test_a_bad_line_is_refused_by_its_number(case: dict[str, Any]):
    with pytest.raises(StackError) as refused:
        parse_stack(case["text"])
    assert str(refused.value) == case["error"]


@pytest.mark.parametrize("case", CASES["found"], ids=case_id)
def test_a_name_is_found_with_or_without_folder_and_extension(case: dict[str, Any]):
    if case["found"] is None:
        with pytest.raises(FileError, match=re.escape(f'"{case["name"]}"')):
            find_adapter(case["name"], CASES["names"])
    else:
        assert find_adapter(case["name"], CASES["names"]) == case["found"]


def test_an_ambiguous_name_is_answered_with_the_candidates():
    with pytest.raises(FileError, match=r"any of 2 files: other/face.safetensors, sub/face.saf"):
        find_adapter("face", CASES["names"])


few_examples = settings(derandomize=True, deadline=None, database=None, max_examples=300)
line_text = st.text(
    st.one_of(
        st.sampled_from("#|<>:,.-% \t\u3000\\/0lora画é\u2028\x0b"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=24,
)
within_a_field = line_text.map(lambda text: re.sub(r"[|\r\n]", "", text).strip(BLANKS))
strengths = st.floats(-LARGEST_STRENGTH, LARGEST_STRENGTH)
rows = st.builds(
    Row,
    within_a_field.filter(bool),
    strengths,
    strengths,
    within_a_field,
    st.integers(0, LARGEST_SEED),
    st.just(0.0) | st.floats(0, 0.4),
    st.just(1.0) | st.floats(0.5, 1),
    st.booleans(),
)


@few_examples
@given(st.lists(rows, max_size=4))
def test_reading_undoes_writing(drawn: list[Row]):
    assert parse_stack(format_stack(drawn)) == tuple(drawn)


@few_examples
@given(line_text | st.lists(line_text, min_size=2, max_size=5).map(" | ".join))
def test_any_text_is_read_or_refused(text: str):
    try:
        read = parse_stack(text)
    except StackError as error:
        refused = str(error)
        read = ()
    else:
        refused = ""
    assert re.match(r"Line \d+" if refused else "$", refused)
    assert parse_stack(format_stack(read)) == read


@pytest.mark.parametrize(
    "row",
    [
        Row("a|b"),
        Row("a\nb"),
        Row(" a"),
        Row(""),
        Row("a", 21.0),
        Row("a", float("nan")),
        Row("a", blocks="IN:1\nOUT:0"),
        Row("a", blocks="IN:1 | off"),
        Row("a", start=0.6, end=0.5),
        Row("a", seed=-1),
    ],
    ids=repr,
)
def test_a_row_that_no_line_can_hold_is_not_written(row: Row):
    with pytest.raises(StackError, match="cannot stand in a stack"):
        format_stack([row])


def test_a_lora_stack_is_read():
    stack = [("a", 1, 0.5), ["None", 1.0, 1.0], ["b", -1.0, 0], (None, 1.0, 1.0)]
    assert rows_of(stack) == (Row("a", 1.0, 0.5), Row("b", -1.0, 0.0))
    assert rows_of(()) == ()


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("a", "is a list, and this is str"),
        ([("a", 1.0, 1.0), ("b", 1.0)], "Entry 2 .* but tuple of 2"),
        (["abc"], "Entry 1 .* but str"),
        ([("a", "1", 1.0)], r"Entry 1 .* two numbers: \('a', '1', 1.0\)"),
        ([(7, 1.0, 1.0)], "Entry 1 .* two numbers"),
        ([("a", 1.0, float("inf"))], "Entry 1 .* two numbers"),
    ],
)
def test_what_is_no_lora_stack_is_refused(stack: Any, words: str):
    with pytest.raises(StackError, match=words):
        rows_of(stack)
