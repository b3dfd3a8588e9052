"""What each method trains, how it starts, and what it refuses."""

import dataclasses
import json
from dataclasses import replace

import pytest
import torch

from anyadapter.algorithms.adapters.base import InitialConfig
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.ia3 import Ia3
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora, LoraTucker
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.adapters.oft import DiagOft
from anyadapter.algorithms.errors import ShapeError, TrainingError
from anyadapter.algorithms.layers import Layer
from anyadapter.algorithms.training.methods import METHODS, MethodConfig, initial_config
from anyadapter.algorithms.training.network_args import network_args
from layer_cases import norm_cases, product_cases
from training_cases import CONFIGS, FORMS, trained

LINEAR, KERNEL = product_cases()[0], product_cases()[5]
POINT, GROUPS = product_cases()[4], product_cases()[8]
GENERATOR = torch.Generator()


def started(config: MethodConfig, layer: Layer = LINEAR.layer) -> object:
    return METHODS[config.method].start(layer, config, GENERATOR.manual_seed(0))


def test_the_methods_stand_in_the_order_of_the_menu() -> None:
    assert list(METHODS) == [
        *("LoRA-LierLa", "LoRA-C3Lier", "LoRA+", "LoRA-FA", "DyLoRA", "LoHa", "LoKr", "(IA)^3"),
        *("Full", "OFT (kohya)", "Diag-OFT", "BOFT", "GLoRA", "T-LoRA", "NestedUNet"),
    ]


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_survives_json(name: str) -> None:
    config = METHODS[name].recommended()
    assert config.method == name
    assert MethodConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize("name", METHODS)
def test_what_is_recommended_is_not_warned_of(name: str) -> None:
    assert METHODS[name].recommended().warnings() == ()


def test_every_argument_of_a_start_comes_from_the_configuration() -> None:
    config = MethodConfig(
        *("LoKr", 3, 2.0),
        factor=2,
        full_matrix=True,
        decompose_both=True,
        unbalanced=True,
        use_tucker=True,
        on_input=True,
        constraint=0.5,
        rescaled=True,
    )
    made = initial_config(config, 3, 2.0)
    for field in dataclasses.fields(InitialConfig):
        assert getattr(made, field.name) == getattr(config, field.name) != field.default


@pytest.mark.parametrize("name", METHODS)
def test_kernels_are_trained_as_the_method_says(name: str) -> None:
    without = started(replace(CONFIGS[name], conv_rank=0), KERNEL.layer)
    asked = started(CONFIGS[name], KERNEL.layer)
    kernels = METHODS[name].kernels
    assert (without is not None) == (kernels == "always")
    assert (asked is not None) == (kernels != "never")
    assert started(CONFIGS[name], POINT.layer) is not None


def test_kernels_have_their_own_rank_and_alpha_or_those_of_the_others() -> None:
    own = started(MethodConfig("LoRA-C3Lier", 4, 2.0, conv_rank=3, conv_alpha=1.0), KERNEL.layer)
    assert isinstance(own, Lora)
    assert (own.rank, own.alpha) == (3, 1.0)
    assert own.down.shape == (3, 6, 3, 5)
    assert own.up.shape == (8, 3, 1, 1)
    same = started(MethodConfig("LoRA-C3Lier", 4, 2.0), KERNEL.layer)
    assert isinstance(same, Lora)
    assert (same.rank, same.alpha) == (4, 2.0)


@pytest.mark.parametrize("name", METHODS)
def test_norms_are_trained_where_the_configuration_says_so(name: str) -> None:
    for case in norm_cases():
        assert isinstance(started(CONFIGS[name], case.layer), Norm)
        assert started(replace(CONFIGS[name], train_norms=False), case.layer) is None


@pytest.mark.parametrize("name", METHODS)
def test_fields_that_learn_faster_are_zero_at_the_start_and_no_others(name: str) -> None:
    one = trained(CONFIGS[name], LINEAR)
    assert one is not None
    method, tensors = METHODS[name], one.adapter.tensors()
    zero = {field for field, tensor in tensors.items() if not tensor.any()}
    if name == "NestedUNet":
        zero -= {"u1", "u2"}
    if method.plus:
        assert zero == tensors.keys() & method.plus


def test_starts_come_from_the_generator_alone() -> None:
    first, again = started(CONFIGS["LoHa"]), started(CONFIGS["LoHa"])
    assert isinstance(first, type(again))
    other = METHODS["LoHa"].start(LINEAR.layer, CONFIGS["LoHa"], GENERATOR.manual_seed(1))
    assert torch.equal(first.w1_a, again.w1_a)
    assert not torch.equal(first.w1_a, other.w1_a)


