"""LoKr: against the tools that make it, its forms, its scale, and that no product is built."""

import itertools
import json
from typing import Any

import pytest
import torch
from lycoris.functional import factorization as factorization_of_lycoris
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adapter_cases import random
from anyadapter.algorithms.adapters.base import InitialConfig, Origin
from anyadapter.algorithms.adapters.linalg import factorization
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.errors import MissingTensorError, ShapeError
from anyadapter.algorithms.formats.parse import parse_tensors
from layer_cases import LayerCase, layer_of
from oracles import change, covering, lycoris, of_lycoris, of_peft, peft, read, relative_error


def sized(name: str, module: nn.Module, *shape: int) -> LayerCase:
    module = module.double().requires_grad_(False)
    return LayerCase(name, module, layer_of(module), random(*shape))


# Long enough sides that a rank of 2 is low on both sides of the product.
CASES = [
    sized("linear", nn.Linear(24, 40), 2, 7, 24),
    sized("linear, no bias", nn.Linear(24, 40, bias=False), 3, 24),
    sized("conv2d 1x1", nn.Conv2d(24, 40, 1), 2, 24, 4, 5),
    sized("conv2d 3x5", nn.Conv2d(24, 40, (3, 5), stride=(2, 1), padding=(1, 2)), 2, 24, 7, 9),
    sized("conv2d, dilation", nn.Conv2d(24, 40, 3, dilation=2, bias=False), 2, 24, 9, 8),
    sized("conv2d, 2 groups", nn.Conv2d(48, 40, 3, padding=1, groups=2), 2, 48, 5, 6),
    sized("conv1d", nn.Conv1d(24, 40, 5, stride=2, padding=1), 2, 24, 11),
    sized("conv3d", nn.Conv3d(24, 40, (1, 3, 5), padding=(0, 1, 2)), 2, 24, 3, 5, 7),
]
each_layer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
FORMS: dict[str, dict[str, Any]] = {
    "whole": {"full_matrix": True},
    "w2 of factors": {},
    "both of factors": {"decompose_both": True},
    "w1 of factors": {
        "decompose_both": True,
        "unbalanced_factorization": True,
        "factor": 4,
        "lora_dim": 3,
    },
    "tucker": {"use_tucker": True},
    "tucker, w1 of factors": {"use_tucker": True, "decompose_both": True},
    "unbalanced": {"unbalanced_factorization": True, "factor": 2},
    "unbalanced, factors": {"unbalanced_factorization": True, "factor": 2, "decompose_both": True},
}


@pytest.mark.parametrize(("case", "form"), covering(CASES, FORMS))
def test_the_forward_is_that_of_lycoris(case: LayerCase, form: dict[str, Any]) -> None:
    settings = {"lora_dim": 2, "alpha": 3.0} | form
    expected, saved = of_lycoris(lycoris.lokr.LokrModule, case, **settings)
    assert relative_error(change(case, read(saved)), expected) < 1e-10


@pytest.mark.parametrize("form", ["whole", "both of factors"])
@pytest.mark.parametrize("setting", ["rs_lora", "use_scalar"])
def test_settings_of_lycoris_that_it_folds_into_the_file(form: str, setting: str) -> None:
    if (form, setting) == ("whole", "rs_lora"):
        return  # not in the file: see the test of its correction
    settings = {"lora_dim": 2, "alpha": 3.0, setting: True} | FORMS[form]
    expected, saved = of_lycoris(lycoris.lokr.LokrModule, CASES[0], **settings)
    assert relative_error(change(CASES[0], read(saved)), expected) < 1e-6  # alpha is in float32


def test_the_forms_are_what_their_names_say() -> None:
    case = CASES[3]
    forms = {
        name: set(of_lycoris(lycoris.lokr.LokrModule, case, **({"lora_dim": 2} | settings))[1])
        for name, settings in FORMS.items()
    }
    parts = {
        name: {key.removeprefix("lycoris_x.lokr_") for key in keys} for name, keys in forms.items()
    }
    w1, w1_factors, w2, w2_factors = {"w1"}, {"w1_a", "w1_b"}, {"w2"}, {"w2_a", "w2_b"}
    found = [parts[name] - {"lycoris_x.alpha"} for name in FORMS]
    assert found == [
        w1 | w2,
        w1 | w2_factors,
        w1_factors | w2_factors,
        w1_factors | w2,
        w1 | w2_factors | {"t2"},
        w1_factors | w2_factors | {"t2"},
        w1 | w2_factors,
        w1_factors | w2_factors,
    ]


