"""The life of hooks on a model: put on, taken off, shared by clones, and never left behind."""

import copy
import gc
from dataclasses import replace
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from torch import Tensor, nn

from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.binding import Bound
from anyadapter.algorithms.keymap import Target
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.plan import LayerPlan
from anyadapter.algorithms.strength import Dial, Placed, merged_weight
from anyadapter.nodes.host.injections import KEY, add_hooks
from anyadapter.nodes.host.memory import AUTOMATIC, PlanStore, stores_of
from anyadapter.nodes.host.patches import AdapterPatch, add_patches

CPU = torch.device("cpu")


class Model(nn.Module):
    """Three layers in a row, as the host builds them."""

    def __init__(self) -> None:
        super().__init__()
        ops = comfy.ops.manual_cast
        self.first = ops.Linear(6, 8)
        self.second = ops.Linear(8, 8, bias=False)
        self.third = ops.LayerNorm(8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))


def lora(outputs: int, inputs: int) -> Lora:
    generator = torch.Generator().manual_seed(outputs + inputs)
    up = torch.randn(outputs, 3, generator=generator)
    return Lora(up, torch.randn(3, inputs, generator=generator), 1.5)


FIRST = Bound("a", Target("first.weight"), lora(8, 6))
SECOND = Bound("b", Target("second.weight", Rows(2, 4)), lora(4, 8))
THIRD = Bound("c", Target("third.weight"), Diff(torch.ones(8), torch.ones(8)))


@pytest.fixture
def base() -> ModelPatcher:
    return ModelPatcher(Model(), CPU, CPU)


def loaded(patcher: ModelPatcher) -> Tensor:
    """Loads a patcher as the host does before it samples, and runs it."""
    comfy.model_management.load_models_gpu([patcher])
    with torch.no_grad():
        return patcher.model(X)


def hooked(base: ModelPatcher, strength: float, *bound: Bound) -> ModelPatcher:
    clone = base.clone()
    add_hooks(clone, bound or (FIRST, SECOND, THIRD), Dial(strength))
    return clone


def is_bare(model: nn.Module) -> bool:
    return all("forward" not in module.__dict__ for module in model.modules())


def test_hooks_act_like_merged_weights_and_leave_the_weights_alone(base: ModelPatcher) -> None:
    before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    merged = Model()
    merged.load_state_dict(before)
    for name, bound in (("first", FIRST), ("second", SECOND), ("third", THIRD)):
        layer = getattr(merged, name)
        placed = [Placed(bound.adapter, 0.5, bound.target.rows)]
        layer.weight.data = merged_weight(layer.weight.data, placed)
    merged.third.bias.data += 0.5
    torch.testing.assert_close(loaded(hooked(base, 0.5)), merged(X).detach())
    assert all(torch.equal(base.model.state_dict()[key], before[key]) for key in before)


def test_loading_a_clone_without_hooks_takes_them_off(base: ModelPatcher) -> None:
    without = loaded(base)
    adapted = hooked(base, 1.0)
    assert not torch.equal(loaded(adapted), without)
    assert torch.equal(loaded(base), without)
    assert is_bare(base.model)


def test_clones_of_different_strength_take_turns(base: ModelPatcher) -> None:
    weak, strong = hooked(base, 0.5), hooked(base, 1.0)
    first = (loaded(weak), loaded(strong))
    assert not torch.equal(*first)
    for _ in range(2):
        assert torch.equal(loaded(weak), first[0])
        assert torch.equal(loaded(strong), first[1])


def test_a_dying_clone_does_not_switch_off_the_one_in_use(base: ModelPatcher) -> None:
    discarded = hooked(base, 0.5)
    loaded(discarded)
    used = discarded.clone()
    add_hooks(used, (FIRST,), Dial(1.0))
    result = loaded(used)
    spare = used.clone()
    del discarded, spare
    gc.collect()
    assert torch.equal(used.model(X).detach(), result)


def test_only_the_owner_of_the_hooks_takes_them_off(base: ModelPatcher) -> None:
    weak, strong = hooked(base, 0.5), hooked(base, 1.0)
    result = loaded(strong)
    comfy.model_management.unload_all_models()
    weak.inject_model()
    strong.inject_model()
    weak.eject_model()
    assert torch.equal(base.model(X).detach(), result)
    strong.eject_model()
    assert is_bare(base.model)


