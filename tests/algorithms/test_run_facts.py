"""What a run knows of itself can be told whatever its settings are."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from anyadapter.algorithms.training.buckets import BucketConfig
from anyadapter.algorithms.training.captions import CaptionConfig
from anyadapter.algorithms.training.config import TrainingConfig
from anyadapter.algorithms.training.dataset import Dataset, ImageSource, Item, LatentSource
from anyadapter.algorithms.training.methods import METHODS
from anyadapter.algorithms.training.noise import NoiseConfig
from anyadapter.algorithms.training.run_facts import Begun, facts_of
from anyadapter.algorithms.training.run_metadata import metadata_of
from anyadapter.algorithms.training.schedules import ScheduleConfig, factor

ITEM = Item("cat.png", (900, 600), ImageSource(torch.zeros(600, 900, 3)), ("a cat",), "10_cat", 10)
LATENT = Item("0", (768, 512), LatentSource(torch.zeros(4, 64, 96), []))
CONFIG = TrainingConfig(METHODS["LoRA-LierLa"].recommended())
BEGUN = Begun(CONFIG, Dataset((ITEM,), 1024), 2, None, "eps", 100, 10, "bf16", 7, 0.0)


def told(begun: Begun) -> dict[str, str]:
    return metadata_of(facts_of(begun, "styles/cat", 50, 4, 60.0))


@pytest.mark.parametrize(
    "buckets",
    [
        BucketConfig(enabled=False, max_px=512),
        BucketConfig(max_px=768, no_upscale=True),
        BucketConfig(min_px=512, max_px=2048),
    ],
)
def test_limits_of_buckets_are_told_where_they_count(buckets: BucketConfig) -> None:
    # A run failed at its end where they were set and had no meaning.
    found = told(replace(BEGUN, dataset=replace(BEGUN.dataset, buckets=buckets)))
    counts = buckets.enabled and not buckets.no_upscale
    assert ("ss_max_bucket_reso" in found) == counts


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_told(method: str) -> None:
    config = replace(CONFIG, method=METHODS[method].recommended())
    found = told(replace(BEGUN, config=config))
    assert found["ss_output_name"] == "cat"
    assert json.loads(found["anyadapter.training"])["method"]["method"] == method


def test_the_size_of_latents_is_their_own() -> None:
    assert told(replace(BEGUN, dataset=Dataset((LATENT,), 1024)))["ss_resolution"] == "(768, 512)"


@pytest.mark.parametrize(
    ("noise", "key"),
    [
        (NoiseConfig(shift="constant"), "ss_discrete_flow_shift"),
        (NoiseConfig(timestep_sampling="logit_normal"), "ss_logit_mean"),
        (NoiseConfig(timestep_sampling="mode"), "ss_mode_scale"),
    ],
)
def test_numbers_of_noise_are_told_where_they_count(noise: NoiseConfig, key: str) -> None:
    flow = replace(BEGUN, prediction="flow")
    assert key not in told(flow)
    assert key in told(replace(flow, config=replace(CONFIG, noise=noise)))


def test_the_warm_up_is_told_as_long_as_the_schedule_has_it() -> None:
    # A file said a step more than were warmed up, where a fraction of all steps was above a half.
    schedule = ScheduleConfig("cosine", warmup=0.1)
    config = replace(CONFIG, optimizer=replace(CONFIG.optimizer, schedule=schedule))
    found = told(replace(BEGUN, config=config, total_steps=109))
    assert found["ss_lr_warmup_steps"] == "10"
    assert [factor(schedule, step, 109) for step in (9, 10)] == [0.9, 1.0]


def test_counts_and_captions_are_those_of_the_dataset() -> None:
    captions = CaptionConfig(trigger="ohwx", shuffle=True, dropout_every_epochs=3)
    found = told(replace(BEGUN, dataset=replace(BEGUN.dataset, captions=captions)))
    expected: dict[str, Any] = {
        "ss_num_train_images": "10",
        "ss_num_validation_images": "2",
        "ss_shuffle_caption": "True",
        "ss_caption_dropout_every_n_epochs": "3",
        "modelspec.trigger_phrase": "ohwx",
        "ss_num_epochs": "10",
    }
    assert {key: found[key] for key in expected} == expected
    assert json.loads(found["ss_tag_frequency"]) == {"10_cat": {"ohwx": 1, "a cat": 1}}
