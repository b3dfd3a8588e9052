"""Adapters on layers whose weights are known, as a model that is connected tells them."""

from anyadapter.algorithms.adapters import Adapter
from anyadapter.algorithms.editing.sites import Sited
from anyadapter.algorithms.keymap import Target
from layer_cases import LayerCase

LAYER = "lora_unet_layer"
WEIGHT = Target("model.layer.weight")


def on(case: LayerCase, adapter: Adapter, strength: float = 1.0) -> Sited:
    """Places an adapter on a layer, whose weight and bias can be read."""
    shape = case.layer.weight_shape
    return Sited(LAYER, adapter, strength, WEIGHT, shape, lambda: (case.weight, case.bias))
