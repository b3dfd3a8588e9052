"""Gradients of every method: those of LyCORIS, or of a formula, by both ways of running."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from adapter_cases import ADAPTER_CASES, PEFT_CASES, AdapterCase, random
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.base import InitialConfig
from anyadapter.algorithms.adapters.boft import Boft, butterfly
from anyadapter.algorithms.adapters.diff import Diff
from anyadapter.algorithms.adapters.dora import INNER, Dora
from anyadapter.algorithms.adapters.hadamard import hadamard, hadamard_output
from anyadapter.algorithms.adapters.loha import Loha, LohaTucker
from anyadapter.algorithms.adapters.lokr import Lokr
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.norm import Norm
from anyadapter.algorithms.adapters.oft import DiagOft, SplitOft
from anyadapter.algorithms.strength import Placed
from checking import annotations_unchecked
from kept_bytes import kept_bytes
from layer_cases import LayerCase, layer_of, norm_cases
from oracles import fill, lycoris, read, relative_error

Gradients = dict[str, Tensor]
Run = Callable[[LayerCase, Adapter, Tensor], Tensor]
"""A layer, its adapter and an input -> the output."""


def on_output(case: LayerCase, adapter: Adapter, x: Tensor) -> Tensor:
    """Runs an adapter as a trainer does."""
    assert case.layer.run is not None
    y = case.layer.run(x)
    ready = case.prepared(Placed(adapter, 1.0)).adapter
    return y + ready.delta_output(x, y, case.layer)


def in_weight(case: LayerCase, adapter: Adapter, x: Tensor) -> Tensor:
    """Runs the layer with another weight and bias."""
    change, shift = adapter.delta_weight(case.weight), adapter.delta_bias(case.bias)
    weight = case.weight if change is None else case.weight + change
    if shift is None:
        return case.layer.apply(x, weight, case.bias)
    return case.layer.apply(x, weight, shift if case.bias is None else case.bias + shift)


RUNS: tuple[Run, ...] = (on_output, in_weight)


def gradients(y: Tensor, leaves: Mapping[str, Tensor]) -> Gradients:
    """Returns the gradients of a loss that weighs every number of an output in its own way."""
    found = torch.autograd.grad((y * random(*y.shape)).sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def leaves_of(adapter: Adapter) -> Gradients:
    tensors = adapter.tensors().items()
    found = {name: value for name, value in tensors if value.is_floating_point()}
    return {name: value.detach().clone().requires_grad_() for name, value in found.items()}


def trained(case: LayerCase, adapter: Adapter, run: Run) -> tuple[Tensor, Gradients]:
    """Returns the output, and the gradients of the input `x` and of the tensors of an adapter."""
    x, leaves = case.x.clone().requires_grad_(), leaves_of(adapter)
    y = run(case, adapter.with_tensors(leaves), x)
    return y.detach(), gradients(y, {"x": x} | leaves)


def require_equal(
    case: LayerCase, adapter: Adapter, y: Tensor, expected: Gradients, limit: float = 1e-10
) -> None:
    """Checks both ways of running an adapter against an output and gradients."""
    assert (y - case.module(case.x)).norm() > 0.05 * y.norm()
    for run in RUNS:
        output, found = trained(case, adapter, run)
        assert relative_error(output, y) < limit
        assert found.keys() == expected.keys()
        errors = {name: relative_error(found[name], expected[name]) for name in expected}
        assert max(errors.values()) < limit, errors


# LyCORIS


def sized(name: str, module: nn.Module, *shape: int) -> LayerCase:
    module = module.double().requires_grad_(False)
    return LayerCase(name, module, layer_of(module), random(*shape))


LINEAR = sized("linear", nn.Linear(24, 40), 2, 7, 24)
POINT = sized("conv2d 1x1", nn.Conv2d(24, 40, 1), 2, 24, 4, 5)
KERNEL = sized("conv2d 3x3", nn.Conv2d(24, 40, 3, stride=(2, 1), padding=1), 2, 24, 6, 5)
GROUPS = sized("conv2d, 2 groups", nn.Conv2d(48, 40, 3, padding=1, groups=2), 2, 48, 5, 6)
LAYERS = (LINEAR, POINT, KERNEL, GROUPS)


@dataclass(frozen=True)
class Witness:
    """A module of LyCORIS."""

    kind: type[lycoris.base.LycorisBaseModule]
    settings: Mapping[str, Any]
    layers: tuple[LayerCase, ...] = LAYERS

    def on(self, case: LayerCase) -> nn.Module:
        settings = {"lora_dim": 2, "alpha": 3.0} | dict(self.settings)
        module = self.kind("lycoris_x", case.module, **settings).to(case.x.dtype).eval()
        fill(module)
        if getattr(module, "wd", False):
            lengths = module.dora_scale.data
            lengths.add_(torch.arange(lengths.numel()).view_as(lengths) / 40)
        return module


LORA, LOHA, LOKR = lycoris.locon.LoConModule, lycoris.loha.LohaModule, lycoris.lokr.LokrModule
IN_FACTORS = {"decompose_both": True}
ON_OUTPUTS = {"weight_decompose": True}
ON_INPUTS = {"weight_decompose": True, "wd_on_out": False}
TUCKER, WHOLE = {"use_tucker": True}, {"full_matrix": True}
UNGROUPED = (LINEAR, POINT, KERNEL)
WITNESSES = {
    "LoRA": Witness(LORA, {}),
    "LoRA tucker": Witness(LORA, TUCKER, (KERNEL,)),
    "LoHa": Witness(LOHA, {}),
    "LoHa of high rank": Witness(LOHA, {"lora_dim": 9}),
    "LoHa tucker": Witness(LOHA, TUCKER, (KERNEL, GROUPS)),
    "LoKr": Witness(LOKR, {}),
    "LoKr whole": Witness(LOKR, WHOLE),
    "LoKr of factors": Witness(LOKR, IN_FACTORS),
    "LoKr unbalanced": Witness(LOKR, {"unbalanced_factorization": True, "factor": 2}),
    "LoKr tucker": Witness(LOKR, TUCKER, (KERNEL, GROUPS)),
    "LoKr tucker of factors": Witness(LOKR, TUCKER | IN_FACTORS, (KERNEL,)),
    "DoRA": Witness(LORA, ON_OUTPUTS),
    "DoRA on inputs": Witness(LORA, ON_INPUTS),
    "DoRA of LoRA tucker": Witness(LORA, ON_OUTPUTS | TUCKER, (KERNEL,)),
    "DoRA of LoHa": Witness(LOHA, ON_OUTPUTS),
    "DoRA of LoHa on inputs": Witness(LOHA, ON_INPUTS),
    "DoRA of LoKr": Witness(LOKR, ON_OUTPUTS | IN_FACTORS),
    "DoRA of LoKr on inputs": Witness(LOKR, ON_INPUTS | WHOLE),
    "(IA)^3": Witness(lycoris.ia3.IA3Module, {}),
    # It asks for the inputs of all groups, which its weight does not have.
    "(IA)^3 on inputs": Witness(lycoris.ia3.IA3Module, {"train_on_input": True}, UNGROUPED),
    # The same: its factors have the inputs of all groups.
    "GLoRA": Witness(lycoris.glora.GLoRAModule, {}, UNGROUPED),
    # It has no norms without bias, and no RMS norms.
    "norm": Witness(
        *(lycoris.norms.NormModule, {}),
        tuple(case for case in norm_cases() if case.name in ("layer norm", "group norm")),
    ),
}


def fields_by_ending(adapter: Adapter) -> dict[str, str]:
    """Returns the names of tensors in a file -> those of the fields that hold them."""
    own = {role.suffixes[0].removeprefix("."): role.field for role in adapter.roles}
    if not isinstance(adapter, Dora):
        return own
    inner = fields_by_ending(adapter.inner)
    return own | {ending: INNER + field for ending, field in inner.items()}


def by_lycoris(module: nn.Module, case: LayerCase, fields: Mapping[str, str]) -> Gradients:
    """Returns the gradients of the input and the parameters of a module, by our names."""
    x = case.x.clone().requires_grad_()
    parameters = {fields[name]: value for name, value in module.named_parameters()}
    return gradients(module(x), {"x": x} | parameters)


PAIRS = [
    pytest.param(witness, case, id=f"{name}, {case.name}")
    for name, witness in WITNESSES.items()
    for case in witness.layers
]


@pytest.mark.parametrize(("witness", "case"), PAIRS)
def test_gradients_are_those_of_lycoris(witness: Witness, case: LayerCase) -> None:
    module = witness.on(case)
    state = module.state_dict().items()
    adapter = read({f"lycoris_x.{name}": value.detach() for name, value in state})
    expected = by_lycoris(module, case, fields_by_ending(adapter))
    require_equal(case, adapter, module(case.x).detach(), expected)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_gradients_of_a_full_change_are_those_of_lycoris(case: LayerCase) -> None:
    module = lycoris.full.FullModule("lycoris_x", case.module).double()
    fill(module)
    # Not by its file, which is wrong before it takes the weight off the layer.
    adapter = Diff(module.weight.detach(), module.bias.detach())
    expected = by_lycoris(module, case, {"weight": "diff", "bias": "diff_b"})
    require_equal(case, adapter, module(case.x).detach(), expected)


# Rotations: LyCORIS inverts 1 - Q in float32, whatever it is given, so a formula is the oracle.


def matrices(blocks: Tensor, limit: float | None) -> list[Tensor]:
    """Returns (1 + Q) (1 - Q)^-1 of all blocks, Q limited over all of them (training.md, 1.12)."""
    skew = blocks - blocks.mT
    if limit is not None:
        skew = skew * torch.clamp(limit / (skew.norm() + 1e-8), max=1)  # 1e-8 as all tools have it
    one = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    return [(one + each) @ torch.linalg.inv(one - each) for each in skew.flatten(0, -3)]


def rotated(weight: Tensor, rotation: Tensor, rescale: Tensor | None) -> Tensor:
    turned = (rotation @ weight.flatten(1)).reshape(weight.shape)
    return turned if rescale is None else rescale * turned


def rotated_by_blocks(
    weight: Tensor, blocks: Tensor, limit: float | None, rescale: Tensor | None = None
) -> Tensor:
    return rotated(weight, torch.block_diag(*matrices(blocks, limit)).T, rescale)


def rotated_in_stages(
    weight: Tensor, blocks: Tensor, limit: float | None, rescale: Tensor | None
) -> Tensor:
    stages, count, size, _ = blocks.shape
    each = matrices(blocks, limit)
    rotation = torch.eye(len(weight), dtype=weight.dtype)
    for stage in range(stages):
        half = 2**stage * size // 2
        order = torch.arange(len(weight)).reshape(-1, 2, half).transpose(1, 2).flatten()
        mixing = torch.block_diag(*each[stage * count : (stage + 1) * count])
        rotation = mixing[order.argsort()][:, order.argsort()] @ rotation
    return rotated(weight, rotation, rescale)


def rescale_of(case: LayerCase) -> Tensor:
    outputs, *others = case.layer.weight_shape
    return random(outputs, *[1] * len(others))


Rotated = tuple[Adapter, Callable[[Tensor, Gradients], Tensor]]
"""An adapter, and what its tensors make of a weight."""


def _oft(case: LayerCase, alpha: float, *, rescaled: bool = False) -> Rotated:
    limit = alpha * 40 if alpha else None
    return (
        DiagOft(random(8, 5, 5), rescale_of(case) if rescaled else None, alpha),
        lambda weight, tensors: rotated_by_blocks(
            weight, tensors["oft_blocks"], limit, tensors.get("rescale")
        ),
    )


def _boft(case: LayerCase, alpha: float, *, rescaled: bool = False) -> Rotated:
    limit = alpha * 40 if alpha else None
    return (
        Boft(random(3, 4, 10, 10), rescale_of(case) if rescaled else None, alpha),
        lambda weight, tensors: rotated_in_stages(
            weight, tensors["oft_blocks"], limit, tensors.get("rescale")
        ),
    )


def _kohya(alpha: float) -> Rotated:
    return (
        DiagOft(random(4, 10, 10), alpha=alpha, maker="kohya"),
        lambda weight, tensors: rotated_by_blocks(weight, tensors["oft_blocks"], alpha * 40),
    )


def _in_parts(alpha: float) -> Rotated:
    def turned(weight: Tensor, tensors: Gradients) -> Tensor:
        parts = weight.split([16, 24])
        blocks = tensors["oft_blocks_0"], tensors["oft_blocks_1"]
        return torch.cat(
            [
                rotated_by_blocks(part, some, alpha * len(part))
                for part, some in zip(parts, blocks, strict=True)
            ]
        )

    return SplitOft(random(4, 4, 4), random(4, 6, 6), alpha=alpha), turned


ROTATIONS: dict[str, Callable[[LayerCase], Rotated]] = {
    "OFT": lambda case: _oft(case, 0.0),
    "OFT, limited": lambda case: _oft(case, 0.05),
    "OFT, rescaled": lambda case: _oft(case, 0.05, rescaled=True),
    "BOFT": lambda case: _boft(case, 0.0),
    "BOFT, limited": lambda case: _boft(case, 0.05),
    "BOFT, rescaled": lambda case: _boft(case, 0.05, rescaled=True),
    "kohya's OFT": lambda _: _kohya(0.05),
    "kohya's OFT, within its limit": lambda _: _kohya(10.0),
    "kohya's OFT in parts": lambda _: _in_parts(0.05),
}


@pytest.mark.parametrize("name", ROTATIONS)
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_gradients_of_a_rotation_are_those_of_its_formula(case: LayerCase, name: str) -> None:
    adapter, turned = ROTATIONS[name](case)
    x, leaves = case.x.clone().requires_grad_(), leaves_of(adapter)
    y = case.layer.apply(x, turned(case.weight, leaves), case.bias)
    require_equal(case, adapter, y.detach(), gradients(y, {"x": x} | leaves))


OPTIONS: dict[str, dict[str, Any]] = {
    "free": {},
    "limited and rescaled": {"constraint": 0.05, "rescaled": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", [lycoris.diag_oft.DiagOFTModule, lycoris.boft.ButterflyOFTModule])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_gradients_of_a_rotation_are_those_of_lycoris_in_its_precision(
    case: LayerCase, kind: type[lycoris.base.LycorisBaseModule], options: dict[str, Any]
) -> None:
    single = case.to(torch.float32)
    module = Witness(kind, {"lora_dim": 10} | options).on(single)
    state = module.state_dict().items()
    adapter = read({f"lycoris_x.{name}": value.detach() for name, value in state})
    expected = by_lycoris(module, single, fields_by_ending(adapter))
    require_equal(single, adapter, module(single.x).detach(), expected, limit=1e-5)


# Every method on every layer


SOME = [case for case in ADAPTER_CASES if case not in PEFT_CASES]
OWN = [
    pytest.param(adapter_case, case, id=f"{adapter_case.name} on {case.name}")
    for adapter_case in SOME
    for case in adapter_case.layers()
    if case.name not in ("conv1d", "conv3d", "conv2d, dilation, no bias")  # as the others
]


@pytest.mark.parametrize(("adapter_case", "case"), OWN)
@annotations_unchecked()  # the laws check them on the same adapters and layers
def test_both_ways_have_the_same_gradients(adapter_case: AdapterCase, case: LayerCase) -> None:
    found, expected = (trained(case, adapter_case.on(case), run)[1] for run in RUNS)
    assert_close(found, expected)


# Precision


TOLERANCES = {torch.bfloat16: 0.03, torch.float16: 0.004}
"""Eight units in the last place of each dtype, 2 ** -8 and 2 ** -11."""
WITHOUT_LORA = [
    case
    for case in SOME
    # Whoever trains a LoRA moves it; a replacement is nothing to train.
    if not case.name.startswith(("lora", "dylora", "dora", "tlora", "replacement"))
]


def require_gradients_in_float32(
    adapter_case: AdapterCase, dtype: torch.dtype, *, moved: bool
) -> None:
    """Checks the gradients of float32 parameters where a layer computes in a low dtype."""
    case = adapter_case.layers()[-1]
    low, adapter = case.to(dtype), adapter_case.on(case)
    exact = trained(case, adapter, on_output)[1]
    leaves = {
        name: one.detach().float().requires_grad_() for name, one in leaves_of(adapter).items()
    }
    ready = low.prepared(Placed(adapter.with_tensors(leaves), 1.0)).adapter
    y = low.layer.run(low.x)
    change = (ready.to("cpu", dtype) if moved else ready).delta_output(low.x, y, low.layer)
    assert change.dtype == dtype
    for name, gradient in gradients(y + change, leaves).items():
        assert gradient.dtype == torch.float32
        error = (gradient - exact[name]).norm() / max(exact[name].norm(), 1e-9)
        assert error < TOLERANCES[dtype], name


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("adapter_case", SOME, ids=lambda case: case.name)
@annotations_unchecked()
def test_parameters_in_float32_have_gradients_in_float32(
    adapter_case: AdapterCase, dtype: torch.dtype
) -> None:
    require_gradients_in_float32(adapter_case, dtype, moved=True)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("adapter_case", WITHOUT_LORA, ids=lambda case: case.name)
@annotations_unchecked()
def test_they_need_not_be_moved_to_the_dtype_of_the_input(
    adapter_case: AdapterCase, dtype: torch.dtype
) -> None:
    require_gradients_in_float32(adapter_case, dtype, moved=False)


# LoHa's product


def leaf(*shape: int) -> Tensor:
    return random(*shape).requires_grad_()


def factors(outputs: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return leaf(outputs, 2), leaf(2, columns), leaf(outputs, 3), leaf(3, columns)


SMALL = (
    sized("linear", nn.Linear(6, 4), 2, 3, 6),
    sized("conv2d", nn.Conv2d(2, 4, 3, stride=2, padding=1), 2, 2, 4, 3),
    sized("conv2d, groups", nn.Conv2d(4, 4, (1, 3), dilation=2, groups=2), 1, 4, 3, 6),
    sized("conv2d, reflected", nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), 1, 2, 3, 4),
)


def test_the_product_has_the_gradients_of_its_formula_at_every_order() -> None:
    def product(*given: Tensor) -> Tensor:
        return hadamard(given, (4, 2, 3))

    assert torch.autograd.gradcheck(product, factors(4, 6))
    assert torch.autograd.gradgradcheck(product, factors(4, 6))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@annotations_unchecked()  # hundreds of calls
def test_a_layer_with_the_product_has_the_gradients_of_its_formula(case: LayerCase) -> None:
    columns = case.weight[0].numel()

    def used_twice(x: Tensor, *given: Tensor) -> Tensor:
        y = hadamard_output(x, case.layer, given)
        return y + hadamard_output(2 * x, case.layer, given).square()

    inputs = (case.x.clone().requires_grad_(), *factors(4, columns))
    assert torch.autograd.gradcheck(used_twice, inputs)
    assert torch.autograd.gradgradcheck(used_twice, inputs)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_its_gradients_are_the_same_bits_for_an_input_that_needs_none(case: LayerCase) -> None:
    given = factors(4, case.weight[0].numel())
    weight = hadamard(given, case.weight.shape).detach().requires_grad_()
    by_autograd, x = case.layer.apply(case.x, weight), case.x.clone().requires_grad_()
    seed = random(*by_autograd.shape)
    of_weight = torch.autograd.grad(by_autograd, weight, seed)[0]
    expected = torch.autograd.grad(hadamard(given, case.weight.shape), given, of_weight)
    for inputs in (case.x, x):
        found = torch.autograd.grad(hadamard_output(inputs, case.layer, given), given, seed)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("back", [False, True])
@annotations_unchecked()  # hundreds of calls
def test_stages_have_the_gradients_of_their_formula(back: bool) -> None:
    def through(turns: Tensor, tensor: Tensor) -> Tensor:
        return butterfly(turns, tensor, 1, chunk=1, back=back)

    assert torch.autograd.gradcheck(through, (leaf(3, 4, 2, 2), leaf(2, 8, 3)))


# Memory: training.md, 1.0


MIB = 2**20


WIDE = nn.Linear(1024, 1024).requires_grad_(False)
WIDE_KERNEL = nn.Conv2d(256, 256, 3, padding=1).requires_grad_(False)


def started(method: type[Adapter], module: nn.Module, config: InitialConfig) -> Adapter:
    start = method.initial(layer_of(module), config, torch.Generator().manual_seed(0))
    return start.with_tensors(
        {name: tensor.requires_grad_() for name, tensor in start.tensors().items()}
    )


def kept_on_output(adapter: Adapter, module: nn.Module, *shape: int) -> int:
    """Returns what a training forward keeps besides the input, the output and the parameters."""
    x, layer = torch.randn(shape, requires_grad=True), layer_of(module)
    y = module(x)
    ready = adapter.prepared(torch.empty(layer.weight_shape, device="meta"))
    known = [x, y, *adapter.tensors().values(), *module.parameters()]
    return kept_bytes(lambda: ready.delta_output(x, y, layer), known)


def test_the_product_of_loha_keeps_its_factors_and_no_half() -> None:
    adapter = started(Loha, WIDE, InitialConfig(rank=16))
    parameters = list(adapter.tensors().values())
    w1_a, w1_b, w2_a, w2_b = parameters
    assert kept_bytes(lambda: (w1_a @ w1_b) * (w2_a @ w2_b), parameters) == 8 * MIB
    weight = torch.empty(WIDE.weight.shape, device="meta")
    # The first factor with the scale in it.
    assert kept_bytes(lambda: adapter.delta_weight(weight), parameters) == w1_a.nbytes


@pytest.mark.parametrize(
    ("method", "module", "shape"),
    [
        (Loha, WIDE, (1, 64, 1024)),
        (Loha, WIDE_KERNEL, (1, 256, 8, 8)),
        (LohaTucker, WIDE_KERNEL, (1, 256, 8, 8)),
    ],
)
def test_a_layer_with_loha_keeps_no_weight(
    method: type[Adapter], module: nn.Module, shape: tuple[int, ...]
) -> None:
    adapter = started(method, module, InitialConfig(rank=32))
    factors_bytes = sum(tensor.nbytes for tensor in adapter.tensors().values())
    # In Tucker form the product of a core and a factor, whose kernel is that of the weight.
    bound = 9 * factors_bytes if method is LohaTucker else factors_bytes
    assert kept_on_output(adapter, module, *shape) <= bound < module.weight.nbytes


@pytest.mark.parametrize(
    "config",
    [
        InitialConfig(full_matrix=True, factor=8),
        InitialConfig(rank=4, factor=8),
        InitialConfig(rank=4, decompose_both=True),
    ],
    ids=["whole", "w2 of factors", "both of factors"],
)
def test_lokr_keeps_what_comes_out_of_w2_and_no_weight(config: InitialConfig) -> None:
    adapter = started(Lokr, WIDE, config)
    tokens = 64
    between = tokens * 1024
    parts = 32 if config.decompose_both else 8
    low = 0 if config.full_matrix else tokens * parts * 4
    assert kept_on_output(adapter, WIDE, 1, tokens, 1024) == 4 * (between + low + parts**2)


@pytest.mark.parametrize("method", [DiagOft, Boft])
def test_a_rotation_keeps_the_output_once_and_no_weight(method: type[Adapter]) -> None:
    adapter = started(method, WIDE, InitialConfig(rank=8))
    assert isinstance(adapter, DiagOft | Boft)
    output, blocks = 4 * 64 * 1024, adapter.oft_blocks.nbytes
    assert kept_on_output(adapter, WIDE, 1, 64, 1024) <= output + 4 * blocks
    assert output + 4 * blocks < WIDE.weight.nbytes


# DoRA


def dora(case: LayerCase, *, detached_norm: bool, inputs: bool = False) -> Dora:
    outputs, columns, *kernel = case.layer.weight_shape
    inner = Lora(random(outputs, 4, *[1] * len(kernel)), random(4, columns, *kernel), 2.0)
    shape = (1, columns) if inputs else (outputs, 1)
    scale = random(*shape, *[1] * len(kernel)).abs() + 1
    return Dora(inner, dora_scale=scale, detached_norm=detached_norm)


@pytest.mark.parametrize("inputs", [False, True], ids=["outputs", "inputs"])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_a_detached_norm_is_a_constant_to_the_gradients(case: LayerCase, inputs: bool) -> None:
    adapter = dora(case, detached_norm=True, inputs=inputs)
    x, leaves = case.x.clone().requires_grad_(), leaves_of(adapter)
    up, down, scale = leaves["inner.up"], leaves["inner.down"], leaves["dora_scale"]
    changed = case.weight + 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(case.weight.shape)
    axes = [axis for axis, size in enumerate(scale.shape) if size == 1]
    norm = torch.linalg.vector_norm(changed.detach(), dim=axes, keepdim=True)
    y = case.layer.apply(x, scale * changed / norm, case.bias)
    require_equal(case, adapter, y.detach(), gradients(y, {"x": x} | leaves))


@pytest.mark.parametrize("run", RUNS)
def test_detaching_the_norm_changes_the_gradients_of_the_factors_only(run: Run) -> None:
    y, full = trained(LINEAR, dora(LINEAR, detached_norm=False), run)
    same, detached = trained(LINEAR, dora(LINEAR, detached_norm=True), run)
    assert torch.equal(y, same)
    for name in ("x", "dora_scale"):
        assert torch.equal(full[name], detached[name])
    for name in ("inner.up", "inner.down"):
        assert relative_error(detached[name], full[name]) > 0.01


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("detached_norm", [False, True])
def test_rows_of_zeros_have_gradients(run: Run, detached_norm: bool) -> None:
    # They were NaN, and with them the whole run: some layers start with rows that are zero.
    layer = nn.Linear(24, 40).requires_grad_(False)
    layer.weight[3] = 0
    case = sized("a row of zeros", layer, 2, 24)
    start = dora(case, detached_norm=detached_norm)
    start = replace(start, inner=start.inner.with_tensors({"up": torch.zeros(40, 4).double()}))
    found = trained(case, start, run)[1]
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    assert found["inner.up"][3].any()


@pytest.mark.parametrize("method", [DiagOft, SplitOft, Boft])
def test_a_limited_rotation_has_gradients_at_its_start(method: type[Adapter]) -> None:
    start = method.initial(
        LINEAR.layer, InitialConfig(rank=10, constraint=0.01), torch.Generator()
    ).to("cpu", torch.float64)
    found = trained(LINEAR, start, on_output)[1]
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


def test_a_norm_layer_trains_scale_and_shift() -> None:
    for case in norm_cases():
        start = Norm.initial(case.layer, InitialConfig(), torch.Generator())
        found = trained(case, start.to("cpu", torch.float64), on_output)[1]
        assert found.keys() == ({"x", "w_norm"} | ({"b_norm"} if case.bias is not None else set()))
