"""Strengths over the steps and per conditioning, against the host's own hooks of conditionings.

Those patch the weights anew for each group of conditionings and at each change of a strength. Ours
run all of it in one batch and patch nothing, and must come to the same.
"""

from typing import Any

import comfy.model_sampling
import pytest
from torch import Tensor

from anyadapter.algorithms.schedule import Schedule
from anyadapter.algorithms.strength import Dial
from anyadapter.nodes.adapting import _limits
from anyadapter.nodes.host.applying import Applied
from anyadapter.nodes.host.moments import Progress
from base_directory import CHECKPOINT_NAME
from comfy_server import PromptFailedError
from pictures import Pictures
from workflows import Prompt, node, text_to_latent

TOLERANCE = 1e-4
"""Of the effect, as in test_pictures.py."""
ON_REQUEST = "conditionings that ask for it"
STRENGTH = 0.8


def prompt(*loaders: dict[str, Any], sampler: str = "euler", **options: Any) -> Prompt:
    made = text_to_latent(CHECKPOINT_NAME, loaders, use_clip=False, steps=4, **options)
    made["sampler"]["inputs"]["sampler_name"] = sampler
    return made


def loader(pictures: Pictures, method: str, **more: Any) -> dict[str, Any]:
    file = pictures.adapter(method)
    strengths = {"strength_model": STRENGTH, "strength_clip": 0.0}
    return {"adapter": file, **strengths, "mode": "hook", "rank": 0, **more}


def schedule(**inputs: Any) -> dict[str, Any]:
    values = {"from_or_inside": 1.0, "to_or_outside": 0.0}
    span = {"start_percent": 0.0, "end_percent": 1.0}
    written = {"points": "", "interpolation": "linear"}
    return node("AnyAdapterSchedule", **{**values, **span, **written, **inputs})


def host_hook(pictures: Pictures, method: str) -> dict[str, Any]:
    file = pictures.adapter(method)
    return node("CreateHookLoraModelOnly", lora_name=file, strength_model=STRENGTH)


def hook_up(made: Prompt, text: str, hooks: str) -> None:
    """Puts hooks of the host on a conditioning of a prompt."""
    made[f"{text}_hooked"] = node(
        "ConditioningSetProperties",
        cond_NEW=[text, 0],
        strength=1.0,
        set_cond_area="default",
        hooks=[hooks, 0],
    )
    made["sampler"]["inputs"][text] = [f"{text}_hooked", 0]


def ask(made: Prompt, text: str, **inputs: Any) -> None:
    """Puts Adapter for Conditioning on a conditioning of a prompt."""
    made[f"{text}_asking"] = node(
        "AnyAdapterConditioning", conditioning=made["sampler"]["inputs"][text], **inputs
    )
    made["sampler"]["inputs"][text] = [f"{text}_asking", 0]


def require_equal(pictures: Pictures, ours: Prompt, theirs: Prompt) -> None:
    plain = {
        **theirs["sampler"]["inputs"],
        "positive": ["positive", 0],
        "negative": ["negative", 0],
    }
    bare = {**theirs, "sampler": {**theirs["sampler"], "inputs": plain}}
    base, expected = pictures.latent(bare), pictures.latent(theirs)
    effect = (expected - base).norm()
    assert effect > 0.02 * base.norm()
    assert (pictures.latent(ours) - expected).norm() < TOLERANCE * effect


@pytest.mark.parametrize(
    ("method", "batch"), [("locon", 2), ("loha", 1), ("lokr", 2), ("dora_input", 1)]
)
def test_an_adapter_of_the_positive_prompt_alone(pictures: Pictures, method: str, batch: int):
    ours = prompt(loader(pictures, method, acts_on=ON_REQUEST), batch=batch)
    ask(ours, "positive", adapter=pictures.adapter(method), strength=1.0)
    theirs = prompt(batch=batch)
    theirs["hook"] = host_hook(pictures, method)
    hook_up(theirs, "positive", "hook")
    require_equal(pictures, ours, theirs)


def test_a_prompt_can_be_left_out(pictures: Pictures):
    ours = prompt(loader(pictures, "locon"))
    ask(ours, "negative", adapter="all adapters", strength=0.0)
    theirs = prompt()
    theirs["hook"] = host_hook(pictures, "locon")
    hook_up(theirs, "positive", "hook")
    require_equal(pictures, ours, theirs)


