"""OFT in every layout: against LyCORIS and PEFT, against formulas, and what cannot be decided."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adapter_cases import ADAPTER_CASES, AdapterCase, random
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.base import InitialConfig
from anyadapter.algorithms.adapters.oft import (
    DiagOft,
    OftEmbedding,
    OftV2,
    PeftInputOft,
    PeftOutputOft,
    SplitOft,
)
from anyadapter.algorithms.adapters.rotation import Rotation, cayley, cayley_neumann, skew_of
from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.errors import FormatError, ShapeError, UndecidedError
from anyadapter.algorithms.formats.parse import parse_tensors
from anyadapter.algorithms.keymap import KeyMap, Target
from anyadapter.algorithms.strength import Placed
from layer_cases import LayerCase, hooked_output, product_cases
from oracles import (
    SINGLE,
    covering,
    given_to_peft,
    lycoris,
    of_lycoris,
    of_peft,
    peft,
    read,
    require_effect,
    weight_effect,
)

everywhere = pytest.mark.parametrize("case", product_cases(), ids=lambda case: case.name)


def named(case_name: str) -> LayerCase:
    return next(case for case in product_cases() if case.name == case_name)


def shapes_only(case: LayerCase) -> Tensor:
    return torch.empty(case.weight.shape, device="meta")


def blocks_of(matrix: Tensor) -> Tensor:
    return torch.block_diag(*matrix)


def cayley_matrix(skew: Tensor) -> Tensor:
    """The rotation in float64, written out."""
    identity = torch.eye(skew.shape[-1], dtype=torch.float64)
    return (identity + skew.double()) @ torch.linalg.inv(identity - skew.double())


def rotated_rows(weight: Tensor, rotation: Tensor) -> Tensor:
    return (rotation @ weight.flatten(1)).reshape(weight.shape)


def rotated_columns(weight: Tensor, rotation: Tensor) -> Tensor:
    return (weight.flatten(1) @ rotation).reshape(weight.shape)


# LyCORIS


LYCORIS_OPTIONS: dict[str, dict[str, Any]] = {
    "limited and rescaled": {"constraint": 0.05, "rescaled": True},
    "free": {},
    "limited": {"constraint": 0.05},
    "rescaled": {"rescaled": True},
}


@pytest.mark.parametrize(("case", "options"), covering(SINGLE, LYCORIS_OPTIONS))
def test_it_equals_the_forward_of_lycoris(case: LayerCase, options: dict[str, Any]) -> None:
    effect, file = of_lycoris(lycoris.diag_oft.DiagOFTModule, case, lora_dim=4, **options)
    adapter = read(file)
    assert isinstance(adapter, DiagOft)
    require_effect(case, adapter, effect)


def test_lycoris_loads_what_we_start_with() -> None:
    case = named("conv2d 3x5")
    config = InitialConfig(rank=4, constraint=0.5, rescaled=True)
    start = DiagOft.initial(case.layer, config, torch.Generator())
    assert start.oft_blocks.shape == (4, 2, 2)
    assert start.rescale is not None
    with torch.no_grad():
        made = lycoris.diag_oft.DiagOFTModule.make_module_from_state_dict(
            "x", case.module, start.oft_blocks, start.rescale, torch.tensor(start.alpha)
        )
    assert made.oft_blocks.shape == start.oft_blocks.shape
    assert made.rescale.shape == start.rescale.shape


# kohya


def kohya_matrix(blocks: Tensor, limit: float) -> Tensor:
    skew = blocks - blocks.mT
    norm = torch.linalg.vector_norm(skew)
    skew = skew * (min(float(norm), limit) + 1e-8) / (norm + 1e-8)
    return blocks_of(cayley_matrix(skew))


@everywhere
@pytest.mark.parametrize("alpha", [0.125, 50.0, 0.0], ids=["limited", "loose", "dead"])
def test_kohyas_oft_turns_by_its_formula(case: LayerCase, alpha: float) -> None:
    blocks = random(2, 4, 4)
    adapter = read({"oft_unet_x.oft_blocks": blocks, "oft_unet_x.alpha": torch.tensor(alpha)})
    rotation = kohya_matrix(blocks, alpha * 8)
    turned = rotated_rows(case.weight, rotation.T)
    if alpha == 0:
        torch.testing.assert_close(turned, case.weight, atol=1e-6, rtol=0)
        assert torch.equal(adapter.delta_weight(case.weight), torch.zeros_like(case.weight))
    else:
        require_effect(case, adapter, weight_effect(case, turned))


def test_the_header_names_kohya_where_the_prefix_does_not() -> None:
    file = {"x.oft_blocks": random(2, 4, 4), "x.alpha": torch.tensor(0.0)}
    assert read(file, {"ss_network_module": "networks.oft"}).maker == "kohya"
    assert read(file, {"ss_network_module": "lycoris.kohya"}).maker == "lycoris"


def test_kohyas_parts_of_a_fused_weight_have_a_limit_each() -> None:
    case = named("linear")
    parts = [random(1, 2, 2), random(1, 3, 3), random(1, 3, 3).flip(1)]
    blocks = {f"oft_unet_x.oft_blocks.{i}": part for i, part in enumerate(parts)}
    adapter = read(blocks | {"oft_unet_x.alpha": torch.tensor(0.25)})
    assert isinstance(adapter, SplitOft)
    rotation = torch.block_diag(
        *(kohya_matrix(part, 0.25 * part.shape[0] * part.shape[1]) for part in parts)
    )
    require_effect(case, adapter, weight_effect(case, rotation.T @ case.weight))


def test_kohyas_parts_must_follow_each_other_and_cover_the_rows() -> None:
    weight = named("linear").weight
    with pytest.raises(ShapeError, match=r"2 \+ 4 outputs, the weight has 8"):
        SplitOft(random(1, 2, 2), random(1, 4, 4)).delta_weight(weight)
    with pytest.raises(ShapeError, match="in the middle are missing"):
        SplitOft(random(1, 4, 4), oft_blocks_2=random(1, 4, 4)).delta_weight(weight)


# ComfyUI


def test_alpha_1_of_comfyuis_trainer_is_the_limit_itself() -> None:
    case = named("conv2d 3x5")
    blocks = random(2, 4, 4)
    file = {"diffusion_model.x.oft_blocks": blocks, "diffusion_model.x.alpha": torch.tensor(1.0)}
    parsed = parse_tensors(file, {}, "file").as_trained()
    ((adapter,),) = parsed.adapters.values()
    assert "alpha 1 is the limit that ComfyUI's trainer sets" in parsed.notes[0]
    rotation = kohya_matrix(blocks, 1.0)
    require_effect(case, adapter, weight_effect(case, rotated_rows(case.weight, rotation.T)))


@pytest.mark.parametrize(
    ("module", "alpha", "metadata"),
    [
        ("lycoris_x", 1.0, {}),
        ("diffusion_model.x", 0.5, {}),
        ("diffusion_model.x", 1.0, {"ss_network_module": "lycoris.kohya"}),
    ],
)
def test_alpha_is_a_factor_everywhere_else(
    module: str, alpha: float, metadata: dict[str, str]
) -> None:
    file = {f"{module}.oft_blocks": random(2, 4, 4), f"{module}.alpha": torch.tensor(alpha)}
    adapter = read(file, metadata)
    assert isinstance(adapter, DiagOft)
    assert adapter.limit == alpha * 8


# PEFT


def config_of(**options: Any) -> peft.OFTConfig:
    return peft.OFTConfig(target_modules=["layer"], r=0, oft_block_size=3, **options)


PEFT_OPTIONS = [
    {},
    {"use_cayley_neumann": False},
    {"block_share": True},
    {"coft": True, "eps": 0.8},
    *({"num_cayley_neumann_terms": terms} for terms in range(2, 8)),
]
with_options = pytest.mark.parametrize("options", PEFT_OPTIONS, ids=str)


@with_options
def test_it_equals_the_forward_of_peft_on_a_linear_layer(options: dict[str, Any]) -> None:
    case = named("linear").to(torch.float32)
    effect, tensors, written = of_peft(config_of(**options), case)
    adapter = read(tensors, config=written)
    assert isinstance(adapter, OftV2)
    require_effect(case, adapter, effect)


def _square() -> list[LayerCase]:
    """Convolutions that PEFT merges right: kernels with equal sides, no groups."""
    cases = [case for case in SINGLE if len(case.layer.weight_shape) == 4]
    return [
        case
        for case in cases
        if case.layer.groups == 1
        and case.layer.weight_shape[2] == case.layer.weight_shape[3]
        and set(case.layer.dilation) == {1}
    ]


@with_options
@pytest.mark.parametrize("case", _square(), ids=lambda case: case.name)
def test_it_equals_the_merge_of_peft_on_a_convolution(
    case: LayerCase, options: dict[str, Any]
) -> None:
    layer = case.to(torch.float32).module
    model, tensors, written = given_to_peft(layer, config_of(**options))
    adapter = read(tensors, config=written)
    merged = model.merge_and_unload().layer
    require_effect(case, adapter, weight_effect(case, merged.weight.detach()))


@with_options
def test_a_table_of_tokens_turns_as_in_peft(options: dict[str, Any]) -> None:
    base = nn.Embedding(8, 6)
    tokens, table = torch.arange(8), base.weight.detach().clone()
    model, tensors, written = given_to_peft(base, config_of(**options))
    adapter = read(tensors, config=written)
    assert isinstance(adapter, OftEmbedding)
    change, expected = adapter.delta_weight(table), model(tokens).detach() - table
    assert expected.norm() > 0.05 * table.norm()
    assert (change - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("series", [True, False])
def test_the_header_of_diffusers_says_which_way_peft_turns(series: bool) -> None:
    case = named("linear").to(torch.float32)
    effect, tensors, _ = of_peft(config_of(use_cayley_neumann=series), case)
    tensors = {key.replace("base_model.model.", "unet."): value for key, value in tensors.items()}
    header = {"unet.use_cayley_neumann": series, "unet.peft_version": "0.21.2"}
    adapter = read(tensors, {"lora_adapter_metadata": json.dumps(header)})
    require_effect(case, adapter, effect)


def test_peft_before_0_18_counts_the_last_power_twice() -> None:
    vectors = random(2, 3) / 4
    config = {"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": 5}
    case = named("linear")
    adapter = read({"base_model.model.x.oft_R.weight": vectors}, config=config)
    skew = skew_from(vectors)
    rotation = torch.eye(3) + sum(2 * torch.linalg.matrix_power(skew, n) for n in (1, 2, 3, 4))
    expected = weight_effect(case, rotated_columns(case.weight, blocks_of(rotation).T))
    require_effect(case, adapter, expected)
    newer = read({"x.oft_R.weight": vectors}, config=config | {"peft_version": "0.18.0@1a2b"})
    assert not torch.allclose(newer.delta_weight(case.weight), adapter.delta_weight(case.weight))


@pytest.mark.parametrize("terms", [-1, 10**9])
def test_a_series_that_no_training_has_is_refused(terms: int) -> None:
    config = {
        "peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": terms
    }  # fmt: skip
    with pytest.raises(FormatError, match="x: its configuration asks for a series of"):
        read({"x.oft_R.weight": random(2, 3)}, config=config)


def test_numbers_of_the_configuration_that_are_not_finite_count_as_missing() -> None:
    options = {
        "peft_type": "OFT", "coft": True, "eps": math.nan, "num_cayley_neumann_terms": math.inf
    }  # fmt: skip
    adapter = read({"x.oft_R.weight": random(2, 3)}, config=options)
    assert isinstance(adapter, OftV2)
    assert (adapter.coft_eps, adapter.terms) == (6e-5, 5)


def test_names_in_memory_are_known_too() -> None:
    for key in ("x.oft_R.default.weight", "x.oft_R.weight"):
        assert isinstance(read({key: random(2, 3)}), OftV2)
    assert isinstance(read({"x.oft_r.default": random(2, 3, 3)}), PeftOutputOft)
    in_memory = {"x.oft_r.default": random(2, 3, 3), "x.oft_s.default": random(8, 1)}
    assert isinstance(read(in_memory), PeftInputOft)


@everywhere
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
@pytest.mark.parametrize("count", [2, 3], ids=["even", "cropped"])
def test_peft_to_0_13_turns_the_outputs_by_its_formula(
    case: LayerCase, count: int, shared: bool
) -> None:
    size = math.ceil(8 / count)
    blocks = random(1 if shared else count, size, size)
    skew = (blocks - blocks.mT) / 2
    rotation = cayley_matrix(-skew).expand(count, -1, -1)
    cropped = blocks_of(rotation)[:8, :8]
    expected = weight_effect(case, rotated_rows(case.weight, cropped.T))
    require_effect(case, read({"x.oft_r": blocks}), expected)


@everywhere
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
def test_peft_0_14_turns_the_inputs_by_its_formula(case: LayerCase, shared: bool) -> None:
    count = case.weight[0].numel() // 3
    blocks, lengths = random(1 if shared else count, 3, 3), random(8, 1)
    rotation = blocks_of(cayley_matrix(-(blocks - blocks.mT) / 2).expand(count, -1, -1))
    turned = rotated_columns(case.weight, rotation.T) * lengths.reshape(
        8, *[1] * (case.weight.ndim - 1)
    )
    adapter = read({"x.oft_r": blocks, "x.oft_s": lengths})
    require_effect(case, adapter, weight_effect(case, turned))


def test_coft_of_old_peft_shrinks_the_blocks() -> None:
    blocks = random(2, 4, 4)
    adapter = read({"x.oft_r": blocks}, config={"peft_type": "OFT", "coft": True, "eps": 0.9})
    norms = torch.linalg.vector_norm(blocks, dim=(1, 2), keepdim=True)
    assert (norms > 0.9 / 2**0.5).all()
    small = PeftOutputOft(blocks * 0.9 / 2**0.5 / norms)
    weight = named("linear").weight
    torch.testing.assert_close(adapter.delta_weight(weight), small.delta_weight(weight))


# OneTrainer and its forks


def skew_from(vectors: Tensor) -> Tensor:
    """Three numbers are the upper triangle of a block of 3."""
    skew = torch.zeros(vectors.shape[0], 3, 3, dtype=torch.float64)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = vectors.T
    return skew - skew.mT


def onetrainer_weight(weight: Tensor, vectors: Tensor, *, scaled: bool) -> Tensor:
    skew = skew_from(vectors) / (2 * math.sqrt(2) if scaled else 1)
    powers = [torch.linalg.matrix_power(skew, n) for n in range(5)]
    rotation = powers[0] + 2 * powers[1] + 2 * powers[2] + 2 * powers[3] + powers[4]
    whole = blocks_of(rotation)
    return rotated_columns(weight, whole.T if weight.ndim == 2 else whole)


@everywhere
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_onetrainers_oft_turns_by_its_formula(case: LayerCase, scaled: bool) -> None:
    vectors = random(case.weight[0].numel() // 3, 3)
    file = {"lora_unet_x.oft_R.weight": vectors}
    if scaled:
        file["lora_unet_x.oft_R.scaled_oft"] = torch.tensor(True)
    adapter = read(file, {"ot_branch": "master"})
    turned = onetrainer_weight(case.weight, vectors, scaled=scaled)
    require_effect(case, adapter, weight_effect(case, turned))


FACTOR, NORM = random(8), random(8, 1).abs() + 2


@pytest.mark.parametrize("layer", ["linear", "conv2d 1x1", "conv2d 3x5"])
@pytest.mark.parametrize(
    ("tensors", "factor"),
    [
        ({"dora_scale": FACTOR[:, None] * NORM, "initial_norm": NORM}, FACTOR),
        ({"dora_multiplier": FACTOR}, FACTOR),
        ({"dora_log_multiplier": FACTOR}, FACTOR.exp()),
    ],
    ids=["scale", "multiplier", "log multiplier"],
)
def test_dora_oft_stretches_the_turned_rows(
    layer: str, tensors: dict[str, Tensor], factor: Tensor
) -> None:
    case = named(layer)
    vectors = random(case.weight[0].numel() // 3, 3)
    marks = {"alpha": 3.0, "oft_block_size_metadata": 3.0, "scaled_oft_metadata": 1.0}
    file = {"oft_R.weight": vectors, **tensors, **{k: torch.tensor(v) for k, v in marks.items()}}
    adapter = read({f"x.{key}": value for key, value in file.items()})
    turned = onetrainer_weight(case.weight, vectors, scaled=True)
    turned = turned * factor.reshape(8, *[1] * (turned.ndim - 1))
    require_effect(case, adapter, weight_effect(case, turned))


def test_a_row_without_length_is_not_stretched() -> None:
    norm = random(8, 1).abs() + 2
    norm[3] = 0
    scale = norm * 2
    adapter = OftV2(random(2, 3), dora_scale=scale, initial_norm=norm)
    gain = adapter.gain((8, 6))
    assert gain is not None
    assert gain.tolist() == [2, 2, 2, 1, 2, 2, 2, 2]


def test_coft_of_the_forks_is_read_from_their_marks() -> None:
    def mark(name: str, value: float) -> dict[str, Tensor]:
        return {f"x.{name}": torch.tensor(value)}

    file = {"x.oft_R.weight": random(2, 3)} | mark("oft_coft_metadata", 1.0)
    assert read(file).coft_eps == 6e-5
    assert read(file | mark("coft_eps_metadata", 0.5)).coft_eps == 0.5
    assert read(file | mark("oft_coft_metadata", 0.0)).coft_eps is None


# What cannot be decided


def bound_to(file: dict[str, Tensor], shape: tuple[int, ...], **metadata: str) -> list[str]:
    parsed = parse_tensors(file, metadata, "style.safetensors").as_trained()
    weight = "diffusion_model.x.weight"
    bind(parsed, KeyMap([("x", Target(weight))], {weight: shape}))
    return list(parsed.notes)


def test_vectors_on_a_convolution_are_refused_where_nothing_tells_the_tool() -> None:
    file = {"x.oft_R.weight": random(6, 3)}
    with pytest.raises(
        UndecidedError, match=r"style\.safetensors: x: oft_R on a convolution .* adapter_config"
    ):
        bound_to(file, (8, 6, 1, 3))
    bound_to(file, (8, 6, 1, 3), ot_branch="master")
    bound_to(file | {"x.oft_R.scaled_oft": torch.tensor(True)}, (8, 6, 1, 3))
    bound_to(file, (8, 6, 1, 3), lora_adapter_metadata="{}")


def test_on_a_linear_layer_only_the_form_of_the_series_is_assumed() -> None:
    (note,) = bound_to({"x.oft_R.weight": random(2, 3)}, (8, 6))
    assert "series of 5 terms" in note
    assert bound_to({"x.oft_R.weight": random(2, 3)}, (8, 6), ot_branch="master") == []


def test_magnitudes_without_their_norm_are_refused() -> None:
    file = {"x.oft_R.weight": random(2, 3), "x.dora_scale": random(8, 1)}
    with pytest.raises(UndecidedError, match="needs initial_norm"):
        bound_to(file, (8, 6))


# Shapes


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (DiagOft(random(2, 3, 3)), "2 blocks of 3 rotate 6 outputs, the weight has 8"),
        (DiagOft(random(2, 4, 4), random(6, 1)), "6 rows are stretched, the weight has 8"),
        (PeftOutputOft(random(2, 3, 3)), "2 blocks of 3 do not split 8 outputs"),
        (PeftOutputOft(random(1, 9, 9)), "1 blocks of 9 do not split 8 outputs"),
        (PeftOutputOft(random(1, 0, 0)), "1 blocks of 0 do not split 8 outputs"),
        (PeftOutputOft(random(0, 4, 4)), "0 blocks of 4 do not split 8 outputs"),
        (SplitOft(random(1, 8, 8), random(1, 0, 0)), r"8 \+ 0 outputs, the weight has 8"),
        (PeftInputOft(random(1, 0, 0), random(8, 1)), "1 blocks of 0 rotate 0 inputs"),
        (PeftInputOft(random(2, 4, 4), random(8, 1)), "rotate 8 inputs, the weight has 6"),
        (OftV2(random(3, 3)), "3 blocks of 3 rotate 9 inputs, the weight has 6"),
        (OftV2(random(1, 6)), "1 blocks of 4 rotate 4 inputs, the weight has 6"),
        (OftV2(random(2, 4)), "4 numbers are no upper triangle"),
    ],
)
def test_blocks_that_do_not_fit_are_named(adapter: Adapter, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        adapter.delta_weight(named("linear").weight)


def test_a_norm_has_no_side_that_could_turn() -> None:
    with pytest.raises(ShapeError, match=r"needs a matrix or a kernel, the weight is \[8\]"):
        DiagOft(random(2, 4, 4)).delta_weight(torch.ones(8))


def test_a_start_needs_blocks_that_can_turn() -> None:
    layer = named("linear").layer
    with pytest.raises(ShapeError, match=r"8 would be split into blocks of 1, .* raise the rank"):
        DiagOft.initial(layer, InitialConfig(rank=1), torch.Generator())
    with pytest.raises(ShapeError, match="6 would be split into blocks of 1"):
        OftV2.initial(layer, InitialConfig(rank=1), torch.Generator())


# The matrices


def test_cayleys_rotation_is_orthogonal() -> None:
    skew = skew_of(random(3, 5, 5))
    rotation = torch.eye(5, dtype=torch.float64) + cayley(skew)
    torch.testing.assert_close(rotation, cayley_matrix(skew))
    identity = torch.eye(5, dtype=torch.float64).expand(3, 5, 5)
    torch.testing.assert_close(rotation @ rotation.mT, identity)
    torch.testing.assert_close(identity + cayley(-skew), rotation.mT)


def test_a_small_rotation_keeps_its_digits_in_float32() -> None:
    skew = skew_of(random(2, 4, 4)) * 1e-6
    exact = cayley(skew)
    assert (cayley(skew.float()) - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 30])
def test_the_series_comes_near_to_cayleys_rotation(terms: int) -> None:
    skew = skew_of(random(2, 4, 4)) / 20
    error = (cayley_neumann(skew, terms) - cayley(skew)).norm()
    assert error <= {1: 1, 2: 0.2, 3: 0.05, 4: 0.05, 5: 0.02, 30: 1e-12}[terms] * 2


# Computed once


class Counter(TorchDispatchMode):
    """Counts what only the making of a rotation calls."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        del types
        name = function.__name__
        self.made += any(part in name for part in ("solve", "inv", "triu_indices"))
        return function(*args, **(kwargs or {}))