KNOWN_TO_PEFT = [case for case in CASES if case.name != "conv3d"]
PEFT_SETTINGS: list[dict[str, Any]] = [
    {"r": 2},
    {"r": 32},
    {"r": 2, "decompose_both": True},
    {"r": 2, "use_effective_conv2d": True},
    {"r": 2, "use_effective_conv2d": True, "decompose_both": True, "decompose_factor": 4},
]
PEFT_VARIANTS = {
    f"{settings}{' in memory' if in_memory else ''}": (settings, in_memory)
    for in_memory in (False, True)
    for settings in PEFT_SETTINGS
}


@pytest.mark.parametrize(("case", "variant"), covering(KNOWN_TO_PEFT, PEFT_VARIANTS))
def test_the_forward_is_that_of_peft(case: LayerCase, variant: tuple[dict[str, Any], bool]) -> None:
    settings, in_memory = variant
    config = peft.LoKrConfig(alpha=3, target_modules=["layer"], init_weights=False, **settings)
    expected, saved, written = of_peft(config, case, in_memory=in_memory)
    assert relative_error(change(case, read(saved, config=written)), expected) < 1e-10


def lokr(alpha: float | None = None, **shapes: tuple[int, ...]) -> Lokr:
    return Lokr(**{name: random(*shape) for name, shape in shapes.items()}, alpha=alpha)


WHOLE = {"w1": (2, 3), "w2": (4, 2)}
FACTORS = {"w1": (2, 3), "w2_a": (4, 5), "w2_b": (5, 2)}


@pytest.mark.parametrize("alpha", [None, 0.0, 1.0, 9999999999.0, float("inf")])
def test_alpha_means_nothing_with_both_sides_whole(alpha: float | None) -> None:
    weight = torch.empty(8, 6, device="meta")
    adapter = lokr(alpha, **WHOLE).completed(Origin("ai-toolkit"), corrections=True).adapter
    expected = torch.kron(random(2, 3), random(4, 2))
    torch.testing.assert_close(adapter.delta_weight(weight), expected)


def test_an_alpha_that_half_precision_made_infinite_loads() -> None:
    tensors = {"x.lokr_w1": random(2, 3), "x.lokr_w2": random(4, 2)}
    tensors["x.alpha"] = torch.tensor(9999999999.0).half()
    adapter = read(tensors)
    weight = torch.empty(8, 6, device="meta")
    torch.testing.assert_close(
        adapter.delta_weight(weight), torch.kron(tensors["x.lokr_w1"], tensors["x.lokr_w2"])
    )


@pytest.mark.parametrize(
    ("shapes", "rank"),
    [
        (FACTORS, 5),
        ({"w1_a": (2, 7), "w1_b": (7, 3), "w2": (4, 2)}, 7),
        ({"w1_a": (2, 7), "w1_b": (7, 3), "w2_a": (4, 5), "w2_b": (5, 2)}, 5),
        ({"w1": (2, 3), "t2": (4, 5, 3, 3), "w2_a": (4, 4), "w2_b": (5, 2)}, 5),
    ],
)
def test_the_scale_is_alpha_through_the_rank_once(
    shapes: dict[str, tuple[int, ...]], rank: int
) -> None:
    assert lokr(3.0, **shapes).rank == rank
    assert lokr(3.0, **shapes).scale == 3.0 / rank
    assert lokr(None, **shapes).scale == 1.0
    by_header = lokr(None, **shapes).completed(Origin("peft", alpha=2.0), corrections=True)
    assert by_header.adapter.scale == 2.0 / rank
    assert lokr(0.0, **shapes).completed(Origin(), corrections=True).assumed == "scale 1"


