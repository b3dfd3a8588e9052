"""Every node, input and output has its words in every language."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from anyadapter.nodes import NODES

ROOT = Path(__file__).resolve().parents[2]
SYNTAX = set("{}@|")
"""Characters that mean something to the page in a translation, unless they stand in `{'|'}`."""
LITERAL = re.compile(r"\{'([^']*)'\}")


def translated(language: str) -> dict[str, Any]:
    text = (ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    return json.loads(text)


def in_code() -> dict[str, Any]:
    """What the schemas say, in the form of the translations."""
    found: dict[str, Any] = {}
    for node in NODES:
        schema = node.define_schema()
        inputs = {one.id: {"name": one.display_name or one.id} | hint(one) for one in schema.inputs}
        outputs = {
            str(index): ({"name": one.display_name} if one.display_name else {}) | hint(one)
            for index, one in enumerate(schema.outputs)
        }
        found[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": inputs,
        }
        named = {index: words for index, words in outputs.items() if words}
        if named:  # the page has its own names for its types
            found[schema.node_id]["outputs"] = named
    return found


def hint(socket: Any) -> dict[str, str]:
    return {"tooltip": socket.tooltip} if socket.tooltip else {}


def shape(words: Any) -> Any:
    """The keys alone."""
    return {key: shape(value) for key, value in words.items()} if isinstance(words, dict) else ""


def plain(words: Any) -> Any:
    """The words as the page shows them."""
    if isinstance(words, dict):
        return {key: plain(value) for key, value in words.items()}
    return LITERAL.sub(r"\1", words)


def texts(words: Any) -> list[str]:
    if isinstance(words, dict):
        return [text for value in words.values() for text in texts(value)]
    return [words]


def test_the_english_words_are_those_of_the_nodes():
    assert plain(translated("en")) == in_code()


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_every_node_input_and_output_is_translated(language: str):
    assert shape(translated(language)) == shape(in_code())


@pytest.mark.parametrize("language", ["en", "ja", "zh"])
def test_the_page_can_show_the_words(language: str):
    for text in texts(translated(language)):
        assert text.strip()
        assert not SYNTAX & set(LITERAL.sub("", text)), text


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_node_explains_itself(node: Any):
    schema = node.define_schema()
    assert schema.description
    assert [one.id for one in schema.inputs if not one.tooltip] == []
    assert (ROOT / "web" / "docs" / f"{schema.node_id}.md").is_file()