def test_a_clone_that_dies_in_use_takes_its_hooks_with_it(base: ModelPatcher) -> None:
    without = loaded(base)
    adapted = hooked(base, 1.0)
    loaded(adapted)
    del adapted
    gc.collect()
    assert is_bare(base.model)
    assert torch.equal(loaded(base), without)


def test_a_clone_of_the_one_in_use_outlives_it(base: ModelPatcher) -> None:
    adapted = hooked(base, 1.0)
    result = loaded(adapted)
    later = adapted.clone()
    del adapted
    gc.collect()
    assert torch.equal(loaded(later), result)


def test_patching_a_clone_of_the_one_in_use_leaves_no_hook_on_the_base(base: ModelPatcher) -> None:
    # ComfyUI's own LoRA loader behind ours, then a sampler on the bare model: it had our effect.
    without = loaded(base)
    adapted = hooked(base, 1.0)
    loaded(adapted)
    later = adapted.clone()
    later.add_patches({"first.weight": (torch.ones(8, 6),)})
    assert torch.equal(loaded(base), without)
    assert is_bare(base.model)


def test_patching_a_clone_of_the_one_in_use_does_not_switch_it(base: ModelPatcher) -> None:
    adapted = hooked(base, 1.0)
    result = loaded(adapted)
    later = adapted.clone()
    add_hooks(later, (FIRST,), Dial(1.0))
    later.add_patches({"first.weight": (torch.ones(8, 6),)})
    assert torch.equal(adapted.model(X).detach(), result)


def test_asking_an_idle_clone_for_its_weights_leaves_no_hook_on_the_base(
    base: ModelPatcher,
) -> None:
    without = loaded(base)
    adapted = hooked(base, 1.0)
    loaded(adapted)
    later = adapted.clone()
    loaded(base)
    later.model_state_dict()
    assert torch.equal(loaded(base), without)
    assert is_bare(base.model)


def test_hooks_on_a_clone_of_what_another_pack_injected_stay_off_the_base(
    base: ModelPatcher,
) -> None:
    without = loaded(base)
    foreign = base.clone()
    foreign.set_injections("other", [PatcherInjection(lambda _: None, lambda _: None)])
    loaded(foreign)
    adapted = hooked(foreign, 1.0)
    adapted.add_patches({"first.weight": (torch.ones(8, 6),)})
    assert torch.equal(loaded(base), without)
    assert is_bare(base.model)


def test_a_second_loader_adds_to_a_clone_and_not_to_its_origin(base: ModelPatcher) -> None:
    one = hooked(base, 0.5, FIRST)
    alone = loaded(one)
    both = one.clone()
    add_hooks(both, (FIRST,), Dial(-0.2))
    torch.testing.assert_close(loaded(both), loaded(hooked(base, 0.3, FIRST)))
    assert torch.equal(loaded(one), alone)


def test_injecting_twice_stacks_nothing(base: ModelPatcher) -> None:
    adapted = hooked(base, 1.0)
    result = loaded(adapted)
    for injection in adapted.get_injections(KEY):
        injection.inject(adapted)
    assert torch.equal(adapted.model(X).detach(), result)
    adapted.eject_model()
    assert is_bare(adapted.model)


def test_hooks_survive_unloading_and_partial_loading(base: ModelPatcher) -> None:
    adapted = hooked(base, 1.0)
    result = loaded(adapted)
    comfy.model_management.unload_all_models()
    assert is_bare(base.model)
    assert torch.equal(loaded(adapted), result)
    adapted.partially_unload(CPU, 100)
    torch.testing.assert_close(adapted.model(X).detach(), result)
    adapted.partially_load(CPU, 10)
    torch.testing.assert_close(adapted.model(X).detach(), result)


@pytest.mark.parametrize("budget", [0, 1, 120, 300, 700, 10**6])
def test_every_budget_of_memory_gives_the_same_output(base: ModelPatcher, budget: int) -> None:
    adapted = hooked(base, 1.0)
    result = loaded(adapted)
    comfy.model_management.unload_all_models()
    adapted.partially_load(CPU, budget)
    assert torch.equal(adapted.model(X).detach(), result)
    adapted.detach()
    assert is_bare(base.model)


