"""Buckets have the sizes of sd-scripts, and every picture covers the one it is given."""

import pytest

from anyadapter.algorithms.errors import DatasetError
from anyadapter.algorithms.training.buckets import BucketConfig, bucket_sizes, moved, place

WIDE = BucketConfig(min_px=512, max_px=2048)
NO_UPSCALE = BucketConfig(no_upscale=True)


@pytest.mark.parametrize(
    ("resolution", "config", "count"),
    [
        (512, BucketConfig(min_px=256, max_px=1024), 17),
        (768, BucketConfig(min_px=256, max_px=1024), 19),
        (1024, BucketConfig(min_px=256, max_px=1024), 25),
        (1024, WIDE, 33),
        (1024, BucketConfig(min_px=512, max_px=2048, step_px=32), 65),
        (512, BucketConfig(), 17),
        (1024, BucketConfig(), 33),
        (1024, BucketConfig(enabled=False), 1),
    ],
)
def test_there_are_as_many_buckets_as_in_sd_scripts(
    resolution: int, config: BucketConfig, count: int
) -> None:
    assert len(bucket_sizes(resolution, config)) == count


@pytest.mark.parametrize(
    ("size", "bucket", "resized"),
    [
        ((1920, 1080), (1344, 768), (1365, 768)),
        ((800, 600), (1152, 896), (1195, 896)),
        ((3000, 500), (2048, 512), (3072, 512)),
        ((1344, 768), (1344, 768), (1344, 768)),
    ],
)
def test_pictures_get_the_buckets_of_sd_scripts(
    size: tuple[int, int], bucket: tuple[int, int], resized: tuple[int, int]
) -> None:
    placement = place(size, 1024, WIDE)
    assert (placement.bucket_px, placement.resized_px) == (bucket, resized)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((800, 600), (768, 576)), ((640, 480), (640, 448)), ((4000, 3000), (1088, 832))],
)
def test_without_upscaling_the_bucket_is_made_from_the_picture(
    size: tuple[int, int], bucket: tuple[int, int]
) -> None:
    placement = place(size, 1024, NO_UPSCALE)
    assert placement.bucket_px == bucket
    assert placement.resized_px[0] <= size[0]


def test_a_picture_narrower_than_a_step_is_enlarged_to_one() -> None:
    placement = place((16, 40), 1024, NO_UPSCALE)
    assert placement.bucket_px == (64, 128)
    assert placement.resized_px == (64, 160)


def test_sides_are_multiples_of_the_step_at_any_resolution() -> None:
    sizes = bucket_sizes(600, BucketConfig())
    assert (576, 576) in sizes
    assert {side % 64 for size in sizes for side in size} == {0}


def test_a_long_strip_makes_no_bucket_larger_than_the_resolution() -> None:
    width, height = place((9000, 16), 512, NO_UPSCALE).bucket_px
    assert width * height <= 512**2


@pytest.mark.parametrize("config", [WIDE, NO_UPSCALE, BucketConfig(enabled=False)])
@pytest.mark.parametrize("size", [(16, 16), (16, 9000), (9000, 16), (1000, 999), (10000, 10000)])
def test_every_picture_covers_its_bucket_and_is_cropped_to_it(
    size: tuple[int, int], config: BucketConfig
) -> None:
    placement = place(size, 1024, config)
    left, top, right, bottom = placement.crop_px
    assert (right - left, bottom - top) == placement.bucket_px
    assert 0 <= left <= right <= placement.resized_px[0]
    assert 0 <= top <= bottom <= placement.resized_px[1]


def test_the_size_condition_is_the_box_of_sd_scripts_and_is_mirrored_with_the_picture() -> None:
    wide, tall = place((1920, 1080), 1024, WIDE), place((600, 800), 1024, WIDE)
    assert wide.condition_box_px == (0, 6, 1344, 762)
    assert wide.condition_left_top_px(flipped=False) == (0, 6)
    left, top, right, _ = tall.condition_box_px
    assert tall.condition_left_top_px(flipped=False) == (left, top)
    assert tall.condition_left_top_px(flipped=True) == (tall.bucket_px[0] - right, top)


def test_a_crop_moves_from_edge_to_edge() -> None:
    placement = place((3000, 500), 1024, WIDE)
    assert moved(placement, 0.0, 0.5).crop_px == (0, 0, 2048, 512)
    assert moved(placement, 1.0, 0.5).crop_px == (1024, 0, 3072, 512)
    assert moved(placement, 0.5, 0.5).crop_px == placement.crop_px


@pytest.mark.parametrize(
    ("resolution", "config", "words"),
    [
        (1024, BucketConfig(max_px=768), "widen the limits"),
        (512, BucketConfig(min_px=768), "widen the limits"),
        (32, BucketConfig(), "raise the resolution"),
    ],
)
def test_limits_without_the_resolution_are_refused(
    resolution: int, config: BucketConfig, words: str
) -> None:
    with pytest.raises(DatasetError, match=words):
        bucket_sizes(resolution, config)


def test_a_step_without_meaning_is_refused() -> None:
    with pytest.raises(DatasetError, match="bucket step"):
        BucketConfig(step_px=0)
