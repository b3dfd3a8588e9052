"""Adapters on layers whose weight is quantised: exact by hooks, and what patches make of them."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn import functional as F

import quantised_layers
from adapter_cases import ADAPTER_CASES, AdapterCase
from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.adapters.glora_peft import GloraPeft
from anyadapter.algorithms.adapters.hira import Hira, HiraEmbedding
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.adapters.miss import MissBat
from anyadapter.algorithms.binding import Bound
from anyadapter.algorithms.errors import UnsupportedLayerError
from anyadapter.algorithms.keymap import Target
from anyadapter.algorithms.layers import Rows
from anyadapter.algorithms.strength import Dial, Placed, merged_bias, merged_weight
from anyadapter.nodes.host import layers
from anyadapter.nodes.host.baking import bake
from anyadapter.nodes.host.injections import add_hooks, can_hook
from anyadapter.nodes.host.layers import layer_of, shapes_of
from anyadapter.nodes.host.patches import add_patches
from anyadapter.nodes.host.weights import read_weights
from layer_cases import LayerCase
from layer_cases import layer_of as described
from quantised_layers import INPUTS, NF4, OUTPUTS, QUANTISED_CASES, QuantisedCase

CPU = torch.device("cpu")
STRENGTH = 0.7
X = torch.randn(2, 7, INPUTS, generator=torch.Generator().manual_seed(1))
LINEAR = [
    case for case in ADAPTER_CASES if any(one.layer.kind == "linear" for one in case.layers())
]
FEW = ("lora", "dora on outputs", "dora on inputs", "glora", "oft v2", "ia3 on inputs", "hira")
THOROUGH = ("float8_e4m3fn", "scaled fp8", "float8_e4m3fn with scales", "gguf Q8_0", "nf4")
BY_ELEMENT = (Hira, HiraEmbedding, GloraPeft, MissBat)
"""They multiply numbers of the weight one by one, which nothing but the weight can stand for: it is
kept, as far as there is memory for it."""
QUANTISED = pytest.mark.parametrize("quantised", QUANTISED_CASES, ids=lambda case: case.name)


class Model(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Base:
    """A model of one quantised layer, and the layer that it stands for."""

    def __init__(self, quantised: QuantisedCase) -> None:
        module, self.numbers, self.bias = quantised.module()
        self.patcher = ModelPatcher(Model(module), CPU, CPU)
        self.module = module
        own = layer_of(module)
        assert own is not None
        with own.lend_weight(X) if own.lend_weight else nullcontext() as weight:
            self.is_lent = weight is not None
        whole = nn.Linear(INPUTS, OUTPUTS).double().requires_grad_(False)
        whole.weight.copy_(self.numbers)
        whole.bias.copy_(self.bias)
        self.case = LayerCase("linear", whole, described(whole), X.double())

    def merged(self, *placed: Placed) -> Tensor:
        """What the layer gives with changed numbers, in float64."""
        weight = merged_weight(self.numbers, placed)
        return F.linear(X.double(), weight, merged_bias(self.bias, OUTPUTS, placed))

    def hooked(self, *bound: Bound) -> ModelPatcher:
        clone = self.patcher.clone()
        add_hooks(clone, bound, Dial(STRENGTH))
        return clone


@cache
def base_of(quantised: QuantisedCase) -> Base:
    return Base(quantised)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Lets the models go before the interpreter ends: the host's patchers need it to."""
    yield
    base_of.cache_clear()


