"""Runs of training in this process: what their settings do, and what they leave behind."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor, nn

from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.formats.read import read_header
from anyadapter.algorithms.training.captions import CaptionConfig
from anyadapter.algorithms.training.config import LayersConfig
from anyadapter.algorithms.training.dataset import MaskSource
from anyadapter.algorithms.training.losses import LossConfig
from anyadapter.algorithms.training.methods import MethodConfig
from anyadapter.algorithms.training.optimizers import OptimizerConfig
from anyadapter.nodes.host import saved_files
from anyadapter.nodes.host.sessions import Outcome
from anyadapter.nodes.host.trained_files import output_path
from training_prompts import FEW_LAYERS, SIDE_PX
from training_world import (
    Trial,
    dataset,
    item,
    losses,
    models,
    names_below,
    same,
    sampled,
    settings,
    tensors,
    with_moment,
)

BOTH = LayersConfig(rules=f"L00: on\n{FEW_LAYERS}", text_encoders=True)

pytestmark = pytest.mark.usefixtures("loras")


def interrupt(number: int) -> None:
    if number == 2:
        comfy.model_management.interrupt_current_processing()


def fill_memory(number: int) -> None:
    if number == 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def nothing(number: int) -> None:
    del number


def modules() -> Iterator[tuple[str, nn.Module]]:
    used = models()
    assert used.clip is not None
    yield from used.model.model.named_modules(prefix="model")
    yield from used.clip.patcher.model.named_modules(prefix="clip")


def inside() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What stands on the modules of the models, with the flags of their weights, and these."""
    stands = {
        name: (
            module.__dict__.get("forward"),
            module.training,
            [one.requires_grad for one in module.parameters(recurse=False)],
            [len(one) for one in (module._forward_hooks, module._forward_pre_hooks)],
        )
        for name, module in modules()
    }
    weights = {
        f"{name}.{key}": one.clone()
        for name, module in modules()
        for key, one in module.named_parameters(recurse=False)
    }
    return stands, weights


@pytest.mark.parametrize(
    ("moment", "end"),
    [
        (nothing, None),
        (fill_memory, TrainingError),
        (interrupt, InterruptProcessingException),
    ],
    ids=["done", "failed", "cancelled"],
)
def test_a_run_leaves_nothing_on_the_models(moment: Callable[[int], None], end: Any):
    before, stands_and_weights = sampled(), inside()
    generator = torch.get_rng_state()
    trial = Trial(settings(layers=BOTH, gradient_checkpointing=True), model=with_moment(moment))
    if end is None:
        trial.run()
    else:
        with pytest.raises(end):
            trial.run()
    stands, weights = inside()
    assert stands == stands_and_weights[0]
    assert same(weights, stands_and_weights[1])
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(sampled(), before)


def hash_of(outcome: Outcome) -> str:
    return read_header(output_path(outcome.name.removesuffix(".safetensors"))).metadata[
        "sshs_model_hash"
    ]


def test_one_seed_gives_one_file_whatever_was_trained_in_between():
    data = dataset(*(item(number, "tall, white, old") for number in range(3)), flip=True)
    data = replace(data, captions=CaptionConfig(shuffle=True, tag_dropout=0.2))
    method = MethodConfig("LoRA-LierLa", rank=4, alpha=4.0, dropout=0.1, rank_dropout=0.1)
    trial = Trial(settings(method=method, steps=4), data)
    first = trial.run()
    other = replace(trial, config=replace(trial.config, seed=1)).run()
    again = trial.run()
    assert losses(first) == losses(again) != losses(other)
    assert hash_of(first) == hash_of(again) != hash_of(other)
    assert [one.name for one in (first, other, again)] == [
        "cat.safetensors",
        "cat_2.safetensors",
        "cat_3.safetensors",
    ]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (settings(rate=1e10), "The loss of step 2 is"),
        (settings(rate=1e10, method=MethodConfig("LoKr", factor=8, full_matrix=True)), "The loss"),
    ],
)
def test_a_loss_that_is_no_number_ends_a_run_with_what_it_had(loras: Path, config: Any, why: str):
    with pytest.raises(TrainingError, match=why) as caught:
        Trial(config).run()
    assert "Lower the learning rate" in str(caught.value)
    assert names_below(loras) == ["cat-state/resume.state", "cat-step00000001.safetensors"]
    assert same(tensors("cat-step00000001"), tensors(Trial(replace(config, steps=1)).run().name))