def test_hooks_stay_right_on_weights_that_are_patched_while_they_run(base: ModelPatcher) -> None:
    patched = base.clone()
    patched.add_patches({"first.weight": (torch.ones(8, 6),)}, 0.1)
    adapted = hooked(patched, 1.0)
    result = loaded(adapted)
    comfy.model_management.unload_all_models()
    adapted.partially_load(CPU, 1)
    assert base.model.first.weight_function
    torch.testing.assert_close(adapted.model(X).detach(), result)
    adapted.detach()


def test_hooks_of_half_precision_follow_the_input(base: ModelPatcher) -> None:
    half = Lora(FIRST.adapter.up.half(), FIRST.adapter.down.half(), 1.5)
    adapted = hooked(base, 1.0, Bound("a", Target("first.weight"), half))
    assert loaded(adapted).dtype == torch.float32
    assert adapted.model.first(X.bfloat16()).dtype == torch.bfloat16


def test_an_install_that_fails_leaves_no_hook_behind(base: ModelPatcher) -> None:
    gone = Bound("d", Target("gone.weight"), FIRST.adapter)
    adapted = hooked(base, 1.0, FIRST, SECOND, gone, THIRD)
    with pytest.raises(AttributeError, match="gone"):
        adapted.inject_model()
    assert is_bare(base.model)


def test_a_module_that_went_away_takes_the_installed_hooks_off_again() -> None:
    layers = nn.ModuleDict({name: comfy.ops.manual_cast.Linear(4, 4) for name in "abcde"})
    patcher = ModelPatcher(layers, CPU, CPU)
    adapter = lora(4, 4)
    add_hooks(
        patcher, [Bound(name, Target(f"{name}.weight"), adapter) for name in "abcde"], Dial(1.0)
    )
    third = layers.pop("c")
    with pytest.raises(AttributeError, match="c"):
        patcher.inject_model()
    assert is_bare(layers)
    assert not patcher.is_injected
    layers["c"] = third
    patcher.inject_model()
    assert all("forward" in module.__dict__ for module in layers.values())
    patcher.eject_model()
    assert is_bare(layers)


def test_an_exception_in_a_layer_leaves_nothing_behind(base: ModelPatcher) -> None:
    without = loaded(base)
    adapted = hooked(base, 1.0)
    loaded(adapted)
    with pytest.raises(RuntimeError):
        adapted.model(torch.ones(2, 5))
    assert torch.equal(loaded(base), without)


def test_a_wrapper_of_somebody_else_stays_and_keeps_working(base: ModelPatcher) -> None:
    without = loaded(base)
    adapted = hooked(base, 1.0, FIRST)
    result = loaded(adapted)
    inner = base.model.first.forward
    base.model.first.forward = lambda x: inner(x)
    wrapper = base.model.first.forward
    assert torch.equal(loaded(base), without)
    assert base.model.first.forward is wrapper
    assert torch.equal(loaded(adapted), result)


def test_a_wrapper_that_stays_is_not_stacked_upon(base: ModelPatcher) -> None:
    without = loaded(base)
    weak, strong = hooked(base, 0.5, FIRST), hooked(base, 1.0, FIRST)
    first, second = loaded(weak), loaded(strong)
    inner = base.model.first.forward
    calls: list[int] = []

    def wrapper(x: Tensor) -> Tensor:
        calls.append(1)
        return inner(x)

    base.model.first.forward = wrapper
    for _ in range(2):
        assert torch.equal(loaded(weak), first)
        assert torch.equal(loaded(strong), second)
        assert torch.equal(loaded(base), without)
        assert base.model.first.forward is wrapper
    assert len(calls) == 6


def test_a_wrapper_under_ours_is_put_back_as_it_was(base: ModelPatcher) -> None:
    inner = base.model.first.forward

    def wrapper(x: Tensor) -> Tensor:
        return 2 * inner(x)

    base.model.first.forward = wrapper
    without = loaded(base)
    assert not torch.equal(loaded(hooked(base, 1.0, FIRST)), without)
    assert torch.equal(loaded(base), without)
    assert base.model.first.forward is wrapper