def test_regions_have_adapters_of_their_own(pictures: Pictures):
    def regions(made: Prompt, left: list[Any], right: list[Any]) -> None:
        made["left"] = node(
            "ConditioningSetArea", conditioning=left, width=64, height=128, x=0, y=0, strength=1.0
        )
        made["right"] = node(
            "ConditioningSetArea", conditioning=right, width=64, height=128, x=64, y=0, strength=1.0
        )
        made["both"] = node(
            "ConditioningCombine", conditioning_1=["left", 0], conditioning_2=["right", 0]
        )
        made["sampler"]["inputs"]["positive"] = ["both", 0]

    ours = prompt(
        loader(pictures, "locon", acts_on=ON_REQUEST),
        loader(pictures, "lokr", acts_on=ON_REQUEST),
        size_px=128,
    )
    for text, method in (("one", "locon"), ("two", "lokr")):
        ours[text] = node(
            "AnyAdapterConditioning",
            conditioning=["positive", 0],
            adapter=pictures.adapter(method),
            strength=1.0,
        )
    regions(ours, ["one", 0], ["two", 0])
    theirs = prompt(size_px=128)
    for text, method in (("one", "locon"), ("two", "lokr")):
        theirs[f"{text}_hook"] = host_hook(pictures, method)
        theirs[text] = node(
            "ConditioningSetProperties",
            cond_NEW=["positive", 0],
            strength=1.0,
            set_cond_area="default",
            hooks=[f"{text}_hook", 0],
        )
    regions(theirs, ["one", 0], ["two", 0])
    require_equal(pictures, ours, theirs)


@pytest.mark.parametrize(
    ("method", "sampler"), [("loha", "euler"), ("locon", "heun"), ("locon", "dpm_2_ancestral")]
)
def test_a_schedule_follows_the_noise(pictures: Pictures, method: str, sampler: str):
    ours = prompt(loader(pictures, method, schedule=["schedule", 0]), sampler=sampler)
    ours["schedule"] = schedule(
        preset="points", points="0:1, 0.3:0.25, 0.6:-0.5", interpolation="step"
    )
    theirs = prompt(sampler=sampler)
    theirs["plain_hook"] = host_hook(pictures, method)
    theirs["first"] = node("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
    theirs["second"] = node(
        "CreateHookKeyframe", strength_mult=0.25, start_percent=0.3, prev_hook_kf=["first", 0]
    )
    theirs["third"] = node(
        "CreateHookKeyframe", strength_mult=-0.5, start_percent=0.6, prev_hook_kf=["second", 0]
    )
    theirs["hook"] = node("SetHookKeyframes", hooks=["plain_hook", 0], hook_kf=["third", 0])
    for text in ("positive", "negative"):
        hook_up(theirs, text, "hook")
    require_equal(pictures, ours, theirs)


def test_a_constant_schedule_is_a_factor(pictures: Pictures):
    ours = prompt(loader(pictures, "locon", schedule=["schedule", 0]))
    ours["schedule"] = schedule(preset="constant", from_or_inside=0.5)
    half = prompt({**loader(pictures, "locon"), "strength_model": STRENGTH / 2})
    base, expected = pictures.latent(prompt()), pictures.latent(half)
    found: Tensor = pictures.latent(ours)
    assert (found - expected).norm() < TOLERANCE * (expected - base).norm()


@pytest.mark.parametrize("more", [{"schedule": ["schedule", 0]}, {"acts_on": ON_REQUEST}])
def test_what_a_patch_cannot_follow_is_refused(pictures: Pictures, more: dict[str, Any]):
    made = prompt(loader(pictures, "locon", mode="patch", **more))
    made["schedule"] = schedule(preset="linear")
    with pytest.raises(PromptFailedError, match="choose mode hook"):
        pictures.run(made)


@pytest.mark.parametrize(
    ("dial", "is_said"),
    [
        (Dial(1.0), False),
        (Dial(1.0, schedule=Schedule.constant(0.5)), True),
        (Dial(1.0, on_request=True), True),
    ],
)
def test_what_hooks_do_not_reach_is_said_to_stay_as_it_is(dial: Dial, is_said: bool):
    # It was patched for every step and conditioning, and nobody was told.
    said = " ".join(_limits(Applied(1, unhooked=("a.embedding",)), dial))
    assert ("a.embedding" in said) == is_said


SAMPLINGS = [
    comfy.model_sampling.ModelSamplingDiscrete,
    comfy.model_sampling.ModelSamplingContinuousEDM,
    comfy.model_sampling.ModelSamplingDiscreteFlow,
    comfy.model_sampling.ModelSamplingFlux,
    comfy.model_sampling.StableCascadeSampling,
]


@pytest.mark.parametrize("kind", SAMPLINGS, ids=lambda kind: kind.__name__)
def test_progress_is_the_inverse_of_the_host_s_measure(kind: type):
    sampling = kind()
    progress = Progress(sampling)
    for percent in (0.0005, 0.1, 0.25, 0.4999, 0.5, 0.77, 0.999):
        sigma = float(sampling.percent_to_sigma(percent))
        # Stable Cascade has the same noise for its first and its last half percent.
        same = float(sampling.percent_to_sigma(min(progress.at(sigma), 0.9999)))
        assert same == pytest.approx(sigma, rel=1e-3)
    assert progress.at(float(sampling.sigma_max)) == pytest.approx(0.0, abs=0.01)
    assert progress.at(0.0) == 1.0