def test_peft_scales_whole_sides_by_its_configuration() -> None:
    tensors = {
        "base_model.model.a.lokr_w1": random(2, 3),
        "base_model.model.a.lokr_w2": random(4, 2),
    }
    weight = torch.empty(8, 6, device="meta")
    product = torch.kron(random(2, 3), random(4, 2))
    config = {"peft_type": "LOKR", "r": 8, "alpha": 2, "rank_pattern": {}, "alpha_pattern": {}}
    torch.testing.assert_close(read(tensors, config=config).delta_weight(weight), product / 4)
    patterns = {"rank_pattern": {"a": 16}, "alpha_pattern": {"a": 48}}
    scaled = read(tensors, config=config | patterns)
    torch.testing.assert_close(scaled.delta_weight(weight), product * 3)
    # What is written has the scale in its tensors, and reading it does not apply it again.
    written = {f"base_model.model.a{key}": torch.as_tensor(v) for key, v in scaled.stored().items()}
    torch.testing.assert_close(read(written, config=config).delta_weight(weight), product * 3)


def test_a_scale_that_only_peft_knows_is_said_to_be_assumed() -> None:
    assert lokr(**WHOLE).completed(Origin("peft"), corrections=True).assumed == "scale 1"
    assert lokr(**WHOLE).completed(Origin(), corrections=True).assumed == "scale 1"
    assert not lokr(**WHOLE).completed(Origin("ai-toolkit"), corrections=True).assumed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_rs_lora_of_lycoris_with_whole_sides_is_corrected_where_it_is_proved(
    dtype: torch.dtype,
) -> None:
    case = CASES[0]
    settings = {"lora_dim": 16, "alpha": 8.0, "full_matrix": True, "rs_lora": True}
    expected, saved = of_lycoris(lycoris.lokr.LokrModule, case, **settings)
    saved["lycoris_x.alpha"] = saved["lycoris_x.alpha"].to(dtype)
    arguments = json.dumps({"algo": "lokr", "rs_lora": "True"})
    metadata = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "16",
        "ss_network_args": arguments,
    }
    assert relative_error(change(case, read(saved, metadata)), expected) < 1e-10
    unproved = read(saved, metadata | {"ss_network_args": "{}"})
    assert relative_error(change(case, unproved) * 4, expected) < 1e-10
    other_dim = read(saved, metadata | {"ss_network_dim": "8"})
    assert relative_error(change(case, other_dim) * 4, expected) < 1e-10
    found = Lokr(w1=saved["lycoris_x.lokr_w1"], w2=saved["lycoris_x.lokr_w2"], alpha=64.0)
    origin = Origin("lycoris", options={"rs_lora": True, "conv_dim": 16})
    assert not found.completed(origin, corrections=False).corrected
    assert "root of its dim" in found.completed(origin, corrections=True).corrected


def test_w2_b_may_have_the_axes_of_the_kernel() -> None:
    case = next(case for case in CASES if case.name == "conv2d 3x5")
    flat = {
        "x.lokr_w1": random(4, 3), "x.lokr_w2_a": random(10, 2), "x.lokr_w2_b": random(2, 120)
    }  # fmt: skip
    apart = flat | {"x.lokr_w2_b": flat["x.lokr_w2_b"].reshape(2, 8, 3, 5)}
    assert torch.equal(change(case, read(apart)), change(case, read(flat)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("w1",), "it has nothing of lokr_w2, but LoKr needs either lokr_w2, or"),
        (("w2",), "it has nothing of lokr_w1, but LoKr needs either lokr_w1, or"),
        (("w1_a", "w2"), "it has lokr_w1_a, but LoKr needs either lokr_w1, or lokr_w1_a and"),
        (("w1", "w1_a", "w1_b", "w2"), "it has lokr_w1 and lokr_w1_a and lokr_w1_b, but"),
        (("w1", "w2_b"), "it has lokr_w2_b, but"),
        (("w1", "w2", "t2"), "it has lokr_t2 and lokr_w2, but"),
        (("w1", "w2", "w2_a", "w2_b"), "it has lokr_w2 and lokr_w2_a and lokr_w2_b, but"),
    ],
)
def test_a_side_must_be_there_in_one_form(names: tuple[str, ...], message: str) -> None:
    shapes = FACTORS | WHOLE | {"w1_a": (2, 7), "w1_b": (7, 3), "t2": (4, 5, 3, 3)}
    tensors = {f"x.lokr_{name}": random(*shapes[name]) for name in names}
    with pytest.raises(MissingTensorError, match=f"file: x: {message}"):
        read(tensors)