def test_a_model_that_gives_no_numbers_is_told_at_once(loras: Path):
    weight = models().model.model.diffusion_model.out[2].weight
    kept = weight.data.clone()
    with torch.inference_mode(False):
        weight.data[0] = float("nan")
    try:
        with pytest.raises(TrainingError, match="The loss of step 1 is nan"):
            Trial().run()
    finally:
        weight.data.copy_(kept)
    assert names_below(loras) == []
    Trial().run()
    assert names_below(loras) == ["cat-state/resume.state", "cat.safetensors"]


def test_a_device_without_memory_ends_a_run_with_what_it_had(loras: Path):
    trial = Trial(model=with_moment(fill_memory))
    with pytest.raises(TrainingError, match=r"no memory left\. Lower the batch size"):
        trial.run()
    assert names_below(loras) == ["cat-state/resume.state", "cat-step00000002.safetensors"]
    resumed = replace(trial, model=None).run(resume=True)
    assert same(tensors(resumed.name), tensors(Trial(name="whole").run().name))


def test_a_full_disk_leaves_the_state_before(loras: Path, monkeypatch: pytest.MonkeyPatch):
    usage = saved_files.shutil.disk_usage(loras)

    def fill_disk(number: int) -> None:
        if number == 3:
            monkeypatch.setattr(
                saved_files.shutil, "disk_usage", lambda _: usage._replace(free=1000)
            )

    config = settings(save_every=2, steps=4)
    with pytest.raises(TrainingError, match=r"resume.state could not be written: it needs .* MB"):
        Trial(config, model=with_moment(fill_disk)).run()
    assert names_below(loras) == ["cat-state/resume.state", "cat-step00000002.safetensors"]
    monkeypatch.setattr(saved_files.shutil, "disk_usage", lambda _: usage)
    resumed = Trial(config).run(resume=True)
    assert same(tensors(resumed.name), tensors(Trial(config, name="whole").run().name))


def test_text_encoders_are_trained_at_a_rate_of_their_own():
    optimizer = OptimizerConfig(learning_rate=1e-3, text_encoder_rate=2e-4, weight_decay=0.0)
    found = tensors(Trial(settings(layers=BOTH, optimizer=optimizer, steps=1)).run().name)
    # The first step of AdamW moves every number by the learning rate, and these start at zero.
    moved = {key: one.abs().max().item() for key, one in found.items() if "lora_up" in key}
    parts = {key.split("_")[1] for key in moved}
    assert parts == {"unet", "te"}
    for key, most in moved.items():
        assert most == pytest.approx(1e-3 if key.startswith("lora_unet_") else 2e-4, rel=1e-3)


def test_a_block_whose_rate_is_zero_is_not_in_the_file():
    arguments = "down_lr_weight=zeros\nmid_lr_weight=0\nup_lr_weight=0,0,0,.5,0,0,0,0,0,0,0,0"
    by_rules, by_arguments = (
        tensors(Trial(settings(layers=layers, steps=2)).run().name)
        for layers in (
            LayersConfig(rules="OUT03: rate=0.5\nALL: rate=0"),
            LayersConfig(block_arguments=arguments),
        )
    )
    assert {key.split("_transformer_")[0] for key in by_rules if "transformer" in key} == {
        "lora_unet_up_blocks_1_attentions_1"
    }
    assert same(by_rules, by_arguments)


