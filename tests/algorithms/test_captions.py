"""Captions are made in the order of sd-scripts, the same ones from the same seed."""

import random
from typing import Any

import pytest

from anyadapter.algorithms.errors import DatasetError
from anyadapter.algorithms.training.captions import CaptionConfig, written

TAGS = "cat, red, blue, green, black"


def made(text: str, seed: int = 0, epoch: int = 0, **options: Any) -> str:
    return written(text.split("\n"), CaptionConfig(**options), epoch, random.Random(seed))


def many(text: str, epoch: int = 0, **options: Any) -> list[str]:
    return [made(text, seed, epoch, **options) for seed in range(200)]


def test_a_caption_is_left_alone_by_default() -> None:
    assert made("A cat,  sitting{x|y}.\nsecond line") == "A cat,  sitting{x|y}."


def test_prefix_and_suffix_stand_around_and_are_dropped_with_the_caption() -> None:
    assert made("cat", prefix="photo of", suffix="indoors") == "photo of cat indoors"
    assert made("cat", prefix="photo of", trigger="sks", dropout=1.0) == ""


def test_a_share_of_captions_is_dropped() -> None:
    share = many(TAGS, dropout=0.25).count("") / 200
    assert 0.15 < share < 0.35


def test_every_third_epoch_can_go_without_captions() -> None:
    texts = [made("cat", epoch=epoch, dropout_every_epochs=3) for epoch in range(6)]
    assert texts == ["cat", "cat", "", "cat", "cat", ""]


def test_shuffling_keeps_the_first_tags_and_all_others() -> None:
    texts = many(TAGS, shuffle=True, keep_tags=2)
    assert {text.split(", ")[0] for text in texts} == {"cat"}
    assert {text.split(", ")[1] for text in texts} == {"red"}
    assert {frozenset(text.split(", ")) for text in texts} == {frozenset(TAGS.split(", "))}
    assert len(set(texts)) == 6


def test_what_stands_outside_of_the_keep_separators_stays_where_it_is() -> None:
    texts = many("cat, sitting ||| red, blue ||| best", shuffle=True, keep_tags=4)
    assert set(texts) == {"cat, sitting, red, blue, best", "cat, sitting, blue, red, best"}


def test_the_keep_separator_is_never_trained() -> None:
    assert made("cat ||| red") == "cat, red"


def test_only_flexible_tags_are_dropped() -> None:
    texts = many("cat ||| red, blue", tag_dropout=0.5)
    assert set(texts) == {"cat", "cat, red", "cat, blue", "cat, red, blue"}


def test_the_number_of_tags_grows_over_the_warm_up() -> None:
    counts = [
        len(made(TAGS, epoch=epoch, keep_tags=1, warmup_epochs=3).split(", ")) for epoch in range(4)
    ]
    assert counts == [2, 3, 4, 5]


def test_wildcards_choose_a_word_and_a_line() -> None:
    texts = many("a {red|blue} cat\na dog", wildcards=True)
    assert set(texts) == {"a red cat", "a blue cat", "a dog"}
    assert made("a {{red|blue}} cat", wildcards=True) == "a {red|blue} cat"


def test_tags_joined_by_the_second_separator_stay_together() -> None:
    texts = many("red;;;cat, black;;;dog", shuffle=True, secondary_separator=";;;")
    assert set(texts) == {"red,cat, black,dog", "black,dog, red,cat"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", "sks, a cat"),
        ("a SKS cat", "a SKS cat"),
        ("asksa", "sks, asksa"),
        ("a [trigger] cat", "a sks cat"),
        ("", "sks"),
    ],
)
def test_the_trigger_word_comes_in_front_where_it_is_missing(text: str, expected: str) -> None:
    assert made(text, trigger="sks") == expected


def test_dropout_of_tags_never_takes_the_trigger_word() -> None:
    assert made("red, sks", trigger="sks", tag_dropout=1.0) == "sks"


def test_one_seed_makes_one_caption() -> None:
    options: dict[str, Any] = {"shuffle": True, "tag_dropout": 0.3, "dropout": 0.1}
    assert many(TAGS, **options) == many(TAGS, **options)


def test_a_complete_caption_has_all_its_tags_in_order() -> None:
    config = CaptionConfig(trigger="sks", shuffle=True, dropout=0.5, tag_dropout=0.5)
    texts = {written([TAGS], config.complete(), 0, random.Random(seed)) for seed in range(20)}
    assert texts == {f"sks, {TAGS}"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dropout": 1.5}, "caption dropout"),
        ({"tag_dropout": -0.1}, "tag dropout"),
        ({"separator": " "}, "separator"),
        ({"keep_tags": -1}, "negative"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        CaptionConfig(**options)