def test_a_new_strength_patches_no_weight(
    base: ModelPatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(base)
    calls: list[str] = []
    original = comfy.lora.calculate_weight

    def counted(patches: object, weight: Tensor, key: str, *args: object, **more: object) -> Tensor:
        calls.append(key)
        return original(patches, weight, key, *args, **more)

    monkeypatch.setattr(comfy.lora, "calculate_weight", counted)
    for strength in (0.3, 0.6):
        adapted = hooked(base, strength)
        loaded(adapted)
        assert adapted.patches_uuid == base.patches_uuid
    assert not calls


@pytest.mark.parametrize("tokens", [1, 4096])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16], ids=str)
def test_hooks_on_weights_of_another_dtype_compute_in_that_of_the_input(
    base: ModelPatcher, dtype: torch.dtype, tokens: int
) -> None:
    layer = base.model.first
    layer.weight.data = layer.weight.data.to(dtype)
    merged = merged_weight(layer.weight.data.float(), [Placed(FIRST.adapter, 0.5)])
    x = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(2))
    expected = torch.nn.functional.linear(x, merged, layer.bias)
    adapted = hooked(base, 0.5, FIRST)
    loaded(adapted)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
    assert layer.weight.dtype == dtype


def plans_of(model: nn.Module) -> PlanStore:
    """What the hooks that were used last have on their device."""
    return stores_of(model)._used[0]


def test_device_copies_go_when_the_model_is_unloaded(base: ModelPatcher) -> None:
    adapted = hooked(base, 1.0)
    loaded(adapted)
    assert plans_of(base.model).model_loaded_weight_memory > 0
    adapted.detach()
    assert plans_of(base.model).model_loaded_weight_memory == 0


