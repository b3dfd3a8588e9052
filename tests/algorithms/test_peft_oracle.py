"""PEFT's own forward against ours, from the file that PEFT saves, for every method of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyadapter.algorithms.adapters.base import Adapter
from anyadapter.algorithms.formats.parse import AdapterSet, parse_file
from anyadapter.algorithms.formats.read import read_file
from anyadapter.algorithms.layers import Layer
from anyadapter.algorithms.strength import Placed, merged_bias, merged_weight
from import_peft import peft
from layer_cases import LayerCase, hooked_output, layer_of

# What PEFT says of itself: of its sparse tensors, of every layer norm, and of every bias.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:Adapter .default..*invalid shape"),
]

INPUTS = {
    "odd": (2, 7),
    "first": (2, 7, 12),
    "second": (2, 8),
    "norm": (2, 8),
    "conv": (2, 6, 9, 8),
}


class Model(nn.Module):
    """Layers of unequal sizes; each is called on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.second = nn.Linear(8, 20, bias=False)
        self.odd = nn.Linear(7, 9)
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.table = nn.Embedding(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)))


@dataclass(frozen=True)
class Case:
    """A configuration of PEFT and the layers that it is for."""

    type: str
    config: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ("first", "second")
    name: str = ""

    def __str__(self) -> str:
        return f"{self.type} {self.name}".strip()


LINEAR = ("first", "second")
WITH_CONV = ("first", "second", "conv")
RANK = {"r": 4}
CASES = [
    Case("LORA", {"r": 4, "lora_alpha": 6}, (*WITH_CONV, "table")),
    Case("LORA", {"r": 4, "use_rslora": True}, (*WITH_CONV, "table"), "rank-stabilised"),
    Case("LORA", {"r": 4, "lora_bias": True}, ("first", "conv"), "with bias"),
    Case(
        "LORA",
        {"r": 4, "rank_pattern": {"^first": 2}, "alpha_pattern": {"sec.*": 5, "^conv$": 1}},
        WITH_CONV,
        "patterns",
    ),
    Case("ADALORA", {"init_r": 4, "target_r": 2, "total_step": 9, "lora_alpha": 6}, WITH_CONV),
    Case("VERA", RANK),
    Case("PVERA", RANK),
    Case("FOURIERFT", {"n_frequency": 7, "scaling": 9.0, "random_loc_seed": 3}),
    Case("WAVEFT", {"n_frequency": 70, "scaling": 9.0, "random_loc_seed": 3}),
    Case("WAVEFT", {"n_frequency": 70, "use_idwt": False}, name="without transform"),
    Case("WAVEFT", {"n_frequency": 60}, ("odd",), "odd sides"),
    Case("FOURIERFT", {"n_frequency": 60}, ("odd",), "odd sides"),
    Case("RANDLORA", {"r": 3}, ("odd", "first", "second"), "three sizes"),
    Case("VERA", RANK, ("odd", "first", "second"), "three sizes"),
    Case("HRA", RANK, WITH_CONV),
    Case("HRA", {"r": 4, "apply_GS": True}, WITH_CONV, "orthogonal"),
    Case("MISS", RANK),
    Case("MISS", {"r": 5}, name="with a remainder"),
    Case("MISS", {"r": 4, "init_weights": "bat"}, name="bat"),
    Case("MISS", {"r": 4, "init_weights": "mini", "mini_r": 2}, name="mini"),
    Case("DELORA", RANK),
    Case("RANDLORA", {"r": 3}),
    Case("VBLORA", {"r": 4, "vector_length": 4, "num_vectors": 6, "topk": 3}),
    Case(
        "VBLORA",
        {
            "r": 4,
            "vector_length": 4,
            "num_vectors": 6,
            "topk": 3,
            "save_only_topk_weights": True,
        },
        name="best vectors",
    ),
    Case("C3A", {"block_size": 4}),
    Case("SHIRA", {"r": 2}),
    *[
        Case("ROAD", {"group_size": 4, "variant": variant}, name=variant)
        for variant in ("road_1", "road_2", "road_4")
    ],
    Case("GRALORA", {"r": 4, "gralora_k": 2}),
    Case("GRALORA", {"r": 4, "gralora_k": 2, "hybrid_r": 3, "alpha": 5}, name="hybrid"),
    Case("HIRA", RANK, (*WITH_CONV, "table")),
    Case("DEFT", {"r": 4, "alpha": 3}),
    Case("DEFT", {"r": 4, "decomposition_method": "qr"}, name="orthonormal"),
    Case("DEFT", {"r": 4, "para": True}, name="para"),
    Case("PEANUT", {"r": 4, "scaling": 0.5}),
    Case("PEANUT", {"r": 4, "act_fn": "silu"}, name="silu"),
    Case("OSF", {"effective_rank": 5}),
    Case("LN_TUNING", {}, ("norm",)),
    Case("BEFT", {}, ("first",)),
    Case("UNILORA", {"r": 4, "save_indices": True}),
    Case("SUPERTUNING", {"sparsity": 0.5}),
    Case("SUPERTUNING", {"sparsity": 0.5, "r": 4, "lora_alpha": 6}, name="low rank"),
    Case("GLORA", {"r": 4}, ("second",)),
    *[
        Case("GLORA", {"r": 4, "config_C": "none", "config_A_B": ab, "config_D_E": de}, name=ab)
        for ab, de in (("lora", "vector"), ("vector", "constant"), ("constant", "none"))
    ],
]


