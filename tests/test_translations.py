"""The words of our widgets are there in every language."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("en", "ja", "zh")
SCRIPTS = [path for path in sorted((ROOT / "web").glob("*.js")) if path.name != "i18n.js"]

LITERAL = r"""(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
TEXT = rf"{LITERAL}(?:\s*\+\s*{LITERAL})*"
WORDS = re.compile(rf"(?<![\w.])t\(\s*({LITERAL}),\s*(?:({TEXT})|english\b)")
ENGLISH = re.compile(rf"const english =\s*({TEXT});")
"""A long text may stand before the call, under this name."""
ANY_WORDS = re.compile(r"(?<![\w.])t\(")
PLACE = re.compile(r"\{\w+\}")


def words_in(script: str) -> list[tuple[str, str]]:
    """Key and English text of every `t("key", "English")`."""
    found: list[tuple[str, str]] = []
    for words in WORDS.finditer(script):
        before = ENGLISH.findall(script, 0, words.start())
        if words[2] or before:
            found.append((written(words[1]), written(words[2] or before[-1])))
    return found


def written(text: str) -> str:
    """What strings in JavaScript, joined by `+`, say."""
    return "".join(ast.literal_eval(one) for one in re.findall(LITERAL, text))


def words_of(language: str) -> dict[str, str]:
    text = (ROOT / "locales" / language / "main.json").read_text(encoding="utf-8")
    return json.loads(text)["anyadapter"]


def words_in_code() -> dict[str, str]:
    texts = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    return dict(pair for text in texts for pair in words_in(text))


def test_words_are_found_in_any_layout():
    script = """t("one", "One"); x = t(\n  "two",\n  'Two "and" ' +\n "more\\"", { a });
    const english =\n  "Three"; throw new Error(t("three", english)); start(1, 2); at("no", "No")"""
    assert words_in(script) == [("one", "One"), ("two", 'Two "and" more"'), ("three", "Three")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_all_words_are_written_out_so_that_they_are_found(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(words_in(text)) == len(ANY_WORDS.findall(text))


def test_a_key_means_the_same_everywhere():
    meanings: dict[str, set[str]] = {}
    for path in SCRIPTS:
        for key, english in words_in(path.read_text(encoding="utf-8")):
            meanings.setdefault(key, set()).add(english)
    assert {key: found for key, found in meanings.items() if len(found) > 1} == {}


def test_the_english_words_are_those_of_the_code():
    assert words_of("en") == words_in_code()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_there_and_no_other(language: str):
    assert words_of(language).keys() == words_in_code().keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_have_the_places_of_the_english_words(language: str):
    translated = words_of(language)
    for key, english in words_in_code().items():
        assert sorted(PLACE.findall(translated[key])) == sorted(PLACE.findall(english)), key
        assert translated[key].strip(), key