def test_a_report_says_what_was_trained_and_how_it_went():
    outcome = Trial(settings(steps=4)).run()
    found = losses(outcome)
    assert outcome.report.splitlines() == [
        "LoRA-LierLa of 14 layers, 57,344 numbers, 4 steps over 1 picture, learning rate 0.001.",
        f"Loss {found[0]:.4g} at first, {sum(found[2:]) / 2:.4g} over the last steps.",
        "Saved as cat.safetensors.",
        "OUT03: on  16 layers",
        "ALL: off   118 layers",
        "Trained: 16 of 118 layers of the model.",
        "Of these the method does not take lora_unet_up_blocks_1_resnets_1_conv1, "
        "lora_unet_up_blocks_1_resnets_1_conv2.",
    ]


def test_a_rule_gives_layers_a_method_and_a_rank_of_their_own():
    rules = "OUT03.attn1: method=LoKr factor=8\nOUT03.attn2: rank=2 alpha=1\nOUT03: on\nALL: off"
    found = tensors(Trial(settings(rules=rules, steps=1)).run().name)
    parts = ("attn1", "attn2", "ff")
    assert [part for part in parts for key in found if part in key and ".lokr_w1" in key] == [
        "attn1"
    ] * 4
    ranks = {key: one.shape[0] for key, one in found.items() if key.endswith("lora_down.weight")}
    assert {rank for key, rank in ranks.items() if "attn2" in key} == {2}
    assert {rank for key, rank in ranks.items() if "ff" in key} == {4}


def test_the_loss_on_what_is_held_out_falls_where_that_is_the_same_picture():
    config = settings(rate=5e-3, steps=8, validation_share=0.5, validation_every=1)
    outcome = Trial(config, dataset(item(), replace(item(), name="its twin"))).run()
    found = [loss for _, loss in outcome.validation]
    assert [step for step, _ in outcome.validation] == [*range(1, 9)]
    assert found[-1] < 0.97 * found[0]


def test_a_moving_average_is_what_is_saved():
    plain = Trial(settings(steps=2, save_every=1)).run()
    averaging = OptimizerConfig(learning_rate=1e-3, ema_decay=0.75)
    averaged = tensors(Trial(settings(steps=2, optimizer=averaging)).run().name)
    first, second = tensors("cat-step00000001"), tensors(plain.name)
    for key, one in averaged.items():
        if "lora_up" in key:  # which starts at zero
            expected = 0.75 * 0.25 * first[key] + 0.25 * second[key]
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-9)


def test_recomputed_blocks_give_the_same():
    config = settings(rules="", steps=2)
    kept, recomputed = (
        Trial(replace(config, gradient_checkpointing=again)).run() for again in (False, True)
    )
    assert losses(recomputed) == pytest.approx(losses(kept), rel=1e-5)
    for key, one in tensors(kept.name).items():
        torch.testing.assert_close(tensors(recomputed.name)[key], one, rtol=1e-3, atol=1e-5)


def test_two_batches_of_one_are_a_step_of_a_batch_of_two():
    data = dataset(item(repeats=2))
    config = settings(steps=2)
    large = Trial(replace(config, batch_size=2), data).run()
    small = Trial(replace(config, accumulation=2), data).run()
    assert losses(small) == pytest.approx(losses(large), rel=1e-5)


def first_loss(data: Any, **changes: Any) -> float:
    return losses(Trial(settings(steps=1, **changes), data).run())[0]


def test_what_a_mask_leaves_out_is_not_learned():
    mask = torch.zeros(SIDE_PX, SIDE_PX)
    mask[:24, :40] = 1
    whole, inner, outer = (
        first_loss(dataset(item(mask=one and MaskSource(one[0]))))
        for one in (None, (mask,), (1 - mask,))
    )
    assert min(inner, outer) > 0
    assert inner + outer == pytest.approx(whole, rel=1e-5)


def test_regularization_pictures_count_as_their_weight_says():
    data = dataset(item(0), item(1, "a tower", regularization=True))
    none, one, three = (
        first_loss(data, batch_size=2, loss=LossConfig(prior_loss_weight=weight))
        for weight in (0.0, 1.0, 3.0)
    )
    assert 0 < none < one
    assert three - one == pytest.approx(2 * (one - none), rel=1e-4)