def test_factors_must_fit_each_other_and_the_weight() -> None:
    tensors = {
        "x.lokr_w1": random(2, 3), "x.lokr_w2_a": random(4, 5), "x.lokr_w2_b": random(6, 2)
    }  # fmt: skip
    with pytest.raises(ShapeError, match=r"file: x: lokr_w2_a .* inner size is 5, but 6 in"):
        read(tensors)
    for shape in ((9, 6), (8, 7), (6, 8), (8, 6, 3, 3)):
        with pytest.raises(ShapeError, match=r"product of 2 x 3 and 4 x 2 numbers, the weight has"):
            lokr(**WHOLE).delta_weight(torch.empty(shape, device="meta"))


def test_t1_is_named_as_not_understood() -> None:
    tensors = {"x.lokr_w1": random(2, 3), "x.lokr_w2": random(4, 2), "x.lokr_t1": random(2, 2)}
    assert parse_tensors(tensors, {}, "file").unclaimed == ("x.lokr_t1",)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@each_layer
@pytest.mark.parametrize("form", ["whole", "both of factors", "tucker"])
def test_a_hook_never_builds_the_product(case: LayerCase, form: str) -> None:
    if case.layer.groups != 1:
        return  # there the weight is the only way
    settings = {"lora_dim": 2, "alpha": 3.0} | FORMS[form]
    adapter = read(of_lycoris(lycoris.lokr.LokrModule, case, **settings)[1])
    x = case.x[:1, :1] if case.name == "linear" else case.x[:1]
    y = case.module(x)
    with Largest() as in_hook:
        adapter.delta_output(x, y, case.layer)
    with Largest() as in_merge:
        adapter.delta_weight(case.weight)
    assert in_hook.numbers < case.weight.numel() == in_merge.numbers


TABLE = {
    320: [(16, 20), (4, 80), (8, 40), (16, 20)],
    360: [(18, 20), (4, 90), (8, 45), (15, 24)],
    640: [(20, 32), (4, 160), (8, 80), (16, 40)],
    768: [(24, 32), (4, 192), (8, 96), (16, 48)],
    1280: [(32, 40), (4, 320), (8, 160), (16, 80)],
    2560: [(40, 64), (4, 640), (8, 320), (16, 160)],
    3072: [(48, 64), (4, 768), (8, 384), (16, 192)],
    5120: [(64, 80), (4, 1280), (8, 640), (16, 320)],
    12288: [(96, 128), (4, 3072), (8, 1536), (16, 768)],
    21504: [(128, 168), (4, 5376), (8, 2688), (16, 1344)],
    127: [(1, 127)] * 4,
}


def test_sizes_are_split_as_lycoris_splits_them() -> None:
    for size, splits in TABLE.items():
        assert [factorization(size, factor) for factor in (-1, 4, 8, 16)] == splits
    for size, factor in itertools.product(range(1, 400), (-1, 1, 2, 3, 4, 5, 8, 10, 16, 32, 64)):
        assert factorization(size, factor) == factorization_of_lycoris(size, factor)


def test_a_start_has_the_forms_of_lycoris() -> None:
    layer = CASES[3].layer
    generator = torch.Generator().manual_seed(0)
    low = Lokr.initial(layer, InitialConfig(rank=2, alpha=1.0), generator)
    saved = of_lycoris(lycoris.lokr.LokrModule, CASES[3], lora_dim=2)[1]
    shapes = {key.removeprefix("lycoris_x.lokr_"): value.shape for key, value in saved.items()}
    del shapes["lycoris_x.alpha"]
    assert {name: tensor.shape for name, tensor in low.tensors().items()} == shapes
    assert low.alpha == 1.0
    whole = Lokr.initial(layer, InitialConfig(rank=8, alpha=1.0, factor=4), generator)
    assert {name: tuple(tensor.shape) for name, tensor in whole.tensors().items()} == {
        "w1": (4, 4),
        "w2": (10, 6, 3, 5),
    }
    assert whole.alpha == 8.0