@pytest.fixture(params=CASES, ids=str)
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, AdapterSet]:
    """A model with a random adapter of PEFT, and what we read from the file it saves."""
    case: Case = request.param
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[case.type](
        target_modules=list(case.layers), **case.config
    )
    model = peft.get_peft_model(Model(), config).eval()
    trainable = [one for one in model.parameters() if one.requires_grad]
    for parameter in trainable:
        parameter.data = torch.randn(parameter.shape)
    if case.type == "DELORA":
        for name, buffer in model.named_buffers():
            if "delora_w_norm" in name:
                buffer.uniform_(0.5, 2)
    model.save_pretrained(tmp_path)
    parsed = parse_file(read_file(tmp_path / "adapter_model.safetensors")).as_trained()
    return model, parsed


def layer_case(module: nn.Module, name: str) -> LayerCase:
    return LayerCase(name, module, layer_of(module), torch.randn(INPUTS[name]))


def prepared(adapter: Adapter, layer: Layer, weight: Tensor) -> Adapter:
    return adapter.prepared(
        weight if adapter.prepares_from_weight else torch.empty(layer.weight_shape, device="meta")
    )


def relative(result: Tensor, expected: Tensor, base: Tensor) -> float:
    return float((result - expected).norm() / (expected - base).norm())


@torch.no_grad()
def test_hook_and_merge_equal_the_forward_of_peft(trained: tuple[Any, AdapterSet]) -> None:
    model, parsed = trained
    assert not parsed.unclaimed
    first, *others = parsed.notes
    assert "adapter_config.json beside the file" in first
    assert all("the very one" in note for note in others)  # OSF reads the base
    layers = dict(model.base_model.model.named_children())
    for module, adapters in parsed.adapters.items():
        name = module.removeprefix("base_model.model.")
        wrapped = layers[name]
        base = wrapped.get_base_layer()
        if isinstance(base, nn.Embedding):
            tokens = torch.arange(10)
            (adapter,) = adapters
            table = merged_weight(base.weight, [Placed(adapter, 1.0)])
            assert relative(table, wrapped(tokens), base(tokens)) < 1e-5
            continue
        case = layer_case(base, name)
        expected, plain = wrapped(case.x), base(case.x)
        placed = [Placed(adapter, 1.0) for adapter in adapters]
        weight = merged_weight(case.weight, placed)
        merged = case.with_base(weight, merged_bias(case.bias, weight.shape[0], placed))
        assert relative(merged, expected, plain) < 1e-5
        ready = [Placed(prepared(one, case.layer, case.weight), 1.0) for one in adapters]
        hooked = hooked_output(case.x, case.layer, ready)
        assert relative(hooked, expected, plain) < 1e-5
    targets = model.peft_config["default"].target_modules
    assert len(parsed.adapters) == len(targets)


@torch.no_grad()
def test_an_adalora_that_lost_ranks_keeps_the_scale_of_its_first_rank(tmp_path: Path) -> None:
    # Divided by the ranks that are left, it was loaded twice as strong.
    config = peft.AdaLoraConfig(
        target_modules=["first", "conv"], init_r=6, target_r=2, total_step=9, lora_alpha=5
    )
    model = peft.get_peft_model(Model(), config).eval()
    kept = {"first": [True, False, True, True, False, False], "conv": [False] * 6}
    layers = dict(model.base_model.model.named_children())
    for name, mask in kept.items():
        for part in ("lora_A", "lora_B", "lora_E"):
            getattr(layers[name], part)["default"].normal_()
        layers[name].lora_E["default"][~torch.tensor(mask)] = 0
    model.peft_config["default"].rank_pattern = {
        f"{name}.lora_E": mask for name, mask in kept.items()
    }
    model.save_pretrained(tmp_path)
    parsed = parse_file(read_file(tmp_path / "adapter_model.safetensors")).as_trained()
    (_,) = parsed.notes  # that the configuration was read
    assert [adapter.rank for (adapter,) in parsed.adapters.values()] == [0, 3]
    for module, (adapter,) in parsed.adapters.items():
        name = module.removeprefix("base_model.model.")
        base = layers[name].get_base_layer()
        case = layer_case(base, name)
        ready = Placed(prepared(adapter, case.layer, case.weight), 1.0)
        hooked = hooked_output(case.x, case.layer, [ready])
        torch.testing.assert_close(hooked, layers[name](case.x), rtol=1e-5, atol=1e-6)
