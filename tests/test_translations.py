"""The words of our widgets are there in every language."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("en", "ja", "zh")
SCRIPTS = [path for path in sorted((ROOT / "web").glob("*.js")) if path.name != "i18n.js"]

LITERAL = r'"(?:[^"\\\n]|\\.)*"'
WORDS = re.compile(rf"(?<![\w.])t\(\s*({LITERAL}),\s*({LITERAL}(?:\s*\+\s*{LITERAL})*)")
ANY_WORDS = re.compile(r"(?<![\w.])t\(")
PLACE = re.compile(r"\{\w+\}")


def words_in(script: str) -> list[tuple[str, str]]:
    """Key and English text of every `t("key", "English")`."""
    found = WORDS.findall(script)
    return [
        (json.loads(key), "".join(map(json.loads, re.findall(LITERAL, english))))
        for key, english in found
    ]


def words_of(language: str) -> dict[str, str]:
    text = (ROOT / "locales" / language / "main.json").read_text(encoding="utf-8")
    return json.loads(text)["anyadapter"]


def words_in_code() -> dict[str, str]:
    texts = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    return dict(pair for text in texts for pair in words_in(text))


def test_words_are_found_in_any_layout():
    script = """t("one", "One"); x = t(\n  "two",\n  "Two " +\n "and \\"more\\"", { a })"""
    assert words_in(script) == [("one", "One"), ("two", 'Two and "more"')]


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
