"""Several adapters in one: exact sums of every pair of methods, sizes, TIES and DARE beside PEFT."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from lycoris import create_lycoris_from_weights
from torch import Tensor, nn
from torch.testing import assert_close

from adapter_cases import ADAPTER_CASES, random
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.loha import Loha
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora, LoraTucker
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.editing.combination import Combined, Recipe, combined
from anyadapter.algorithms.editing.joining import Input
from anyadapter.algorithms.editing.sites import Sited
from anyadapter.algorithms.editing.size import Size
from anyadapter.algorithms.errors import EditingError
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.algorithms.keymap import KeyMap, Target, halves_swapped, rows_of
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.strength import Placed
from checking import annotations_unchecked
from ending_steps import EndingSteps
from import_peft import peft
from layer_cases import LayerCase
from sited_adapters import LAYER, WEIGHT, on

merge_utils = peft.utils.merge_utils
EXACT = Recipe()


def site(
    adapter: Adapter, strength: float = 1.0, module: str = LAYER, target: Target | None = None
) -> Sited:
    return Sited(module, adapter, strength, target)


def file(
    name: str, *sites: Sited, metadata: Mapping[str, str] | None = None, **fields: object
) -> Input:
    adapters: dict[str, tuple[Adapter, ...]] = {}
    for one in sites:
        adapters[one.module] = (*adapters.get(one.module, ()), one.adapter)
    strings = AdapterMetadata(dict(metadata or {}))
    return Input(
        AdapterSet(name, adapters, strings, **fields), sites, f"{name} | {sites[0].strength}"
    )


def files(*sites: Sited) -> list[Input]:
    """Puts each site into a file of its own."""
    return [file(f"{number}.safetensors", one) for number, one in enumerate(sites)]


def made(found: Combined, module: str = LAYER) -> tuple[Adapter, ...]:
    return found.adapter_set.adapters[module]


def change(adapters: Iterable[Adapter], *shape: int) -> Tensor:
    """Returns the change of a weight of zeros; what a weight is of no one here reads."""
    weight = torch.zeros(shape, dtype=torch.float64)
    deltas = [one.delta_weight(weight) for one in adapters]
    return sum((one for one in deltas if one is not None), weight)


def lora(outputs: int, inputs: int, rank: int, alpha: float | None = 3.0, seed: int = 0) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(outputs, rank, generator=generator, dtype=torch.float64)
    down = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
    return Lora(up, down, alpha)


def methods_on(layer_name: str) -> tuple[LayerCase, list[Adapter]]:
    """A layer and an adapter of every method that it can have."""
    found: dict[type[Adapter], Adapter] = {}
    layers: list[LayerCase] = []
    for case in ADAPTER_CASES:
        for layer in case.layers():
            if layer.name == layer_name:
                layers.append(layer)
                found.setdefault(type(case.on(layer)), case.on(layer))
    return layers[0], list(found.values())


@pytest.mark.parametrize(
    "layer_name", ["linear", "conv2d 3x5", "conv2d 1x1", "conv2d, 2 groups", "group norm"]
)
def test_every_pair_of_methods_adds_exactly(layer_name: str) -> None:
    layer, adapters = methods_on(layer_name)
    with annotations_unchecked():  # one pair below checks them
        for one, other in itertools.combinations_with_replacement(adapters, 2):
            expected = layer.merged([Placed(one, 0.5), Placed(other, -0.7)])
            found = combined(files(on(layer, one, 0.5), on(layer, other, -0.7)), EXACT)
            result = layer.merged([Placed(adapter, 1.0) for adapter in made(found)])
            message = partial("{}: {}".format, f"{one.name} and {other.name}")
            assert_close(result, expected, msg=message)
            assert len({type(adapter) for adapter in made(found)}) == len(made(found))


@pytest.mark.parametrize("layer_name", ["linear", "conv2d 3x5", "group norm"])
def test_one_file_keeps_its_adapters(layer_name: str) -> None:
    layer, adapters = methods_on(layer_name)
    with annotations_unchecked():
        for adapter in adapters:
            assert made(combined(files(site(adapter)), EXACT)) == (adapter,)
            (halved,) = files(on(layer, adapter, -0.5))
            result = made(combined([halved], EXACT))
            expected = layer.merged([Placed(adapter, -0.5)])
            assert_close(layer.merged([Placed(one, 1.0) for one in result]), expected)


def test_methods_with_a_scale_stay_themselves_at_another_strength() -> None:
    layer, adapters = methods_on("conv2d 3x5")
    kinds = (Lora, LoraTucker, Loha, Lokr, Diff)
    for adapter in (one for one in adapters if isinstance(one, kinds)):
        (result,) = made(combined(files(site(adapter, 0.5)), EXACT))
        assert type(result) is type(adapter)
        assert_close(result.delta_weight(layer.weight), adapter.delta_weight(layer.weight) * 0.5)


def test_ranks_stand_side_by_side() -> None:
    one, other = lora(30, 20, 2), lora(30, 20, 3, 5.0, 1)
    (result,) = made(combined(files(site(one, 0.5), site(other, -2.0)), EXACT))
    assert isinstance(result, Lora)
    assert (result.rank, result.alpha) == (5, 5.0)
    dense = one.up @ one.down * (3 / 2) * 0.5 - other.up @ other.down * (5 / 3) * 2
    assert_close(result.up @ result.down, dense)


def test_products_of_ranks_are_a_lora_only_where_that_is_smaller() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    loha = Loha(draw(60, 2), draw(2, 80), draw(60, 2), draw(2, 80), 1.0)
    lokr = Lokr(w1=draw(2, 4), w2_a=draw(30, 3), w2_b=draw(3, 20), alpha=1.0)
    expected = change((loha, lokr), 60, 80)
    (small,) = made(combined(files(site(loha), site(lokr)), EXACT))
    assert isinstance(small, Lora)
    assert small.rank == 4 + 2 * 3
    assert_close(change((small,), 60, 80), expected)
    wide = Loha(draw(60, 6), draw(6, 80), draw(60, 6), draw(6, 80), 1.0)
    (whole,) = made(combined(files(site(wide), site(lokr)), EXACT))
    assert isinstance(whole, Diff)
    assert_close(change((whole,), 60, 80), change((wide, lokr), 60, 80))


def test_both_sides_of_a_tucker_lokr_stay_thin() -> None:
    core = random(3, 2, 3, 5)
    lokr = Lokr(w1=random(2, 4), w2_a=random(3, 30), w2_b=random(2, 20), t2=core, alpha=1.0)
    beside = Lora(random(60, 2, 1, 1), random(2, 80, 3, 5), 2.0)
    (result,) = made(combined(files(site(lokr), site(beside, 0.5)), EXACT))
    assert isinstance(result, Lora)
    assert result.rank == 2 * 3 + 2
    expected = change((lokr,), 60, 80, 3, 5) + change((beside,), 60, 80, 3, 5) * 0.5
    assert_close(change((result,), 60, 80, 3, 5), expected)


def test_a_kernel_is_that_of_the_file_which_has_it() -> None:
    kernels = Lora(random(8, 2, 1, 1), random(2, 6, 3, 5), 2.0)
    tucker = LoraTucker(random(8, 2, 1, 1), random(2, 3, 3, 5), random(3, 6, 1, 1), 2.0)
    matrices = Loha(random(8, 1), random(1, 90), random(8, 1), random(1, 90), 2.0)
    for others in ((tucker,), (matrices,), (tucker, matrices)):
        (result,) = made(combined(files(*map(site, (kernels, *others))), EXACT))
        assert isinstance(result, Lora)
        assert (result.up.shape[2:], result.down.shape[1:]) == ((1, 1), (6, 3, 5))
        assert_close(change((result,), 8, 6, 3, 5), change((kernels, *others), 8, 6, 3, 5))
    untold = combined(files(site(matrices), site(replace(matrices, alpha=3.0))), EXACT)
    assert "stored as matrices" in " ".join(untold.notes)


def test_biases_and_norms_add() -> None:
    norms = [Norm(random(8), random(8) * 2), Norm(random(8) + 1)]
    (norm,) = made(combined(files(site(norms[0], 0.5), site(norms[1], 2.0)), EXACT))
    assert isinstance(norm, Norm)
    assert_close(norm.w_norm, random(8) * 2.5 + 2)
    assert_close(norm.b_norm, random(8))
    biased = replace(lora(30, 20, 2), bias=torch.arange(30.0, dtype=torch.float64))
    extra = Diff(None, torch.ones(30, dtype=torch.float64))
    kept, shift = made(combined(files(site(biased), site(extra, 0.5)), EXACT))
    assert kept is biased
    assert_close(shift.delta_bias(None), extra.diff_b * 0.5)
    several = files(site(biased, 0.5), site(lora(30, 20, 3)), site(extra, 0.5))
    summed, shift = made(combined(several, EXACT))
    assert isinstance(summed, Lora)
    assert_close(
        shift.delta_bias(None), torch.arange(30.0, dtype=torch.float64) * (3 / 2) * 0.5 + 0.5
    )


def test_a_file_twice_counts_twice_and_against_itself_not_at_all() -> None:
    one = lora(30, 20, 2)
    (result,) = made(combined(files(site(one, 0.25), site(replace(one), 0.75)), EXACT))
    assert result.tensors().keys() == one.tensors().keys()
    assert all(result.tensors()[name] is one.tensors()[name] for name in one.tensors())
    with pytest.raises(EditingError, match="they cancel"):
        combined(files(site(one, 0.5), site(one, -0.5)), EXACT)


@pytest.mark.parametrize("mode", ["exact", "svd"])
def test_a_layer_in_which_all_cancels_is_left_out(mode: str) -> None:
    one = lora(30, 20, 2)
    parts = [
        file("a", site(one, 1.0), site(one, 1.0, "other")),
        file("b", site(one, -1.0), site(one, -0.5, "other")),
    ]
    found = combined(parts, Recipe(mode, Size(rank=2)))
    assert list(found.adapter_set.adapters) == ["other"]
    assert list(found.accuracy.parts) == ["other"]


def test_what_is_no_lora_becomes_one_of_a_size() -> None:
    """Some methods of PEFT are products of two factors too, which LoRA alone is read as."""
    other = next(
        case.on(layer)
        for case in ADAPTER_CASES
        for layer in case.layers()
        if layer.name == "linear" and type(case.on(layer)).__name__ == "AdaLora"
    )
    (result,) = made(combined(files(site(other)), Recipe("svd", Size(rank=8))))
    assert isinstance(result, Lora)
    shape = (result.up.shape[0], result.down.shape[1])
    assert_close(change((result,), *shape), change((other,), *shape), rtol=1e-5, atol=1e-6)


def test_dare_drops_other_numbers_of_other_files_of_one_name() -> None:
    parts = [
        file("the same", site(lora(80, 60, 4, seed=seed).to("cpu", torch.float32)))
        for seed in range(2)
    ]
    (result,) = made(combined(parts, Recipe("dare linear", density=0.5)))
    assert 0.2 < float((result.diff == 0).double().mean()) < 0.3


MODES = (
    EXACT,
    Recipe("svd", Size(rank=3)),
    Recipe("ties", Size(rank=3), density=0.6),
    Recipe("dare linear", Size(error=0.2), density=0.6),
    Recipe("dare ties", density=0.6, sign="frequency"),
    Recipe("magnitude", density=0.3),
)


@pytest.mark.parametrize("recipe", MODES, ids=lambda recipe: recipe.mode)
def test_the_order_of_files_changes_no_bit(recipe: Recipe) -> None:
    matrices = Loha(random(30, 2), random(2, 20), random(30, 2) - 1, random(2, 20), 2.0)
    parts = [
        file("a", site(lora(30, 20, 2), 0.5), site(lora(5, 7, 2), 0.5, "other")),
        file("b", site(lora(30, 20, 3, seed=1), 0.3), metadata={"ss_v2": "False"}),
        file("c", site(matrices.to("cpu", torch.float32), -0.2)),
        file(
            "b",
            site(lora(30, 20, 3, seed=1), 0.4),
            site(Diff(None, torch.ones(30, dtype=torch.float64))),
        ),
    ]
    first, *others = (combined(order, recipe) for order in itertools.permutations(parts))
    tensors, strings = to_tensors(first.adapter_set)
    for other in others:
        found, said = to_tensors(other.adapter_set)
        assert said == strings
        assert list(found) == list(tensors)
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
        assert other.notes == first.notes


def test_svd_is_the_best_copy_of_the_sum_and_tells_its_error() -> None:
    parts = [lora(60, 40, 4, seed=seed) for seed in range(3)]
    strengths = (1.0, 0.5, -0.7)
    exact = sum(
        (
            part.up @ part.down * (3 / 4) * strength
            for part, strength in zip(parts, strengths, strict=True)
        ),
        torch.zeros(60, 40, dtype=torch.float64),
    )
    values = torch.linalg.svdvals(exact.double())
    inputs = files(*(site(part, one) for part, one in zip(parts, strengths, strict=True)))
    found = combined(inputs, Recipe("svd", Size(rank=5)))
    (result,) = made(found)
    assert isinstance(result, Lora)
    assert (result.rank, result.alpha) == (5, 5.0)
    lost = float(values[5:].norm())
    part = found.accuracy.parts[LAYER]
    assert float((change((result,), 60, 40) - exact).norm()) == pytest.approx(lost, rel=1e-4)
    assert (part.norm, part.error) == pytest.approx((float(values.norm()), lost), rel=1e-5)
    (kept,) = made(combined(inputs[:1], Recipe("svd", Size(rank=5))))
    assert kept is parts[0]
    (near,) = made(combined(inputs, Recipe("svd", Size(error=0.3, most=9))))
    shares = [float(values[rank:].norm() / values.norm()) for rank in range(1, 12)]
    assert near.rank == next(rank for rank, share in enumerate(shares, 1) if share <= 0.3)


def test_kernels_have_a_size_of_their_own_and_norms_stay_whole() -> None:
    inputs = [
        file(
            name,
            site(lora(30, 20, 4, seed=seed)),
            site(Lora(random(9, 3, 1, 1) + seed, random(3, 6, 3, 3), 1.0), 1.0, "kernel"),
            site(Norm(random(8) + seed), 1.0, "norm"),
        )
        for seed, name in enumerate(("a", "b"))
    ]
    found = combined(inputs, Recipe("svd", Size(rank=5, kernel_rank=2)))
    ranks = {module: one.rank for module, (one,) in found.adapter_set.adapters.items()}
    assert ranks == {LAYER: 5, "kernel": 2, "norm": None}
    (norm,) = made(found, "norm")
    assert_close(norm.w_norm, random(8) * 2 + 1)
    assert found.accuracy.parts["norm"].error == 0
    with pytest.raises(EditingError, match="choose a rank"):
        Recipe("svd")


DENSE = [random(40, 30), random(40, 30) * 0.5 - random(30, 40).T, random(40, 30).flip(0) * 2]
WEIGHTS = torch.tensor([0.8, 0.5, 1.3], dtype=torch.float64)


def dense_inputs(changes: Sequence[Tensor] = DENSE, weights: Tensor = WEIGHTS) -> list[Input]:
    pairs = zip(changes, weights.tolist(), strict=True)
    return files(*(site(Diff(one), weight) for one, weight in pairs))


@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_ties_is_that_of_peft(sign: str) -> None:
    found = combined(dense_inputs(), Recipe("ties", density=0.4, sign=sign))
    expected = merge_utils.ties(DENSE, WEIGHTS, 0.4, sign)
    (result,) = made(found)
    assert_close(result.diff, expected)
    exact = sum((one * weight for one, weight in zip(DENSE, WEIGHTS, strict=True)), DENSE[0] * 0)
    share = float((expected - exact).norm() / exact.norm())
    assert f"differs from their plain sum by {100 * share:.2g} % of it" in " ".join(found.notes)


def test_a_negative_strength_votes_for_the_change_that_is_added() -> None:
    weights = WEIGHTS * torch.tensor([1, -1, 1])
    (result,) = made(combined(dense_inputs(weights=weights), Recipe("ties", density=0.4)))
    turned = [DENSE[0], -DENSE[1], DENSE[2]]
    assert_close(result.diff, merge_utils.ties(turned, WEIGHTS, 0.4))


def test_pruning_is_that_of_peft() -> None:
    (result,) = made(combined(dense_inputs(), Recipe("magnitude", density=0.25)))
    assert_close(result.diff, merge_utils.magnitude_prune(DENSE, WEIGHTS, 0.25))


@pytest.mark.parametrize("mode", ["dare linear", "dare ties"])
def test_dare_is_that_of_peft_with_masks_of_its_own(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = []
    for dense in DENSE:
        alone = combined(files(site(Diff(dense))), Recipe("dare linear", density=0.4))
        masks.append((made(alone)[0].diff != 0).double())
        assert 0.3 < float(masks[-1].mean()) < 0.5
    drawn = iter(masks)
    monkeypatch.setattr(torch, "bernoulli", lambda _: next(drawn))
    expected = getattr(merge_utils, mode.replace(" ", "_"))(DENSE, WEIGHTS, 0.4)
    (result,) = made(combined(dense_inputs(), Recipe(mode, density=0.4)))
    assert_close(result.diff, expected)


def test_all_that_is_dense_enough_is_the_plain_sum() -> None:
    exact = sum((one * weight for one, weight in zip(DENSE, WEIGHTS, strict=True)), DENSE[0] * 0)
    for mode in ("magnitude", "dare linear"):
        (result,) = made(combined(dense_inputs(), Recipe(mode, density=1.0)))
        assert_close(result.diff, exact)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("cat", EXACT),
        ("svd", Recipe("svd", Size(rank=4))),
        ("ties_svd", Recipe("ties", Size(rank=4), density=0.4)),
        ("magnitude_prune_svd", Recipe("magnitude", Size(rank=4), density=0.4)),
    ],
)
def test_weighted_adapters_of_peft_are_the_same(kind: str, recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Conv2d(3, 5, 3)).double()
    targets = ["0"] if recipe.mode != "svd" else ["0", "1"]
    configs = [
        peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
        for rank, alpha in ((3, 6), (5, 4))
    ]
    wrapped = peft.get_peft_model(model, configs[0], "one")
    wrapped.add_adapter("two", configs[1])
    options = {} if recipe.mode in ("exact", "svd") else {"density": recipe.density}
    if kind == "svd":
        options["svd_rank"] = 4
    names, weights = ["one", "two"], [0.8, 0.5]
    if kind.endswith("_svd"):
        options["svd_rank"] = 4
    wrapped.base_model.add_weighted_adapter(names, weights, "both", kind, **options)
    for module in targets:
        layer = wrapped.base_model.model[int(module)]
        sites = [
            site(
                Lora(
                    layer.lora_B[name].weight.detach().double(),
                    layer.lora_A[name].weight.detach().double(),
                    float(config.lora_alpha),
                ),
                weight,
            )
            for name, config, weight in zip(names, configs, weights, strict=True)
        ]
        result = made(combined(files(*sites), recipe))
        expected = layer.get_delta_weight("both").detach().double()
        assert_close(change(result, *expected.shape), expected, rtol=1e-4, atol=1e-5)


FUSED = KeyMap(
    [
        ("lora_unet_qkv", WEIGHT),
        *((f"{part}", rows_of(WEIGHT.weight, 8 * n, 8)) for n, part in enumerate("qkv")),
        ("swapped", halves_swapped("model.mod.weight", 8)),
        ("lora_unet_mod", Target("model.mod.weight")),
    ],
    {"model.layer.weight": (24, 20), "model.layer.bias": (24,), "model.mod.weight": (8, 20)},
)


def on_target(name: str, adapter: Adapter, strength: float = 1.0) -> Sited:
    target = FUSED.target(name)
    assert target is not None
    shape = target.shape(FUSED.shapes[target.weight])
    return Sited(name, adapter, strength, target, shape)


def test_a_fused_weight_and_parts_of_it_are_joined_on_the_whole() -> None:
    whole, query, value = lora(24, 20, 2), lora(8, 20, 1, seed=1), lora(8, 20, 1, seed=2)
    biased = replace(value, bias=torch.ones(8, dtype=torch.float64))
    inputs = [
        file("a", on_target("lora_unet_qkv", whole, 0.5)),
        file("b", on_target("q", query), on_target("v", biased, -1.0)),
    ]
    found = combined(inputs, EXACT, {"model": FUSED})
    result, shift = made(found, "lora_unet_qkv")
    assert list(found.adapter_set.adapters) == ["lora_unet_qkv"]
    assert isinstance(result, Lora)
    assert result.rank == 4
    expected = change((whole,), 24, 20) * 0.5
    expected[:8] += change((query,), 8, 20)
    expected[16:] -= change((value,), 8, 20)
    assert_close(change((result,), 24, 20), expected)
    assert_close(shift.delta_bias(None), torch.tensor([0.0] * 16 + [-3.0] * 8, dtype=torch.float64))


def test_parts_alone_stay_parts_and_swapped_halves_are_put_right() -> None:
    inputs = [
        file("a", on_target("q", lora(8, 20, 1)), on_target("swapped", lora(8, 20, 2))),
        file("b", on_target("q", lora(8, 20, 1, seed=1)), on_target("k", lora(8, 20, 1, seed=2))),
        file("c", on_target("lora_unet_mod", lora(8, 20, 2, seed=3))),
    ]
    found = combined(inputs, EXACT, {"model": FUSED})
    assert set(found.adapter_set.adapters) == {"q", "k", "lora_unet_mod"}
    (result,) = made(found, "lora_unet_mod")
    swapped = change((lora(8, 20, 2),), 8, 20).roll(4, 0)
    assert_close(change((result,), 8, 20), swapped + change((lora(8, 20, 2, seed=3),), 8, 20))


def test_other_names_of_a_layer_are_the_same_layer() -> None:
    rows = Rows(0, 8)
    assert FUSED.target("q") == Target(WEIGHT.weight, rows)
    names = KeyMap([("lora_unet_layer", WEIGHT), ("unet.layer", WEIGHT)], {WEIGHT.weight: (24, 20)})
    inputs = files(
        site(lora(24, 20, 1), 1.0, "unet.layer", WEIGHT), site(lora(24, 20, 2), 1.0, LAYER, WEIGHT)
    )
    found = combined(inputs, EXACT, {"model": names})
    ((result,),) = found.adapter_set.adapters.values()
    assert result.rank == 3


def test_what_cannot_be_said_is_an_error_that_says_why() -> None:
    with pytest.raises(
        EditingError, match=r"0.safetensors changes 8 x 20 numbers.*different models"
    ):
        combined(files(site(lora(8, 20, 1)), site(lora(9, 20, 1))), EXACT)
    _, adapters = methods_on("linear")
    oft = next(one for one in adapters if one.name == "OFT")
    with pytest.raises(EditingError, match=rf"safetensors: {LAYER}: .*OFT.*connect the model"):
        combined(files(site(oft), site(lora(8, 6, 1))), EXACT)
    with pytest.raises(EditingError, match="nothing to combine"):
        combined(files(site(oft, 0.0)), EXACT)
    with pytest.raises(EditingError, match="density"):
        Recipe("ties", density=0.0)
    grown = replace(lora(8, 20, 1), reshape=(8, 20))
    with pytest.raises(EditingError, match="larger"):
        combined(files(site(grown), site(lora(8, 20, 1, seed=1))), EXACT)


def test_words_and_base_models_of_all_files_are_kept() -> None:
    base = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_dim": "7",
        "ss_sd_model_name": "x",
    }
    tags = ('{"3_cat": {"cat": 2, "sofa": 1}}', '{"3_cat": {"cat": 5}, "1_dog": {"dog": 1}}')
    inputs = [
        file(
            name,
            site(lora(30, 20, 2, 2.0, seed)),
            metadata={**base, "ss_tag_frequency": tags[seed], "modelspec.trigger_phrase": name},
        )
        for seed, name in enumerate(("cat", "dog"))
    ]
    odd = file("odd", site(lora(30, 20, 2, 2.0, 3)), metadata={**base, "ss_sd_model_name": "y"})
    strings = combined([*inputs, odd], EXACT).adapter_set.metadata.strings
    assert strings["ss_base_model_version"] == "sdxl_base_v1-0"
    assert "ss_sd_model_name" not in strings
    assert (strings["ss_network_module"], strings["ss_network_dim"]) == ("networks.lora", "6")
    assert strings["ss_network_alpha"] == "6.0"
    assert set(strings["modelspec.trigger_phrase"].split(", ")) == {"cat", "dog"}
    assert '"cat": 7' in strings["ss_tag_frequency"]
    assert '"cat | 1.0"' in strings["anyadapter.combination"]


def test_embeddings_are_kept_and_one_of_the_same_name_gets_another() -> None:
    vectors = [{"word": {"clip_l": torch.full((1, 4), float(n))}} for n in (1, 2, 2)]
    inputs = [
        file(str(number), site(lora(30, 20, 2, seed=number)), embeddings=one)
        for number, one in enumerate(vectors)
    ]
    found = combined(inputs, EXACT)
    kept = found.adapter_set.embeddings
    assert sorted(float(one["clip_l"][0, 0]) for one in kept.values()) == [1.0, 2.0]
    assert kept.keys() == {"word", "word_2"}
    assert "is called word_2 here" in " ".join(found.notes)


def test_what_is_made_is_read_back_as_it_is() -> None:
    layer, adapters = methods_on("conv2d 3x5")
    kinds = (Lora, Loha, Lokr, Diff)
    chosen = [one for one in adapters if type(one) in kinds]
    for one, other in itertools.combinations(chosen, 2):
        found = combined(files(on(layer, one, 0.5), on(layer, other, -0.7)), EXACT).adapter_set
        again = parse_tensors(*to_tensors(found), "x").as_trained()
        assert not again.notes
        placed = [Placed(adapter, 1.0) for adapter in again.adapters[LAYER]]
        assert_close(layer.merged(placed), layer.merged([Placed(one, 0.5), Placed(other, -0.7)]))


def test_each_layer_is_a_step_that_may_end_the_work() -> None:
    sites = [site(lora(30, 20, 2, seed=n), 1.0, f"layer_{n}") for n in range(4)]
    all_four, two = EndingSteps(4), EndingSteps(2)
    combined([file("a", *sites)], EXACT, steps=all_four)
    assert (all_four.count, all_four.begun) == (4, 4)
    with pytest.raises(InterruptedError):
        combined([file("a", *sites)], EXACT, steps=two)


@pytest.mark.filterwarnings("ignore")
def test_lycoris_opens_what_is_made() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"one": nn.Linear(20, 30), "two": nn.Conv2d(6, 8, 3), "three": nn.Linear(20, 30)}
    )
    kernel = Lora(random(8, 2, 1, 1), random(2, 6, 3, 3), 2.0)
    loha = Loha(random(30, 2), random(2, 20), random(30, 2) - 1, random(2, 20), 3.0)
    first = (
        site(lora(30, 20, 2), 0.5, "lycoris_one"),
        site(kernel, 0.5, "lycoris_two"),
        site(loha, -0.5, "lycoris_three"),
    )
    second = (
        site(lora(30, 20, 3, seed=1), -2.0, "lycoris_one"),
        site(replace(kernel, up=kernel.up + 1), 1.0, "lycoris_two"),
    )
    found = combined([file("a", *first), file("b", *second)], EXACT).adapter_set
    tensors = {key: value.float() for key, value in to_tensors(found)[0].items()}
    network, _ = create_lycoris_from_weights(1.0, "", model, tensors)
    assert len(network.loras) == 3
    for opened in network.loras:  # by what they compute: LyCORIS merges LoHa with its scale twice
        base = model[opened.lora_name.removeprefix("lycoris_")].double()
        x = random(2, 20) if base.weight.ndim == 2 else random(2, 6, 5, 5)
        parts = [one for one in (*first, *second) if one.module == opened.lora_name]
        changes = [change((one.adapter,), *base.weight.shape) * one.strength for one in parts]
        tuned = sum(changes, base.weight.detach())
        expected = torch.func.functional_call(base, {"weight": tuned}, (x,)) - base(x)
        assert_close(opened.double()(x) - base(x), expected, rtol=1e-4, atol=1e-4)