def test_lora_fa_starts_as_that_of_sd_scripts() -> None:
    layer = Layer("linear", (64, 480))
    start = started(MethodConfig("LoRA-FA", 32), layer)
    assert isinstance(start, Lora)
    assert abs(float(start.down.std()) / (2 / 512) ** 0.5 - 1) < 0.02
    assert not start.up.any()


def test_rs_lora_is_a_scale_of_alpha_over_the_root_of_the_rank() -> None:
    for name in ("LoRA+", "LoHa", "GLoRA"):
        start = started(replace(CONFIGS[name], rs_lora=True))
        assert start.alpha / start.rank == 2.0 / 4**0.5


def test_lokr_takes_its_arguments() -> None:
    layer = Layer("linear", (320, 320))
    whole = started(MethodConfig("LoKr", factor=8, full_matrix=True), layer)
    assert isinstance(whole, Lokr)
    assert whole.w1 is not None
    assert whole.w2 is not None
    assert (whole.w1.shape, whole.w2.shape) == ((8, 8), (40, 40))
    assert whole.scale == 1
    factors = started(MethodConfig("LoKr", 3, factor=8, decompose_both=True), layer)
    assert isinstance(factors, Lokr)
    assert factors.tensors().keys() == {"w1_a", "w1_b", "w2_a", "w2_b"}


def test_ia3_scales_outputs_or_inputs() -> None:
    for on_input, channels in ((False, 8), (True, 6)):
        start = started(replace(CONFIGS["(IA)^3"], on_input=on_input))
        assert isinstance(start, Ia3)
        assert (start.weight.numel(), start.on_input) == (channels, on_input)


def test_oft_of_kohya_has_rank_blocks_and_diag_oft_blocks_of_rank() -> None:
    layer = Layer("linear", (320, 64))
    kohya = started(MethodConfig("OFT (kohya)", 4, constraint=1e-3), layer)
    own = started(MethodConfig("Diag-OFT", 16), layer)
    assert isinstance(kohya, DiagOft)
    assert isinstance(own, DiagOft)
    assert (kohya.oft_blocks.shape, kohya.alpha, kohya.maker) == ((4, 80, 80), 1e-3, "kohya")
    assert own.oft_blocks.shape == (20, 16, 16)


def test_a_core_carries_the_kernel_where_it_is_asked_for() -> None:
    config = replace(CONFIGS["LoRA-C3Lier"], use_tucker=True)
    assert isinstance(started(config, KERNEL.layer), LoraTucker)
    assert isinstance(started(config, POINT.layer), Lora)


def test_dora_keeps_the_lengths_of_the_weight_in_lycoris_shape() -> None:
    for axis, shape in (("outputs", (8, 1, 1, 1)), ("inputs", (1, 6, 1, 1))):
        start = started(replace(CONFIGS["LoRA-C3Lier"], dora=True, dora_on=axis), KERNEL.layer)
        assert isinstance(start, Dora)
        assert start.dora_scale is not None
        assert start.dora_scale.shape == shape


def refuses(match: str, **arguments: object) -> None:
    with pytest.raises(TrainingError, match=match):
        MethodConfig(**{"method": "LoRA+"} | arguments)