@pytest.fixture(autouse=True)
def bitsandbytes() -> Iterator[None]:
    with quantised_layers.bitsandbytes_loaded():
        yield


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modules that were asked for their numbers."""
    found: list[Any] = []
    original = layers._numbers

    def counted(module: Any, *where: Any) -> Tensor:
        found.append(module)
        return original(module, *where)

    monkeypatch.setattr(layers, "_numbers", counted)
    return found


def run(patcher: ModelPatcher, x: Tensor = X) -> Tensor:
    """Loads a patcher and runs it as the host does."""
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
        return patcher.model(x)


def bound(adapter: Adapter, rows: Rows | None = None) -> Bound:
    return Bound("layer", Target("layer.weight", rows), adapter)


def off_by(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def bytes_of(module: nn.Module) -> list[Tensor]:
    """What a layer keeps, also inside of a tensor of a class of its own."""
    found: list[Tensor] = []
    for tensor in module.parameters():
        names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
        parts = [getattr(tensor, name) for name in names] or [tensor.as_subclass(Tensor)]
        found += [part.detach().flatten().contiguous().view(torch.uint8).clone() for part in parts]
    return found


def pairs() -> Iterator[Any]:
    """Every method on one layer of each kind, and a few methods on all the others."""
    for quantised in QUANTISED_CASES:
        for method in LINEAR:
            if quantised.name in THOROUGH or (method.name in FEW and quantised.exact):
                yield pytest.param(quantised, method, id=f"{quantised.name}, {method.name}")


@pytest.mark.parametrize(("quantised", "method"), [*pairs()])
def test_a_hook_is_the_method_on_the_dequantised_weight(
    quantised: QuantisedCase, method: AdapterCase, reads: list[Any]
) -> None:
    base = base_of(quantised)
    adapter = method.on(base.case)
    before = bytes_of(base.module)
    patcher = base.hooked(bound(adapter.to("cpu", torch.float32)))
    for _ in range(2):
        found = run(patcher)
    assert off_by(found, base.merged(Placed(adapter, STRENGTH))) < 2e-6
    lent = isinstance(adapter, BY_ELEMENT) and not base.is_lent
    assert len(reads) == int(adapter.prepares_from_weight or lent)
    assert all(map(torch.equal, before, bytes_of(base.module)))


@pytest.mark.parametrize(
    "quantised", [case for case in QUANTISED_CASES if not case.exact], ids=lambda case: case.name
)
@pytest.mark.parametrize(
    "method", [case for case in LINEAR if case.name in FEW], ids=lambda case: case.name
)
def test_a_layer_that_rounds_its_inputs_goes_on_rounding_them(
    quantised: QuantisedCase, method: AdapterCase
) -> None:
    # What is added beside the layer is exact; what runs through it once more is rounded once more.
    base = base_of(quantised)
    adapter = method.on(base.case)
    found = run(base.hooked(bound(adapter.to("cpu", torch.float32))))
    own = off_by(run(base.patcher.clone()), base.merged())
    assert off_by(found, base.merged(Placed(adapter, STRENGTH))) < 2.5 * own
    if not adapter.needs_weight:
        added = found - run(base.patcher.clone())
        assert off_by(added, base.merged(Placed(adapter, STRENGTH)) - base.merged()) < 2e-5


@QUANTISED
def test_half_precision_stays_near(quantised: QuantisedCase) -> None:
    if not quantised.exact or quantised.name == "mixed precision":
        pytest.skip("it rounds its inputs, or takes none in another dtype")
    base = base_of(quantised)
    for method in LINEAR:
        if method.name in FEW:
            adapter = method.on(base.case)
            patcher = base.hooked(bound(adapter.to("cpu", torch.float32)))
            found = run(patcher, X.bfloat16()).double()
            assert off_by(found, base.merged(Placed(adapter, STRENGTH))) < 0.02


@QUANTISED
def test_parts_of_a_fused_weight_are_read_in_one_go(
    quantised: QuantisedCase, reads: list[Any]
) -> None:
    # Query, key and value of a file made the layer dequantise its weight three times.
    base = base_of(quantised)
    parts = [Rows(0, 3), Rows(3, 4), Rows(7, 1)]
    adapters = [dora(rows.length) for rows in parts]
    found = run(base.hooked(*map(bound, adapters, parts)))
    assert len(reads) == 1
    placed = [Placed(*each) for each in zip(adapters, [STRENGTH] * 3, parts, strict=True)]
    if quantised.exact:
        assert off_by(found, base.merged(*placed)) < 2e-6


def dora(outputs: int = OUTPUTS) -> Dora:
    generator = torch.Generator().manual_seed(outputs)
    up, down = (torch.randn(size, generator=generator) for size in ((outputs, 3), (3, INPUTS)))
    return Dora(Lora(up, down), dora_scale=torch.rand(outputs, 1, generator=generator) + 1)


def test_without_memory_for_it_a_weight_is_read_at_each_call(reads: list[Any]) -> None:
    base = base_of(QUANTISED_CASES[0])
    (hira,) = (case.on(base.case) for case in LINEAR if case.name == "hira")
    clone = base.patcher.clone()
    add_hooks(clone, [bound(hira.to("cpu", torch.float32))], Dial(STRENGTH), 0)
    x = X.bfloat16()
    for _ in range(3):
        run(clone, x)
    assert len(reads) == 3


@pytest.mark.parametrize("quantised", quantised_layers.OF_THE_HOST, ids=lambda case: case.name)
def test_what_another_node_patches_on_an_offloaded_layer_counts(quantised: QuantisedCase) -> None:
    base = Base(quantised)
    clone = base.patcher.clone()
    change = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(5)) * 0.1
    clone.add_patches({"layer.weight": ("diff", (change,))})
    hooks = clone.clone()
    add_hooks(hooks, [bound(dora())], Dial(STRENGTH))
    with torch.inference_mode():
        clone.load(CPU, lowvram_model_memory=1)
        assert base.module.weight_function
        numbers = (clone.model(torch.eye(INPUTS)) - base.bias.float()).T
        clone.detach()
        hooks.load(CPU, lowvram_model_memory=1)
        hooks.inject_model()
        found = hooks.model(X)
        hooks.detach()
    merged = merged_weight(numbers.double(), [Placed(dora(), STRENGTH)])
    assert off_by(numbers, base.numbers + change) < 0.2
    assert off_by(found, F.linear(X.double(), merged, base.bias)) < 4e-6


@QUANTISED
def test_a_packed_weight_has_the_shape_of_its_layer(quantised: QuantisedCase) -> None:
    base = base_of(quantised)
    shapes = shapes_of(base.patcher)
    assert shapes["layer.weight"] == (OUTPUTS, INPUTS)
    assert shapes["layer.bias"] == (OUTPUTS,)
    assert can_hook(base.patcher, bound(dora()))


def test_to_read_a_weight_leaves_the_dtype_that_its_layer_computes_in() -> None:
    # Of ComfyUI 0.3.75: a DoRA read in float32, and then the layer refused what is in bfloat16.
    module, *_ = quantised_layers.of_the_host_in(torch.bfloat16).module()
    layer = layer_of(module)
    assert layer is not None
    x = X.bfloat16()
    with torch.inference_mode():
        before = module(x)
        layer.weight(torch.empty(0))
        assert torch.equal(module(x), before)


def test_a_weight_that_the_host_pages_in_is_copied_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # ComfyUI 0.28 keeps it on the device until it is told that it was used.
    module = comfy.ops.manual_cast.Linear(INPUTS, OUTPUTS)
    module._v = object()
    held = torch.ones(OUTPUTS, INPUTS)
    given_back: list[Any] = []
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lambda *_, **__: (held, None, "stream"))
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *parts: given_back.append(parts))
    layer = layer_of(module)
    assert layer is not None
    weight = layer.weight(torch.empty(0))
    held.zero_()
    assert torch.equal(weight, torch.ones(OUTPUTS, INPUTS))
    assert [parts[-1] for parts in given_back] == ["stream"]


def test_what_is_patched_on_a_bias_that_is_paged_in_counts() -> None:
    module = comfy.ops.manual_cast.Linear(INPUTS, OUTPUTS)
    nn.init.ones_(module.bias)
    module.bias_lowvram_function = lambda bias: bias + 1
    layer = layer_of(module)
    assert layer is not None
    assert torch.equal(layer.bias(torch.empty(0)), torch.full((OUTPUTS,), 2.0))


def test_a_layer_that_multiplies_in_fp8_does_so_with_adapters_too() -> None:
    layer = layer_of(comfy.ops.fp8_ops.Linear(INPUTS, OUTPUTS))
    assert layer is not None
    assert layer.lend_weight is None


def test_four_bits_without_their_module_are_refused_for_methods_that_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = base_of(NF4)
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional")
    plain = dora().inner
    found = run(base.hooked(bound(plain)))
    assert off_by(found, base.merged(Placed(plain, STRENGTH))) < 2e-6
    with pytest.raises(
        UnsupportedLayerError, match=r"^LoRA with DoRA on layer: .*4 bits by bitsandbytes"
    ):
        run(base.hooked(bound(dora())))


class Coded(comfy.ops.manual_cast.Linear):
    """As packs write it that keep a weight in int8 or fp8: a layer of the host, a scale beside."""

    def keep(self, dtype: torch.dtype, largest: float) -> "Coded":
        whole = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(4))
        self.weight_scale = whole.abs().max() / largest
        codes = whole / self.weight_scale
        codes = (codes if dtype.is_floating_point else codes.round()).to(dtype)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(OUTPUTS), requires_grad=False)
        return self

    def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.weight_scale, self.bias)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.int8, 127), (torch.float8_e4m3fn, 448)])
def test_codes_of_another_pack_are_not_taken_for_the_weight(
    dtype: torch.dtype, largest: float
) -> None:
    module = Coded(INPUTS, OUTPUTS).keep(dtype, largest)
    base = ModelPatcher(Model(module), CPU, CPU)
    assert read_weights(base).read("layer.weight") is None
    layer = layer_of(module)
    assert layer is not None
    assert layer.lend_weight is None
    with pytest.raises(UnsupportedLayerError, match="quantised in a way that is unknown here"):
        layer.weight(X)
    with pytest.raises(UnsupportedLayerError, match=r"1 weight .* layer.weight, .*Use mode hook"):
        add_patches(base.clone(), [bound(dora())], STRENGTH)
    plain, hooked = dora().inner, base.clone()
    before = run(base, X)
    add_hooks(hooked, [bound(plain)], Dial(STRENGTH))
    with pytest.raises(UnsupportedLayerError, match="cannot patch the weights of layer"):
        bake(hooked.clone())
    change = plain.delta_weight(torch.empty(OUTPUTS, INPUTS)) * STRENGTH
    assert off_by(run(hooked, X), before + F.linear(X, change)) < 2e-6
    module.weight_scale = float(module.weight_scale)
    assert read_weights(base).read("layer.weight") is None


@pytest.mark.parametrize("quantised", quantised_layers.OF_THE_HOST, ids=lambda case: case.name)
def test_a_patch_is_requantised_by_the_host_and_taken_off_again(quantised: QuantisedCase) -> None:
    base = Base(quantised)
    before = bytes_of(base.module)
    placed = Placed(dora(), STRENGTH)
    clone = base.patcher.clone()
    add_patches(clone, [bound(dora())], STRENGTH)
    with torch.inference_mode():
        clone.patch_model(CPU)
        numbers = layer_of(base.module).weight(torch.empty(0))
        clone.unpatch_model(CPU)
    expected = merged_weight(base.numbers, [placed])
    lost = off_by(numbers, expected)
    assert 1e-3 < lost < (0.25 if "4" in quantised.name else 0.1)
    assert all(map(torch.equal, before, bytes_of(base.module)))


def test_patches_on_gguf_stay_beside_the_weight() -> None:
    (quantised,) = (case for case in QUANTISED_CASES if case.name == "gguf Q8_0")
    base = Base(quantised)
    clone = quantised_layers.GgufPatcher(base.patcher.model, CPU, CPU)
    add_patches(clone, [bound(dora(3), Rows(2, 3))], STRENGTH)
    clone.patch_model(CPU)
    found = base.module(X)
    clone.unpatch_model(CPU)
    assert off_by(found, base.merged(Placed(dora(3), STRENGTH, Rows(2, 3)))) < 2e-6
    assert off_by(base.module(X), base.merged()) < 2e-6


def test_a_patch_of_packed_bytes_is_refused() -> None:
    base = base_of(NF4)
    with pytest.raises(UnsupportedLayerError, match=r"1 weight .* layer.weight, .*Use mode hook"):
        add_patches(base.patcher.clone(), [bound(dora())], STRENGTH)
