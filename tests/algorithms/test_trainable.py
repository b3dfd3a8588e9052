"""Laws of training, for every method on every layer that it takes, and what each method adds."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.tlora import Tlora
from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.algorithms.layers import Layer
from anyadapter.algorithms.strength import Placed
from anyadapter.algorithms.training.methods import METHODS, MethodConfig
from anyadapter.algorithms.training.nested_lora import NestedLora
from anyadapter.algorithms.training.network_args import network_args
from anyadapter.algorithms.training.trainable import TrainableAdapter, TrainableNetwork
from anyadapter.algorithms.training.trained_tlora import RankMasks, TrainedTlora
from checking import annotations_unchecked
from kept_bytes import kept_bytes
from layer_cases import LayerCase, layer_of
from oracles import lycoris
from training_cases import CONFIGS, FORMS, LAYERS, Trained, linear, trained

PAIRS = [
    pytest.param(config, case, id=f"{name} on {case.name}")
    for name, config in FORMS.items()
    for case in LAYERS
    if trained(config, case) is not None
]
each_pair = pytest.mark.parametrize(("config", "case"), PAIRS)
MIB = 2**20


def on(config: MethodConfig, case: LayerCase) -> Trained:
    found = trained(config, case)
    assert found is not None
    return found


def change_of(case: LayerCase, adapter: Adapter) -> Tensor:
    return case.hooked([Placed(adapter, 1.0)]) - case.module(case.x)


def read_back(config: MethodConfig, adapter: Adapter) -> Adapter:
    """Returns an adapter after a file."""
    network = network_args(config)
    strings = {
        "ss_network_module": network.module,
        "ss_network_args": json.dumps(network.arguments),
    }
    made = AdapterSet("file", {"lora_unet_x": (adapter,)}, AdapterMetadata(strings))
    tensors, metadata = to_tensors(made)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    parsed = parse_tensors(tensors, metadata, "file")
    assert not parsed.unclaimed
    ((found,),) = parsed.as_trained().adapters.values()
    return found


@each_pair
def test_a_start_changes_nothing(config: MethodConfig, case: LayerCase) -> None:
    one = on(config, case)
    one.begin_step(torch.tensor([0.2, 0.7]))
    base = case.module(case.x)
    if config.dora:
        assert_close(base + one.change(), base)
    else:
        assert torch.equal(base + one.change(), base)


@each_pair
def test_gradients_reach_every_trained_tensor_and_the_input_and_no_base_weight(
    config: MethodConfig, case: LayerCase
) -> None:
    one = on(config, case)
    one.fit()
    x = case.x.clone().requires_grad_()
    one.network.zero_grad()
    one.begin_step()
    one.change(x).pow(3).sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    for name, parameter in one.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert all(tensor.grad is None for tensor in case.module.parameters())
    assert all(tensor.grad is None for tensor in one.network.buffers())


@each_pair
def test_what_is_saved_makes_the_change_that_was_trained(
    config: MethodConfig, case: LayerCase
) -> None:
    one = on(config, case).fill()
    one.network.eval()
    change = one.change().detach()
    assert change.norm() > 0.01
    adapter = one.adapter.adapter()
    assert_close(change_of(case, adapter), change)
    assert_close(case.merged([Placed(adapter, 1.0)]) - case.module(case.x), change)
    assert not any(tensor.requires_grad for tensor in adapter.tensors().values())


@each_pair
def test_a_file_gives_the_same_adapter_back(config: MethodConfig, case: LayerCase) -> None:
    adapter = on(config, case).fill().adapter.adapter()
    found = read_back(config, adapter)
    assert type(found) is type(adapter)
    assert_close(change_of(case, found), change_of(case, adapter))


def test_what_is_saved_does_not_learn_on() -> None:
    one = linear(CONFIGS["LoRA+"]).fill()
    adapter = one.adapter.adapter()
    before = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    one.fit()
    for name, tensor in adapter.tensors().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_groups_hold_each_parameter_once(name: str) -> None:
    one = linear(CONFIGS[name])
    groups = one.adapter.groups()
    found = [parameter for group in groups.values() for parameter in group]
    assert {id(one) for one in found} == {id(one) for one in one.network.parameters()}
    assert len(found) == len(list(one.network.parameters()))
    assert all(not parameter.any() for parameter in groups["plus"])
    fields = {name for name, tensor in one.adapter.tensors().items() if not tensor.any()}
    if METHODS[name].plus:
        assert len(groups["plus"]) == len(fields & METHODS[name].plus) > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_two_networks_do_not_know_of_each_other(name: str) -> None:
    first = linear(CONFIGS[name])
    kept = {name: tensor.clone() for name, tensor in first.adapter.tensors().items()}
    other = on(replace(CONFIGS[name], rank=2 if "OFT" in name else 8), LAYERS[0])
    other.fit()
    again = linear(CONFIGS[name])
    for name, tensor in first.adapter.tensors().items():
        assert torch.equal(tensor, kept[name])
        assert torch.equal(again.adapter.tensors()[name], kept[name])


def test_a_network_keeps_keys_and_order() -> None:
    config = CONFIGS["LoRA+"]
    keys = ["b.to_q.weight", "a.to_k.weight"]
    network = TrainableNetwork({key: linear(config).adapter for key in keys})
    assert list(network.keys) == list(network.adapters()) == keys
    assert [key for key, _ in network.items()] == keys
    assert "trainables.b/to_q/weight.up" in network.state_dict()


def test_a_network_comes_back_from_its_state() -> None:
    one, other = linear(CONFIGS["T-LoRA"]).fill(), linear(CONFIGS["T-LoRA"])
    other.network.load_state_dict(one.network.state_dict())
    assert torch.equal(other.change(), one.change())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORMS)
def test_half_precision_layers_give_gradients_in_float32(name: str, dtype: torch.dtype) -> None:
    case = LAYERS[0].to(dtype)
    one = trained(FORMS[name], case, torch.float32)
    assert one is not None
    one.begin_step()
    change = one.change()
    assert change.dtype == dtype
    change.float().sum().backward()
    for parameter in one.network.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


# What of LoRA is kept for backward


def saved_mib(config: MethodConfig) -> float:
    """Returns MiB kept for backward on a layer of 1024 to 1024 for 4096 tokens, but for weights."""
    module = nn.Linear(1024, 1024, bias=False).requires_grad_(False)
    layer = layer_of(module)
    start = METHODS[config.method].start(layer, config, torch.Generator().manual_seed(0))
    assert start is not None
    adapter = TrainableAdapter(start, config)
    own = [*adapter.parameters(), *adapter.buffers(), module.weight]
    x = torch.zeros(1, 4096, 1024, requires_grad=True)

    def run() -> Tensor:
        y = module(x)
        return y + adapter.change(x, y, layer)

    return kept_bytes(run, own) / MIB


def test_lora_fa_keeps_the_values_between_its_factors_alone() -> None:
    assert saved_mib(MethodConfig("LoRA-FA", rank=16)) == 0.25
    assert saved_mib(MethodConfig("LoRA-LierLa", rank=16)) == 16.25


# Dropouts


def dropping(name: str, **shares: float) -> Trained:
    one = linear(replace(CONFIGS[name], **shares)).fill()
    one.begin_step()
    return one


def seeded_change(one: Trained) -> Tensor:
    torch.manual_seed(7)
    return one.change().detach()


LOW_RANK = [name for name, method in METHODS.items() if method.low_rank]


def test_dropout_acts_on_the_values_between_both_factors() -> None:
    one = dropping("LoRA-LierLa", dropout=0.25)
    found, tensors = seeded_change(one), one.adapter.tensors()
    hidden = one.case.x @ tensors["down"].T * 0.5
    torch.manual_seed(7)
    expected = F.dropout(torch.ones_like(hidden), 0.25) * hidden @ tensors["up"].T
    assert_close(found, expected.detach())


def test_rank_dropout_leaves_ranks_of_a_sample_out_at_all_places() -> None:
    one = dropping("LoRA-LierLa", rank_dropout=0.25)
    found, tensors = seeded_change(one), one.adapter.tensors()
    torch.manual_seed(7)
    mask = (torch.rand(2, 4) > 0.25).double()[:, None]
    hidden = one.case.x @ tensors["down"].T
    assert_close(found, (hidden * mask @ tensors["up"].T * 0.5 / 0.75).detach())


def test_both_products_of_t_lora_lose_the_same_values() -> None:
    one = dropping("T-LoRA", dropout=0.25, rank_dropout=0.25)
    found, now = seeded_change(one), one.adapter.current()
    assert isinstance(now, TrainedTlora)
    torch.manual_seed(7)
    mask = F.dropout(torch.ones(2, 7, 4, dtype=torch.float64), 0.25)
    mask = mask * (torch.rand(2, 4) > 0.25).double()[:, None] / 0.75
    learned = one.case.x @ now.q.T * mask * now.lengths @ now.p.T
    start = one.case.x @ now.base_q.T * mask * now.base_lengths @ now.base_p.T
    assert_close(found, ((learned - start) * 0.5).detach())


def test_module_dropout_leaves_calls_out_and_does_not_rescale() -> None:
    one = dropping("LoHa", module_dropout=0.25)
    torch.manual_seed(7)
    left = [bool(torch.rand(()) >= 0.25) for _ in range(400)]
    torch.manual_seed(7)
    changes = [one.change().detach() for _ in range(400)]
    one.network.eval()
    whole = one.change().detach()
    assert [bool(change.any()) for change in changes] == left
    assert all(
        torch.equal(change, whole) for change, used in zip(changes, left, strict=True) if used
    )
    assert 0.7 < sum(left) / 400 < 0.8


def test_a_call_that_was_left_out_can_be_stepped_with() -> None:
    one = dropping("LoRA-LierLa", module_dropout=0.999999)
    one.change().sum().backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any()
        for parameter in one.network.parameters()
    )


@pytest.mark.parametrize("name", ["LoHa", "LoKr", "Full", "LoHa with DoRA"])
def test_rank_dropout_of_methods_without_ranks_leaves_output_rows_out(name: str) -> None:
    one = linear(replace(FORMS[name], rank_dropout=0.25)).fill()
    found = seeded_change(one)
    torch.manual_seed(7)
    mask = (torch.rand(8) > 0.25).double()
    one.network.eval()
    assert_close(found, (one.change() * mask).detach())


def test_rank_dropout_of_glora_draws_for_both_products() -> None:
    one = dropping("GLoRA", rank_dropout=0.25)
    found, tensors = seeded_change(one), one.adapter.tensors()
    torch.manual_seed(7)
    first, second = (torch.rand(4) > 0.25).double(), (torch.rand(4) > 0.25).double()
    a = one.case.weight @ (tensors["a1"] * first) @ tensors["a2"]
    b = (tensors["b1"] * second) @ tensors["b2"]
    assert_close(found, (one.case.x @ (a + b).T * 0.5).detach())


@pytest.mark.parametrize("name", LOW_RANK)
def test_dropouts_keep_the_change_on_average(name: str) -> None:
    one = dropping(name, dropout=0.3, rank_dropout=0.3)
    one.adapter.begin_step(None, 0.99)
    torch.manual_seed(3)
    full = replace(one.config, dropout=0.0, rank_dropout=0.0)
    whole = linear(full).fill()
    whole.adapter.begin_step(None, 0.99)
    x = one.case.x.repeat(2000, 1, 1)
    mean = one.change(x).detach().reshape(2000, *one.case.x.shape[:2], -1).mean(0)
    expected = whole.change().detach()
    assert (mean - expected).norm() < 0.06 * expected.norm()


@pytest.mark.parametrize("name", FORMS)
def test_dropouts_end_with_training(name: str) -> None:
    method = METHODS[FORMS[name].method]
    shares = dict.fromkeys(method.dropouts, 0.5)
    if FORMS[name].use_tucker:
        shares.pop("dropout", None), shares.pop("rank_dropout", None)
    one, plain = linear(replace(FORMS[name], **shares)).fill(), linear(FORMS[name]).fill()
    one.network.eval()
    plain.network.eval()
    assert torch.equal(one.change(), plain.change())


@pytest.mark.parametrize("name", ["LoRA+", "DyLoRA", "T-LoRA", "LoHa"])
def test_recomputing_a_step_draws_the_same_masks_again(name: str) -> None:
    shares = dict.fromkeys(METHODS[name].dropouts, 0.3)
    one = dropping(name, **shares)

    def gradients(*, recomputed: bool) -> list[Tensor | None]:
        one.network.zero_grad()
        torch.manual_seed(7)
        x = one.case.x.clone().requires_grad_()
        change = checkpoint(one.change, x, use_reentrant=False) if recomputed else one.change(x)
        torch.rand(3)  # what else draws before backward
        change.pow(3).sum().backward()
        return [x.grad, *(parameter.grad for parameter in one.network.parameters())]

    pairs = zip(gradients(recomputed=True), gradients(recomputed=False), strict=True)
    for found, expected in pairs:
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected)


# DyLoRA


def test_dylora_uses_the_first_ranks_at_the_scale_of_the_whole() -> None:
    one = linear(CONFIGS["DyLoRA"]).fill()
    tensors = one.adapter.tensors()
    ranks = set()
    for _ in range(20):
        one.begin_step()
        change = one.change()
        for rank in (2, 4):
            expected = one.case.x @ (tensors["up"][:, :rank] @ tensors["down"][:rank]).T * 0.5
            if torch.allclose(change, expected):
                ranks.add(rank)
                break
        else:
            pytest.fail("no first ranks make this change")
    assert ranks == {2, 4}


@pytest.mark.parametrize("gradient", ["frozen", "full"])
def test_dylora_trains_the_newest_ranks_or_all_that_are_used(gradient: str) -> None:
    one = linear(replace(CONFIGS["DyLoRA"], dylora_gradient=gradient)).fill()
    one.adapter.begin_step(None, 0.99)
    one.change().pow(2).sum().backward()
    down = one.adapter.get_parameter("down").grad
    up = one.adapter.get_parameter("up").grad
    assert down is not None
    assert up is not None
    touched = [False, False, True, True] if gradient == "frozen" else [True] * 4
    assert down.any(1).tolist() == up.any(0).tolist() == touched


def test_all_dyloras_of_a_network_draw_one_rank_unless_each_is_asked_to() -> None:
    def drawn(config: MethodConfig) -> set[int]:
        network = TrainableNetwork({str(i): linear(config).fill().adapter for i in range(12)})
        network.begin_step(None, torch.Generator().manual_seed(0))
        case = LAYERS[0]
        y = case.module(case.x)
        changes = [network[key].change(case.x, y, case.layer) for key in network.keys]
        return {round(float(change.detach().norm()) * 1e6) for change in changes}

    config = replace(CONFIGS["DyLoRA"], unit=1)
    assert len(drawn(config)) == 1
    assert len(drawn(replace(config, dylora_per_module=True))) > 1


def test_a_cut_of_a_saved_dylora_is_what_was_trained() -> None:
    one = linear(CONFIGS["DyLoRA"]).fill()
    one.adapter.begin_step(None, 0.0)
    change = one.change().detach()
    for adapter in (one.adapter.adapter(), read_back(one.config, one.adapter.adapter())):
        assert_close(change_of(one.case, adapter.sliced(2)), change)


@annotations_unchecked()
def test_low_ranks_of_a_dylora_beat_those_of_a_sliced_lora() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0]
    target = left[:, :10] * torch.tensor([2.0**-i for i in range(10)]) @ right
    layer, x = Layer("linear", (12, 10)), torch.eye(10)

    def errors(method: str) -> list[float]:
        config = MethodConfig(method, rank=8, alpha=8.0, unit=1)
        draw = torch.Generator().manual_seed(1)
        start = METHODS[method].start(layer, config, draw)
        assert start is not None
        network = TrainableNetwork({"a": TrainableAdapter(start, config)})
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.02, weight_decay=0.0)
        for _ in range(400):
            network.begin_step(None, draw)
            optimizer.zero_grad()
            (network["a"].change(x, x.new_zeros(10, 12), layer) - target.T).pow(2).sum().backward()
            optimizer.step()
        adapter = network["a"].adapter()
        assert isinstance(adapter, Lora)
        whole = replace(adapter, constant_scale=True)
        return [
            float((whole.sliced(rank).delta_weight(target) - target).norm()) for rank in range(1, 5)
        ]

    for low, sliced in zip(errors("DyLoRA"), errors("LoRA-LierLa"), strict=True):
        assert low < sliced


# T-LoRA


def test_t_lora_uses_fewer_ranks_of_noisier_samples() -> None:
    config = replace(CONFIGS["T-LoRA"], min_rank=2, rank_power=2.0)
    one = linear(config).fill()
    one.begin_step(torch.tensor([0.0, 0.5]))
    found, now = one.change(), one.adapter.current()
    assert isinstance(now, TrainedTlora)
    for sample, ranks in ((0, 4), (1, 2)):  # floor(0.5^2 * 2) + 2
        q, p, lengths = now.q[:ranks], now.p[:, :ranks], now.lengths[:, :ranks]
        start = now.base_p[:, :ranks] * now.base_lengths[:, :ranks] @ now.base_q[:ranks]
        change = (p * lengths @ q - start) * 0.5
        assert_close(found[sample], one.case.x[sample] @ change.T)


def test_layers_that_are_alike_share_a_mask_and_others_have_their_own() -> None:
    masks, cpu = RankMasks(torch.tensor([0.0, 0.5, 1.0])), torch.device("cpu")
    mask = masks.of(4, 1, 1.0, cpu)
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert masks.of(4, 1, 1.0, cpu) is mask
    assert masks.of(2, 3, 1.0, cpu).tolist() == [[1, 1]] * 3
    assert masks.of(4, 3, 1.0, cpu).sum(1).tolist() == [4, 3, 3]
    assert masks.of(4, 1, 2.0, cpu).sum(1).tolist() == [4, 1, 1]


def test_t_lora_repeats_levels_for_layers_that_see_several_parts_of_a_sample() -> None:
    one = linear(CONFIGS["T-LoRA"]).fill()
    one.begin_step(torch.tensor([0.0, 1.0]))
    two, four = one.change(), one.change(one.case.x.repeat_interleave(2, 0))
    assert_close(four, two.repeat_interleave(2, 0))
    with pytest.raises(TrainingError, match="batch size to 1"):
        one.change(one.case.x[:1])


def test_t_lora_is_saved_as_a_lora_of_twice_the_rank_or_in_lycoris_form() -> None:
    adapter = linear(CONFIGS["T-LoRA"]).adapter.adapter()
    assert isinstance(adapter, Lora)
    assert (adapter.rank, adapter.scale) == (8, 0.5)
    adapter = linear(FORMS["T-LoRA, LyCORIS"]).adapter.adapter()
    assert isinstance(adapter, Tlora)


def test_t_lora_learns_as_that_of_lycoris() -> None:
    case = LAYERS[0]
    one = linear(CONFIGS["T-LoRA"]).fill()
    tensors = one.adapter.tensors()
    module = lycoris.tlora.TLoraModule("lycoris_x", case.module, lora_dim=4, alpha=2).double()
    module.q_layer.weight.data.copy_(tensors["q"])
    module.p_layer.weight.data.copy_(tensors["p"])
    module.lambda_layer.data.copy_(tensors["lengths"])
    for name in ("q", "p", "lambda"):
        getattr(module, f"base_{name}").copy_(tensors["base_" + name.replace("lambda", "lengths")])
    theirs = module(case.x) - case.module(case.x)
    assert_close(one.change(), theirs)
    theirs.pow(3).sum().backward()
    one.change().pow(3).sum().backward()
    assert_close(one.adapter.get_parameter("q").grad, module.q_layer.weight.grad)
    assert_close(one.adapter.get_parameter("p").grad, module.p_layer.weight.grad)
    assert_close(one.adapter.get_parameter("lengths").grad, module.lambda_layer.grad)


# NestedUNet


@pytest.mark.parametrize("case", LAYERS[:2] + LAYERS[3:4], ids=lambda case: case.name)
def test_the_small_u_is_the_lora_that_is_saved(case: LayerCase) -> None:
    one = on(CONFIGS["NestedUNet"], case).fill()
    now = one.adapter.current()
    assert isinstance(now, NestedLora)
    layer = case.layer
    hidden = layer.apply(case.x, now.down)
    first = layer.pointwise(hidden, now.d1)
    second = layer.pointwise(first, now.d2)
    first = first + layer.pointwise(second, now.u2)
    hidden = hidden + layer.pointwise(first, now.u1)
    expected = layer.pointwise(hidden, now.up.flatten(1)) * now.as_lora().scale
    saved = one.adapter.adapter()
    assert isinstance(saved, Lora)
    assert saved.rank == 4
    error = (change_of(case, saved) - expected).norm() / expected.norm()
    assert error < 1e-14


# DoRA


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
@pytest.mark.parametrize("detached", [True, False])
def test_dora_learns_as_its_formula_says(axis: str, detached: bool) -> None:
    config = replace(CONFIGS["LoRA-LierLa"], dora=True, dora_on=axis, dora_detached=detached)
    one = linear(config).fill()
    tensors = {name: t.detach().requires_grad_() for name, t in one.adapter.tensors().items()}
    case = one.case
    v = case.weight + tensors["inner.up"] @ tensors["inner.down"] * 0.5
    norm = v.norm(dim=1 if axis == "outputs" else 0, keepdim=True)
    norm = norm.detach() if detached else norm
    expected = F.linear(case.x, tensors["dora_scale"] * v / norm, case.bias) - case.module(case.x)
    change = one.change()
    assert_close(change, expected)
    change.pow(3).sum().backward()
    expected.pow(3).sum().backward()
    for name, tensor in tensors.items():
        found = one.adapter.get_parameter(name.replace(".", "_")).grad
        assert_close(found, tensor.grad)


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
def test_dora_with_the_whole_gradient_learns_as_that_of_lycoris(axis: str) -> None:
    config = replace(CONFIGS["LoRA-LierLa"], dora=True, dora_on=axis, dora_detached=False)
    one = linear(config).fill()
    case, tensors = one.case, one.adapter.tensors()
    module = lycoris.locon.LoConModule(
        *("lycoris_x", case.module),
        lora_dim=4,
        alpha=2,
        weight_decompose=True,
        wd_on_out=axis == "outputs",
    ).double()
    module.lora_up.weight.data.copy_(tensors["inner.up"])
    module.lora_down.weight.data.copy_(tensors["inner.down"])
    module.dora_scale.data.copy_(tensors["dora_scale"])
    theirs = module(case.x) - case.module(case.x)
    assert_close(one.change(), theirs)
    theirs.pow(3).sum().backward()
    one.change().pow(3).sum().backward()
    pairs = {
        "inner_up": module.lora_up.weight,
        "inner_down": module.lora_down.weight,
        "dora_scale": module.dora_scale,
    }
    for name, parameter in pairs.items():
        assert_close(one.adapter.get_parameter(name).grad, parameter.grad)


# LoRA+


def test_a_ratio_in_the_parameters_is_two_rates_of_an_optimizer() -> None:
    case = LAYERS[0]
    config = CONFIGS["LoRA+"]
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(2, 7, 8, generator=generator, dtype=torch.float64)

    def result(reparametrized: bool) -> dict[str, Tensor]:
        start = METHODS["LoRA+"].start(case.layer, config, torch.Generator().manual_seed(0))
        assert start is not None
        adapter = TrainableAdapter(
            start, config, dtype=torch.float64, reparametrized=reparametrized
        )
        groups = adapter.groups()
        assert bool(groups["plus"]) is not reparametrized
        optimizer = torch.optim.AdamW(
            [
                {"params": groups["base"], "lr": 1e-3},
                {"params": groups["plus"], "lr": 1e-3 * 16},
            ],
            weight_decay=0.0,
        )
        for _ in range(50):
            optimizer.zero_grad()
            y = case.module(case.x)
            (adapter.change(case.x, y, case.layer) - target).pow(2).sum().backward()
            optimizer.step()
        return adapter.adapter().tensors()

    two_rates, one_rate = result(False), result(True)
    assert two_rates["up"].abs().max() > 0.1
    for name, tensor in two_rates.items():
        assert (one_rate[name] - tensor).abs().max() < 1e-6