def test_values_without_meaning_are_refused() -> None:
    refuses("no method 'LoRa'. Choose one of LoRA-LierLa", method="LoRa")
    refuses("rank is 0; set it to 1 or more", rank=0)
    refuses("conv_rank is -1", conv_rank=-1)
    refuses("alpha is 0.0; it scales", alpha=0.0)
    refuses("alpha is nan", alpha=float("nan"))
    refuses("plus_ratio is -1.0", plus_ratio=-1.0)
    refuses("module_dropout is 1.0; set it to 0 or more, and below 1", module_dropout=1.0)
    refuses("dropout is -0.1", dropout=-0.1)
    refuses("4 ranks at a time, which do not divide 6 ranks", method="DyLoRA", rank=6)
    refuses("do not divide 6 ranks", method="DyLoRA", rank=8, conv_rank=6)
    refuses("halves the rank twice", method="NestedUNet", rank=3)
    refuses("min_rank is 5 and rank is 4", method="T-LoRA", rank=4, min_rank=5)
    refuses("rank_power is 0.0", method="T-LoRA", rank_power=0.0)
    refuses("does not hold the start", method="T-LoRA", tlora_format="LyCORIS", data_init=False)
    refuses("does not hold the start", method="T-LoRA", tlora_format="LyCORIS", triples="last")
    refuses("no meaning with use_tucker", method="LoRA-C3Lier", use_tucker=True, dropout=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_dropouts_without_meaning_are_refused(name: str) -> None:
    for dropout in ("dropout", "rank_dropout", "module_dropout"):
        if dropout in METHODS[name].dropouts:
            MethodConfig(name, **{dropout: 0.1})
        else:
            refuses(f"{dropout} has no meaning in", method=name, **{dropout: 0.1})


@pytest.mark.parametrize("name", METHODS)
def test_dora_goes_around_additive_methods_alone(name: str) -> None:
    if METHODS[name].takes_dora:
        assert isinstance(started(replace(CONFIGS[name], dora=True)), Dora)
    else:
        refuses("DoRA has no meaning around", method=name, dora=True)


def test_a_grouped_convolution_has_no_values_to_drop() -> None:
    with pytest.raises(TrainingError, match="groups has no values between both factors"):
        started(replace(CONFIGS["LoRA+"], dropout=0.1), GROUPS.layer)
    assert started(replace(CONFIGS["LoHa"], rank_dropout=0.1), GROUPS.layer) is not None


def test_layers_that_cannot_be_split_are_refused() -> None:
    for method in ("OFT (kohya)", "BOFT", "Diag-OFT"):
        with pytest.raises(ShapeError):
            started(MethodConfig(method, 4), Layer("linear", (7, 6)))


def test_what_the_makers_advise_against_is_told() -> None:
    def only(method: str, **arguments: object) -> str:
        (warning,) = replace(METHODS[method].recommended(), **arguments).warnings()
        return warning

    assert "LoHa of rank 33" in only("LoHa", rank=33)
    assert "above 128" in only("LoRA-LierLa", rank=129)
    assert "alpha above the rank" in only("LoRA-LierLa", alpha=17.0)
    assert "fixed directions" in only("LoRA-FA", rank=8, alpha=8.0)
    assert "conv_rank is without effect" in only("LoRA-LierLa", conv_rank=4)
    assert "A constraint of 1" in only("OFT (kohya)", constraint=1.0)
    assert "no scale" in only("LoKr", rs_lora=True)
    assert "about half" in only("LoRA-LierLa", dora=True)


ARGUMENTS = {
    "LoRA-LierLa": ("networks.lora", {}),
    "LoRA-C3Lier": ("networks.lora", {"conv_dim": "4", "conv_alpha": "3"}),
    "LoRA+": (
        "networks.lora",
        {"conv_dim": "4", "conv_alpha": "3", "loraplus_lr_ratio": "16"},
    ),
    "LoRA-FA": ("networks.lora_fa", {"conv_dim": "4", "conv_alpha": "3"}),
    "DyLoRA": (
        "networks.dylora",
        {"conv_dim": "4", "conv_alpha": "3", "unit": "2", "constant_scale": "True"},
    ),
    "LoHa": ("lycoris.kohya", {"algo": "loha", "conv_dim": "4", "conv_alpha": "3"}),
    "LoKr, whole": (
        "lycoris.kohya",
        {
            "algo": "lokr",
            "conv_dim": "1",
            "conv_alpha": "3",
            "factor": "-1",
            "full_matrix": "True",
            "unbalanced_factorization": "True",
        },
    ),
    "(IA)^3": ("lycoris.kohya", {"algo": "ia3", "conv_dim": "4", "conv_alpha": "3"}),
    "OFT (kohya)": ("networks.oft", {"enable_conv": "True"}),
    "Diag-OFT, limited": (
        "lycoris.kohya",
        {
            "algo": "diag-oft",
            "conv_dim": "4",
            "conv_alpha": "3",
            "rescaled": "True",
            "constraint": "0.02",
        },
    ),
    "LoRA-C3Lier with DoRA": (
        "lycoris.kohya",
        {
            "algo": "locon",
            "conv_dim": "4",
            "conv_alpha": "3",
            "dora_wd": "True",
            "wd_on_output": "True",
        },
    ),
    "GLoRA, rsLoRA": ("lycoris.kohya", {"algo": "glora", "conv_dim": "4", "conv_alpha": "3"}),
    "T-LoRA": ("networks.lora", {}),
    "T-LoRA, LyCORIS": ("lycoris.kohya", {"algo": "tlora"}),
    "NestedUNet": ("networks.lora", {"conv_dim": "4", "conv_alpha": "3"}),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_metadata_name_a_method_as_its_tool_does(name: str) -> None:
    network = network_args(replace(FORMS[name], train_norms=False))
    assert (network.module, network.arguments) == ARGUMENTS[name]


def test_the_metadata_turn_kernels_off_where_lycoris_would_train_them() -> None:
    network = network_args(replace(CONFIGS["LoHa"], conv_rank=0, rank_dropout=0.1))
    assert network.arguments == {
        "algo": "loha",
        "conv_dim": "0",
        "rank_dropout": "0.1",
        "train_norm": "True",
    }
    assert network_args(replace(CONFIGS["LoRA+"], conv_rank=0)).module == "lycoris.kohya"
