"""T-LoRA against LyCORIS, on the weight that it was trained on."""

import pytest
import torch

from anyadapter.algorithms.adapters.tlora import Tlora
from anyadapter.algorithms.errors import ShapeError
from layer_cases import LayerCase
from oracles import SINGLE, lycoris, of_lycoris, only, read, read_all, require_effect

WITHOUT_KERNELS = [case for case in SINGLE if set(case.layer.weight_shape[2:]) <= {1}]
on_each = pytest.mark.parametrize("case", WITHOUT_KERNELS, ids=lambda case: case.name)


@on_each
@pytest.mark.parametrize("rank", [4, 6, 7], ids=["rank 4", "full rank", "more than full rank"])
def test_it_equals_the_forward_of_lycoris(case: LayerCase, rank: int) -> None:
    effect, tensors = of_lycoris(lycoris.tlora.TLoraModule, case, lora_dim=rank, alpha=2.0)
    adapters = read_all(tensors)
    adapter = only(adapters)
    assert isinstance(adapter, Tlora)
    require_effect(case, adapter, effect)
    assert adapters.notes == (
        "Nothing in the file says it, so it was assumed for 1 layer: "
        "that the model is the very one that the file was trained on.",
    )


@on_each
def test_an_untrained_file_changes_nothing(case: LayerCase) -> None:
    made = lycoris.tlora.TLoraModule("lycoris_x", case.module, 1.0, 4, 2.0)
    tensors = {f"x.{key}": tensor.detach() for key, tensor in made.custom_state_dict().items()}
    change = read(tensors).delta_weight(case.weight)
    assert change is not None
    assert change.norm() < 1e-5 * case.weight.norm()


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)], ids=["tall", "wide"])
def test_the_base_is_the_best_approximation_of_its_rank(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    zero = Tlora(torch.zeros(5, shape[1]), torch.zeros(shape[0], 5), torch.zeros(1, 5), 5.0)
    left, lengths, right = torch.linalg.svd(weight.double())
    best = left[:, :5] @ lengths[:5].diag() @ right[:5]
    torch.testing.assert_close(zero.delta_weight(weight), -best.float())


def test_low_precision_keeps_a_small_change_of_a_large_base() -> None:
    # With both products apart, bfloat16 left a fifth of such a change to chance.
    weight = torch.randn(64, 48)
    left, lengths, right = torch.linalg.svd(weight)
    q, p = right[:8] + 0.01 * torch.randn(8, 48), left[:, :8] + 0.01 * torch.randn(64, 8)
    adapter = Tlora(q, p, lengths[:8].unsqueeze(0), 8.0)
    exact = adapter.delta_weight(weight)
    low = adapter.prepared(weight).to("cpu", torch.bfloat16)
    assert low.up is not None
    assert low.down is not None
    assert (low.up.float() @ low.down.float() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (8, 5), (7, 6), (8,)])
def test_another_weight_is_refused(shape: tuple[int, ...]) -> None:
    adapter = Tlora(torch.rand(4, 6, 1, 1), torch.rand(8, 4, 1, 1), torch.rand(1, 4))
    with pytest.raises(ShapeError, match=r"T-LoRA of 8 x 6 numbers on a weight \[.*1x1"):
        adapter.delta_weight(torch.rand(shape))
