"""Training beside what stands on a model already: adapters, and patches of other nodes."""

from dataclasses import replace
from functools import cache
from types import MethodType
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from anyadapter.algorithms.formats.parse import AdapterSet
from anyadapter.algorithms.training.methods import MethodConfig
from anyadapter.nodes.adapting import Wish, adapt
from anyadapter.nodes.host.casting import casting_forwards
from training_world import Trial, losses, models, same, sampled, settings, tensors

EVERYWHERE = "OUT03, IN01: on\nALL: off"

pytestmark = pytest.mark.usefixtures("loras")


@cache
def learned() -> AdapterSet:
    """Returns an adapter away from its start."""
    return Trial(settings(EVERYWHERE, rate=1e-2), name="first").run().adapter_set


def with_adapter(adapter_set: AdapterSet) -> ModelPatcher:
    """Returns the model as Load Adapter gives it."""
    with torch.inference_mode():
        return adapt(Wish("first", trained=adapter_set), models().model, None).model


def forwards(patcher: ModelPatcher) -> dict[str, Any]:
    return {
        name: module.__dict__["forward"]
        for name, module in patcher.model.named_modules()
        if "forward" in module.__dict__
    }


def test_adapters_that_are_loaded_leave_with_the_run() -> None:
    before = sampled()
    loaded = with_adapter(learned())
    for name in ("second", "third"):
        Trial(settings(EVERYWHERE), name=name, model=loaded).run()
        assert forwards(loaded) == {}
    assert torch.equal(sampled(), before)


def test_what_is_trained_beside_a_loaded_adapter_adds_to_it() -> None:
    # The loss of the first step is that of the loaded adapter, not of the bare model.
    first = learned()
    bare = Trial(settings(EVERYWHERE, steps=1), name="bare").run()
    beside = Trial(settings(EVERYWHERE, steps=1), name="beside", model=with_adapter(first)).run()
    again = Trial(settings(EVERYWHERE, steps=1), name="again", model=with_adapter(first)).run()
    assert losses(beside) == losses(again) != losses(bare)


@pytest.mark.parametrize("method", ["Diag-OFT", "(IA)^3"])
def test_every_change_is_computed_from_the_base(method: str) -> None:
    """A turn of what an adapter adds would be another change than the file makes later."""
    loaded = with_adapter(learned())
    config = settings(
        EVERYWHERE, rate=1e-2, method=MethodConfig(method, rank=4, alpha=4.0), steps=2
    )
    turned = Trial(config, name="turned", model=loaded).run()
    both = adapt(Wish("turned", trained=turned.adapter_set), loaded, None).model
    resumed = Trial(replace(config, steps=3), name="turned", model=loaded).run(resume=True)
    fresh = Trial(
        settings("IN01.attn2: on\nALL: off", rate=1e-9, steps=3), name="fresh", model=both
    ).run()
    # The third step of both sees the same model: once as it is trained, once as its file is loaded.
    assert losses(fresh)[2] == pytest.approx(losses(resumed)[0], rel=1e-5)


def test_a_layer_that_somebody_adds_to_keeps_its_own_gradient() -> None:
    module = models().model.model.diffusion_model.input_blocks[1][1].proj_in
    assert any(found is module for found, _ in casting_forwards(models().model.model))
    module.forward = lambda x: x
    try:
        assert not any(found is module for found, _ in casting_forwards(models().model.model))
    finally:
        del module.forward


def test_recomputed_blocks_tell_patches_where_they_are() -> None:
    patched = models().model.clone()

    def scaled(x: Tensor, options: dict[str, Any]) -> Tensor:
        return x * (2.0 if options["block"][0] == "input" else 0.5)

    patched.set_model_attn2_output_patch(scaled)
    trial = Trial(settings(EVERYWHERE, rate=1e-2), model=patched)
    plain = trial.run()
    again = replace(
        trial, config=replace(trial.config, gradient_checkpointing=True), name="again"
    ).run()
    assert losses(again) == pytest.approx(losses(plain), rel=1e-6)
    found, expected = tensors(again.name), tensors(plain.name)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6)


def test_one_adapter_in_two_runs_gives_one_file() -> None:
    loaded = with_adapter(learned())
    files = [Trial(settings(EVERYWHERE), name=name, model=loaded).run().name for name in "ab"]
    assert same(tensors(files[0]), tensors(files[1]))


@pytest.mark.parametrize("path", ["input_blocks.1.1.proj_in", "input_blocks.1.1"])
def test_what_another_pack_has_put_on_a_module_is_there_after_a_run(path: str) -> None:
    """A patch of a layer or a recomputed block was gone after a training, unless it was a function."""
    module = models().model.model.diffusion_model.get_submodule(path)
    own = type(module).forward

    def doubled(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * own(self, *args, **kwargs)

    patch = MethodType(doubled, module)
    module.forward = patch
    try:
        trial = Trial(settings("IN01: on\nALL: off", steps=1))
        replace(trial, config=replace(trial.config, gradient_checkpointing=True)).run()
        assert module.__dict__["forward"] is patch
    finally:
        del module.forward