ROTATIONS = [
    pytest.param(case, layer, id=f"{case.name} on {layer.name}")
    for case in ADAPTER_CASES
    for layer in case.layers()
    if isinstance(case.make(layer), Rotation)
]


@pytest.mark.parametrize(("case", "layer"), ROTATIONS)
def test_a_rotation_is_made_once_and_not_at_every_call(case: AdapterCase, layer: LayerCase) -> None:
    adapter = case.make(layer)
    with Counter() as counter:
        ready = adapter.prepared(shapes_only(layer))
        made = counter.made
        for _ in range(3):
            hooked_output(layer.x, layer.layer, [Placed(ready, 0.5)])
        assert made > 0
        assert counter.made == made
        hooked_output(layer.x, layer.layer, [Placed(adapter, 0.5)])
        assert counter.made == 2 * made


@pytest.mark.parametrize("size", [96, 160, 320])
@pytest.mark.parametrize("threads", [1, 2])
def test_large_blocks_turn_without_stretching(size: int, threads: int) -> None:
    # On two threads PyTorch factorised such a stack wrong: kohya's OFT has blocks of this size.
    torch.set_num_threads(threads)
    blocks = torch.randn(4, size, size, dtype=torch.float64) * 0.3 / size**0.5
    rotation = cayley(blocks - blocks.mT) + torch.eye(size)
    torch.testing.assert_close(
        rotation.mT @ rotation, torch.eye(size, dtype=torch.float64).expand(4, size, size)
    )
