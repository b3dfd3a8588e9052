"""The limit of norms: what is above it comes down to it, by the factors that make it."""

import pytest
import torch
from torch import Tensor

from anyadapter.algorithms.adapters.dora import Dora
from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.training.max_norm import limit_norms, norm_of
from anyadapter.algorithms.training.methods import METHODS
from anyadapter.algorithms.training.trainable import TrainableAdapter, TrainableNetwork
from layer_cases import LayerCase
from training_cases import CONFIGS, FORMS, LAYERS, Trained, linear, trained

PRODUCTS = [
    name
    for name, config in FORMS.items()
    if not config.method.startswith(("OFT", "Diag", "BOFT", "GLoRA", "(IA)", "T-LoRA"))
]


def delta(one: Trained) -> Tensor:
    """Returns the whole change of the weight."""
    adapter = one.adapter.adapter()
    adapter = adapter.inner if isinstance(adapter, Dora) else adapter
    change = adapter.delta_weight(one.case.weight)
    assert change is not None
    return change


def on(name: str, case: LayerCase) -> Trained | None:
    one = trained(FORMS[name], case)
    return None if one is None else one.fill()


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_change_above_the_limit_comes_down_to_it(name: str, case: LayerCase) -> None:
    one = on(name, case)
    if one is None:
        assert "LierLa" in name or case.layer.kind.endswith("norm")
        return
    before = delta(one)
    limit = float(before.norm()) / 3
    assert norm_of(one.adapter.current()) > limit
    limit_norms(one.network, limit)
    assert norm_of(one.adapter.current()) == pytest.approx(limit, rel=1e-9)
    torch.testing.assert_close(delta(one), before / 3)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_change_below_the_limit_stays(name: str) -> None:
    one = on(name, LAYERS[0])
    assert one is not None
    before = {field: tensor.clone() for field, tensor in one.adapter.tensors().items()}
    norm = float(delta(one).norm())
    limit_norms(one.network, norm * 1.5)
    assert norm_of(one.adapter.current()) == pytest.approx(norm, rel=1e-9)
    for field, tensor in one.adapter.tensors().items():
        assert torch.equal(tensor, before[field])


@pytest.mark.parametrize("name", ["OFT (kohya)", "Diag-OFT, limited", "BOFT, rescaled"])
def test_rotations_are_limited_by_their_blocks(name: str) -> None:
    one = on(name, LAYERS[0])
    assert one is not None
    blocks = one.adapter.tensors()["oft_blocks"].detach().clone()
    norm = float(blocks.norm())
    limit_norms(one.network, norm / 2)
    assert norm_of(one.adapter.current()) == pytest.approx(norm / 2)
    torch.testing.assert_close(one.adapter.tensors()["oft_blocks"], blocks / 2)


@pytest.mark.parametrize("name", ["GLoRA", "(IA)^3", "(IA)^3 on inputs"])
def test_methods_that_read_the_weight_are_measured_on_rows_of_length_1(name: str) -> None:
    one = on(name, LAYERS[0])
    assert one is not None
    before = delta(one)
    norm = norm_of(one.adapter.current())
    limit_norms(one.network, norm / 4)
    assert norm_of(one.adapter.current()) == pytest.approx(norm / 4)
    torch.testing.assert_close(delta(one), before / 4)


@pytest.mark.parametrize("name", ["T-LoRA", "T-LoRA, random start"])
def test_t_lora_goes_back_towards_its_start(name: str) -> None:
    one = on(name, LAYERS[0])
    assert one is not None
    before = delta(one)
    norm = float(before.norm())
    limit_norms(one.network, norm / 3)
    assert float(delta(one).norm()) <= norm / 3
    assert float(delta(one).norm()) == pytest.approx(norm / 3, rel=1e-5)
    assert torch.cosine_similarity(delta(one).flatten(), before.flatten(), 0) > 0.9


def test_the_first_factor_of_lora_fa_stays() -> None:
    one = linear(CONFIGS["LoRA-FA"]).fill()
    down = one.adapter.tensors()["down"].clone()
    limit_norms(one.network, 0.1)
    assert torch.equal(one.adapter.tensors()["down"], down)


def test_a_ratio_in_the_parameters_stays_right() -> None:
    config, case = CONFIGS["LoRA+"], LAYERS[0]
    start = METHODS["LoRA+"].start(case.layer, config, torch.Generator().manual_seed(0))
    assert start is not None
    adapter = TrainableAdapter(start, config, dtype=torch.float64, reparametrized=True)
    network = TrainableNetwork({"a": adapter})
    one = Trained(config, case, network, torch.Generator()).fill()
    before = delta(one)
    limit_norms(network, float(before.norm()) / 2)
    torch.testing.assert_close(delta(one), before / 2)


def test_both_factors_shrink_alike_and_each_layer_by_its_own_norm() -> None:
    small, large = linear(CONFIGS["LoRA+"]), linear(CONFIGS["LoRA+"]).fill()
    tensors = {field: tensor.detach().clone() for field, tensor in large.adapter.tensors().items()}
    norm = norm_of(large.adapter.current())
    network = TrainableNetwork({"small": small.adapter, "large": large.adapter})
    limit_norms(network, norm / 4)
    assert norm_of(large.adapter.current()) == pytest.approx(norm / 4)
    assert norm_of(small.adapter.current()) == 0
    for field, tensor in large.adapter.tensors().items():
        torch.testing.assert_close(tensor, tensors[field] / 2)


def test_nothing_to_limit_and_no_limit() -> None:
    limit_norms(TrainableNetwork({}), 1.0)
    with pytest.raises(TrainingError, match="set it above 0"):
        limit_norms(TrainableNetwork({}), 0.0)
