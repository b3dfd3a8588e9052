"""Epochs are the same from the same seed, in buckets, balanced, and every item comes as it should."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from anyadapter.algorithms.errors import DatasetError
from anyadapter.algorithms.training.buckets import BucketConfig
from anyadapter.algorithms.training.captions import CaptionConfig
from anyadapter.algorithms.training.dataset import (
    Dataset,
    Draw,
    FileSource,
    FolderCount,
    Item,
    LatentSource,
)
from anyadapter.algorithms.training.dataset_report import dataset_report

SHAPES = [(640, 480), (480, 640), (512, 512), (1000, 400)]


def items(count: int, **options: Any) -> tuple[Item, ...]:
    name = "reg" if options.get("regularization") else "own"
    return tuple(
        Item(
            name=f"{name}/{number}.png",
            size_px=SHAPES[number % 4],
            source=FileSource(Path(f"{number}.png")),
            lines=(f"cat, red, number {number}",),
            folder=name,
            **options,
        )
        for number in range(count)
    )


def seen(batches: list[tuple[Draw, ...]]) -> list[tuple[Any, ...]]:
    return [
        (draw.item.name, draw.caption, draw.flipped, draw.placement)
        for batch in batches
        for draw in batch
    ]


def counted(batches: list[tuple[Draw, ...]]) -> Counter[str]:
    return Counter(draw.item.name for batch in batches for draw in batch)


def test_every_item_comes_as_often_as_it_repeats_in_batches_of_one_bucket() -> None:
    batches = Dataset(items(10, repeats=3)).epoch(0, 4, seed=1)
    assert counted(batches) == {item.name: 3 for item in items(10)}
    assert all(len({draw.placement.bucket_px for draw in batch}) == 1 for batch in batches)
    # Buckets hold 9, 9, 6 and 6 draws: of each only the last batch is short.
    assert sorted(len(batch) for batch in batches) == [1, 1, 2, 2, 4, 4, 4, 4, 4, 4]


def test_one_seed_makes_one_epoch_and_each_epoch_is_another() -> None:
    captions = CaptionConfig(shuffle=True, tag_dropout=0.3)
    dataset = Dataset(items(20), captions=captions, flip=True, random_crop=True)
    again = Dataset(items(20), captions=captions, flip=True, random_crop=True)
    assert seen(dataset.epoch(2, 3, seed=5)) == seen(again.epoch(2, 3, seed=5))
    assert seen(dataset.epoch(2, 3, seed=5)) != seen(dataset.epoch(3, 3, seed=5))
    assert seen(dataset.epoch(2, 3, seed=5)) != seen(dataset.epoch(2, 3, seed=6))


def test_another_picture_does_not_change_what_is_drawn_for_the_first_ones() -> None:
    captions = CaptionConfig(shuffle=True)
    few, more = (Dataset(items(count), captions=captions, flip=True) for count in (8, 9))
    before = {draw[0]: draw for draw in seen(few.epoch(0, 1, seed=1))}
    after = {draw[0]: draw for draw in seen(more.epoch(0, 1, seed=1))}
    assert before == {name: draw for name, draw in after.items() if name in before}


@pytest.mark.parametrize("batch_size", [1, 2, 99])
def test_one_image_makes_one_batch(batch_size: int) -> None:
    (batch,) = Dataset(items(1)).epoch(0, batch_size, seed=1)
    assert len(batch) == 1


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(DatasetError, match="batch size"):
        Dataset(items(1)).epoch(0, 0, seed=1)


@pytest.mark.parametrize(("count", "repeats"), [(3, 1), (3, 2), (40, 1), (7, 5)])
def test_regularisation_is_drawn_as_often_as_the_rest(count: int, repeats: int) -> None:
    others = items(count, regularization=True, repeats=repeats)
    dataset = Dataset(items(6, repeats=2) + others)
    batches = dataset.epoch(0, 1, seed=1)
    kinds = Counter(draw.item.regularization for batch in batches for draw in batch)
    assert kinds == {False: 12, True: 12}
    counts = [counted(batches)[item.name] for item in others]
    assert max(counts) - min(counts) <= repeats


def test_what_is_cut_of_regularisation_comes_in_the_next_epoch() -> None:
    dataset = Dataset(items(5) + items(10, regularization=True))
    both = counted(dataset.epoch(0, 1, seed=1)) + counted(dataset.epoch(1, 1, seed=1))
    assert {both[item.name] for item in items(10, regularization=True)} == {1}


def test_regularisation_has_no_trigger_word() -> None:
    captions = CaptionConfig(trigger="sks")
    dataset = Dataset(items(1) + items(1, regularization=True), captions=captions)
    assert sorted(draw[1] for draw in seen(dataset.epoch(0, 1, seed=1))) == [
        "cat, red, number 0",
        "sks, cat, red, number 0",
    ]


def test_half_of_the_draws_are_mirrored_with_their_size_condition() -> None:
    batches = Dataset(items(200), flip=True).epoch(0, 1, seed=1)
    draws = [draw for batch in batches for draw in batch]
    assert 70 < sum(draw.flipped for draw in draws) < 130
    for draw in draws:
        left_top = draw.placement.condition_left_top_px(flipped=draw.flipped)
        assert draw.size_condition.left_top_px == left_top
        assert draw.size_condition.target_px == draw.placement.bucket_px


def test_random_crops_differ_and_stay_inside() -> None:
    dataset = Dataset(items(4), random_crop=True)
    crops = {
        draw.placement.crop_px
        for number in range(9)
        for batch in dataset.epoch(number, 1, seed=1)
        for draw in batch
        if draw.item.name == "own/3.png"
    }
    assert len(crops) > 4
    width = dataset.placement(dataset.items[3]).resized_px[0]
    assert all(0 <= left < right <= width for left, _, right, _ in crops)


def test_views_are_all_there_is_to_encode() -> None:
    dataset = Dataset(items(8), flip=True)
    wanted = {(draw.item, draw.flipped, draw.placement) for draw in dataset.views()}
    assert len(wanted) == 16
    drawn = {
        (draw.item, draw.flipped, draw.placement)
        for number in range(12)
        for batch in dataset.epoch(number, 2, seed=1)
        for draw in batch
    }
    assert drawn == wanted


def test_another_resolution_has_other_buckets_of_the_same_items() -> None:
    dataset = Dataset(items(4))
    larger = dataset.at(1024)
    assert larger.items == dataset.items
    assert set(dataset.bucket_counts()) & {(512, 512)}
    assert set(larger.bucket_counts()) & {(1024, 1024)}
    with pytest.raises(DatasetError, match="widen"):
        Dataset(items(1), buckets=BucketConfig(max_px=768)).at(1024)


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(10, 0.15, (8, 2)), (13, 0.2, (10, 3)), (3, 0.1, (3, 0))]
)
def test_a_split_shares_no_item(count: int, fraction: float, expected: tuple[int, int]) -> None:
    dataset = Dataset(items(count) + items(2, regularization=True))
    training, validation = dataset.split(fraction, seed=3)
    own = [item for item in training.items if not item.regularization]
    assert (len(own), len(validation.items)) == expected
    assert not {item.name for item in own} & {item.name for item in validation.items}
    assert len(training.items) == len(own) + 2
    again = dataset.split(fraction, seed=3)[1]
    assert [item.name for item in again.items] == [item.name for item in validation.items]


def test_validation_leaves_nothing_to_chance() -> None:
    captions = CaptionConfig(shuffle=True, dropout=0.5, tag_dropout=0.5)
    dataset = Dataset(items(9, repeats=4), captions=captions, flip=True, random_crop=True)
    _, validation = dataset.split(0.3, seed=1)
    draws = seen(validation.epoch(0, 1, seed=1))
    assert sorted(draws) == sorted(seen(validation.epoch(7, 1, seed=2)))
    assert len(draws) == 3
    assert all(caption.startswith("cat, red, number") for _, caption, _, _ in draws)


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.9), (4, 1.0), (4, -0.1)])
def test_a_split_that_leaves_nothing_is_refused(count: int, fraction: float) -> None:
    with pytest.raises(DatasetError, match="held out"):
        Dataset(items(count)).split(fraction, seed=1)


def test_bad_items_are_taken_out_and_named() -> None:
    dataset = Dataset(items(3), skipped=("x.png: empty",))
    rest = dataset.without({dataset.items[1]: "damaged"})
    assert [item.name for item in rest.items] == ["own/0.png", "own/2.png"]
    assert rest.skipped == ("x.png: empty", "own/1.png: damaged")
    with pytest.raises(DatasetError, match=r"own/0\.png: damaged"):
        dataset.without(dict.fromkeys(dataset.items, "damaged"))


def test_metadata_count_tags_without_repeats_and_draws_with_them() -> None:
    captions = CaptionConfig(trigger="SKS")
    dataset = Dataset(
        items(4, repeats=3) + items(1, regularization=True, repeats=2), captions=captions
    )
    tags = dataset.tag_frequency()
    assert tags["own"] == {"cat": 4, "red": 4, "sks": 4} | {f"number {n}": 1 for n in range(4)}
    assert "sks" not in tags["reg"]
    assert dataset.folders() == {"own": FolderCount(3, 4, False), "reg": FolderCount(2, 1, True)}
    assert (dataset.count(), dataset.count(regularization=True)) == (12, 2)
    buckets = {(448, 576): 3, (512, 512): 3, (576, 448): 5, (768, 320): 3}
    assert dataset.bucket_counts() == buckets
    assert 0 < dataset.mean_aspect_error() < 0.2


def test_latents_are_batched_by_their_shape_and_have_no_caption() -> None:
    shapes = [(4, 8, 8), (4, 8, 8), (4, 6, 8), (4, 1, 8, 8)]
    latents = tuple(
        Item(f"latent {n}", (64, shape[-2] * 8), LatentSource(torch.zeros(shape), [n]))
        for n, shape in enumerate(shapes)
    )
    dataset = Dataset(latents, flip=True, random_crop=True)
    batches = dataset.epoch(0, 4, seed=1)
    assert sorted(len(batch) for batch in batches) == [1, 1, 2]
    assert {(draw.caption, draw.flipped) for batch in batches for draw in batch} == {("", False)}
    assert len(dataset.views()) == 4


def test_the_report_says_how_much_there_is_and_what_was_skipped() -> None:
    dataset = Dataset(
        items(4, repeats=3) + items(1, regularization=True, repeats=2),
        skipped=("a.png: empty",),
        notes=("No caption: b.png",),
    )
    assert dataset_report(dataset).splitlines() == [
        "4 items, 12 draws in an epoch.",
        "1 item for regularisation, drawn as often in all.",
        "own: 4 items, each 3 times.",
        "reg: 1 item for regularisation, each twice.",
        "Buckets: 576 x 448: 5, 448 x 576: 3, 512 x 512: 3, 768 x 320: 3.",
        "No caption: b.png.",
        "Skipped 1:",
        "  a.png: empty",
    ]
