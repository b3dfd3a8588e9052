"""What is trained here opens in LyCORIS, by its own reading of a file, and does the same there."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from lycoris.modules import get_module, make_module
from torch import Generator, Tensor, nn

from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.formats.parse import AdapterSet
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.algorithms.training.methods import METHODS, MethodConfig
from anyadapter.algorithms.training.trainable import TrainableAdapter
from layer_cases import layer_of

NAME = "lora_unet_layer"
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 16), (2, 5, 12)),
    "conv": (nn.Conv2d(12, 16, 3, stride=2, padding=1), (2, 12, 7, 9)),
}
SMALL = {"rank": 4, "alpha": 3.0, "conv_rank": 4, "conv_alpha": 2.0}
# Not there: LoKr with a Tucker core, whose rank LyCORIS 4.1.3 takes from the wrong axis of its own files.
METHODS_THERE: dict[str, MethodConfig] = {
    name: replace(METHODS[name].recommended(), **SMALL)
    for name in ("LoRA-C3Lier", "LoRA+", "DyLoRA", "LoHa", "LoKr", "GLoRA", "Full", "NestedUNet")
} | {
    "LoRA-FA": MethodConfig("LoRA-FA", **SMALL),
    "Diag-OFT": MethodConfig("Diag-OFT", rank=4, conv_rank=4, rescaled=True),
    "Diag-OFT, constrained": MethodConfig("Diag-OFT", rank=4, conv_rank=4, constraint=0.001),
    "BOFT": MethodConfig("BOFT", rank=4, conv_rank=4),
    "LoHa, Tucker": MethodConfig("LoHa", use_tucker=True, **SMALL),
    "LoKr, split": MethodConfig(
        "LoKr", rank=1, alpha=2.0, conv_rank=1, factor=4, decompose_both=True
    ),
    "LoCon, rsLoRA": MethodConfig("LoRA-C3Lier", rs_lora=True, **SMALL),
    "LoRA, DoRA": MethodConfig("LoRA-C3Lier", dora=True, **SMALL),
    "LoHa, DoRA": MethodConfig("LoHa", dora=True, **SMALL),
    "T-LoRA as LoRA": MethodConfig("T-LoRA", rank=4, alpha=4.0),
}


@cache
def trained(method: str, kind: str) -> TrainableAdapter | None:
    """Returns an adapter away from its start, or None where the method trains no such layer."""
    module, _ = LAYERS[kind]
    config = METHODS_THERE[method]
    start = METHODS[config.method].start(layer_of(module), config, Generator().manual_seed(0))
    if start is None:
        return None
    adapter = TrainableAdapter(start, config).eval()
    generator = Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return adapter


def file_of(adapter: TrainableAdapter) -> dict[str, Tensor]:
    adapters = {NAME: (adapter.adapter(),)}
    return to_tensors(AdapterSet("file", adapters, AdapterMetadata({})))[0]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("method", METHODS_THERE)
@torch.no_grad()
def test_lycoris_reads_it_and_does_the_same(
    method: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LYCORIS_KERNEL_BACKEND", "torch")
    adapter = trained(method, kind)
    if adapter is None:
        assert (METHODS_THERE[method].method, kind) == ("T-LoRA", "conv")
        return
    module, shape = LAYERS[kind]
    x = torch.randn(shape, generator=Generator().manual_seed(2))
    layer, y = replace(layer_of(module), run=module.forward), module(x)
    expected = y + adapter.change(x, y, layer)
    found, parameters = get_module(file_of(adapter), NAME)
    assert found is not None, "LyCORIS knows no such file"
    other = make_module(found, parameters, NAME, module)
    assert other is not None
    other.apply_to()
    try:
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
    finally:
        other.restore()