def test_another_strength_plans_nothing_and_copies_nothing(
    base: ModelPatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = PlanStore.plan

    def counted(self: PlanStore, module: str, *args: Any) -> LayerPlan:
        before = len(self._plans)
        plan = original(self, module, *args)
        made.extend([module] * (len(self._plans) - before))
        return plan

    monkeypatch.setattr(PlanStore, "plan", counted)
    first = loaded(hooked(base, 0.3))
    assert made == ["first", "second", "third"]
    gc.collect()  # the first patcher is gone before the second one is made, as in the host
    second = loaded(hooked(base, 0.6))
    assert len(made) == 3
    assert not torch.equal(first, second)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[LayerPlan]:
    """The plans that were made since the test began."""
    made: list[LayerPlan] = []
    original = LayerPlan.__init__

    def counted(self: LayerPlan, *args: Any) -> None:
        made.append(self)
        original(self, *args)

    monkeypatch.setattr(LayerPlan, "__init__", counted)
    return made


def test_another_weight_of_a_block_plans_and_patches_nothing(
    base: ModelPatcher, made: list[LayerPlan]
) -> None:
    uuid = base.patches_uuid
    results: list[Tensor] = []
    for factor in (0.5, 0.0, 1.0):
        patcher = hooked(base, 0.8, replace(FIRST, factor=factor), SECOND)
        assert patcher.patches_uuid == uuid
        results.append(loaded(patcher))
    assert len(made) == 2
    assert torch.equal(results[1], loaded(hooked(base, 0.8, SECOND)))
    assert torch.equal(results[2], loaded(hooked(base, 0.8, FIRST, SECOND)))
    assert not torch.equal(results[0], results[2])


def test_another_strength_plans_nothing_in_a_row_of_many_loaders(
    base: ModelPatcher, made: list[LayerPlan]
) -> None:
    # With five loaders or more, all layers were planned again at each new strength.
    bound = [replace(FIRST) for _ in range(6)]

    def row(strength: float) -> Tensor:
        patcher = base
        for item in bound:
            patcher = patcher.clone()
            add_hooks(patcher, (item,), Dial(strength))
        return loaded(patcher)

    first = row(0.3)
    gc.collect()
    assert not torch.equal(row(0.6), first)
    assert len(made) == 1


def test_the_memory_for_built_weights_follows_the_input(base: ModelPatcher) -> None:
    # Once it had been set, -1 did not take it back.
    def limit(memory_mb: int) -> int:
        adapted = base.clone()
        add_hooks(adapted, (FIRST,), Dial(1.0), memory_mb)
        loaded(adapted)
        return plans_of(base.model).budget.limit_bytes

    automatic = limit(AUTOMATIC)
    assert automatic > 0
    assert limit(0) == 0
    assert limit(3) == 3 * 2**20
    assert limit(AUTOMATIC) == automatic


def test_the_host_counts_the_plans_and_frees_them_when_it_needs_the_room(
    base: ModelPatcher,
) -> None:
    adapted = hooked(base, 1.0)
    (charged,) = adapted.get_additional_models()
    assert charged.model_size() == sum(
        tensor.nbytes
        for bound in (FIRST, SECOND, THIRD)
        for tensor in bound.adapter.tensors().values()
    )
    comfy.model_management.load_models_gpu([adapted, *adapted.get_nested_additional_models()])
    result = adapted.model(X)
    assert charged in comfy.model_management.loaded_models()
    assert charged.loaded_size() > 0
    comfy.model_management.unload_all_models()
    assert charged.loaded_size() == 0
    assert torch.equal(loaded(adapted), result)


def test_the_host_takes_no_plans_for_a_leak(base: ModelPatcher) -> None:
    # It warned of one, and collected garbage, at every load after the first strength was gone.
    for strength in (0.3, 0.6):
        adapted = hooked(base, strength)
        later = adapted.clone().clone()
        comfy.model_management.load_models_gpu([later, *later.get_nested_additional_models()])
        del adapted, later
        held = comfy.model_management.current_loaded_models
        assert not any(item.is_dead() for item in held if item.real_model is not None)


def test_a_clone_with_modules_of_its_own_is_injected_anew(base: ModelPatcher) -> None:
    adapted = hooked(base, 1.0)
    result = loaded(adapted)
    other = adapted.clone()
    other.model = Model()
    for callback in other.get_all_callbacks("on_clone"):
        callback(adapted, other)
    assert not other.is_injected
    other.inject_model()
    torch.testing.assert_close(other.model(X).detach(), result)


def test_a_deep_copy_of_a_hooked_model_sheds_the_hooks_of_its_origin(base: ModelPatcher) -> None:
    without = loaded(base)
    adapted = hooked(base, 1.0)
    result = loaded(adapted)
    other = ModelPatcher(copy.deepcopy(base.model), CPU, CPU)
    add_hooks(other, (FIRST, SECOND, THIRD), Dial(1.0))
    other.inject_model()
    assert torch.equal(other.model(X).detach(), result)
    other.eject_model()
    assert is_bare(other.model)
    assert torch.equal(other.model(X).detach(), without)
    assert torch.equal(adapted.model(X).detach(), result)


def test_patches_of_two_loaders_join_and_give_the_hooks_result(base: ModelPatcher) -> None:
    patched = base.clone()
    patched.add_patches({"first.weight": (torch.ones(8, 6),)}, 0.1)
    foreign = patched.patches["first.weight"][0]
    hooks = hooked(patched, 0.3, FIRST, SECOND, THIRD)
    assert not add_patches(patched, (FIRST, SECOND, THIRD), 0.5)
    assert not add_patches(patched, (FIRST, SECOND, THIRD), -0.2)
    assert patched.patches["first.weight"][0] is foreign
    assert len(patched.patches["first.weight"]) == 2
    torch.testing.assert_close(loaded(patched), loaded(hooks))


def test_a_bias_without_a_home_is_reported(base: ModelPatcher) -> None:
    shift = Bound("b", Target("second.weight"), Diff(diff_b=torch.ones(8)))
    assert add_patches(base.clone(), (shift,), 1.0) == ["second.bias"]


def test_the_tensors_that_the_offloader_moved_are_the_ones_used(base: ModelPatcher) -> None:
    patched = base.clone()
    add_patches(patched, (FIRST,), 1.0)
    patch = patched.patches["first.weight"][0][1]
    assert isinstance(patch, AdapterPatch)
    rebuilt = type(patch)(patch.loaded_keys, tuple(tensor * 2 for tensor in patch.weights))
    weight = base.model.first.weight.detach()
    change = patch.calculate_weight(weight, "first.weight", 1.0, 1.0, None, None) - weight
    moved = rebuilt.calculate_weight(weight, "first.weight", 1.0, 1.0, None, None) - weight
    torch.testing.assert_close(moved, change * 4)
