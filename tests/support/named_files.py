"""Small files in kohya's names, models that they are for, and what a file changes in a model."""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from anyadapter.algorithms.binding import bind
from anyadapter.algorithms.families import FAMILIES, diffusion_model_part, text_encoder_parts
from anyadapter.algorithms.formats.parse import AdapterSet, parse_tensors
from anyadapter.algorithms.keymap import KeyMap
from anyadapter.algorithms.layers import Rows

BY_NAME = {family.name: family for family in FAMILIES}
H = 6
FLUX = {
    "img_in": (H, 4),
    "double_blocks.0.img_attn.qkv": (3 * H, H),
    "double_blocks.0.img_attn.proj": (H, H),
    "double_blocks.0.txt_attn.qkv": (3 * H, H),
    "double_blocks.0.img_mlp.0": (4 * H, H),
    "single_blocks.0.linear1": (7 * H, H),
    "single_blocks.0.linear2": (H, 5 * H),
    "final_layer.adaLN_modulation.1": (2 * H, H),
}
UNET = {
    "time_embed.0": (8, 6),
    "input_blocks.0.0": (8, 4, 3, 3),
    "input_blocks.1.0.in_layers.2": (8, 8, 3, 3),
    "input_blocks.1.0.emb_layers.1": (8, 6),
    "input_blocks.1.1.proj_in": (8, 8, 1, 1),
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q": (8, 6),
    "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj": (16, 6),
    "input_blocks.2.0.op": (8, 8, 3, 3),
    "input_blocks.3.1.transformer_blocks.0.attn2.to_out.0": (6, 8),
    "middle_block.1.transformer_blocks.0.attn2.to_k": (8, 6),
    "middle_block.2.out_layers.3": (8, 6, 3, 3),
    "output_blocks.0.0.skip_connection": (8, 16, 1, 1),
    "output_blocks.0.1.transformer_blocks.0.attn1.to_v": (8, 6),
    "output_blocks.0.2.conv": (8, 8, 3, 3),
    "out.2": (4, 8, 3, 3),
}
CLIP = "clip_l.transformer.text_model.encoder.layers.0"


def key_map(shapes: Mapping[str, tuple[int, ...]], family: str) -> KeyMap:
    keys = {f"diffusion_model.{name}.weight": shape for name, shape in shapes.items()}
    keys |= {f"diffusion_model.{name}.bias": shape[:1] for name, shape in shapes.items()}
    return KeyMap([], keys, [diffusion_model_part(keys, [], BY_NAME[family])])


@cache
def flux() -> KeyMap:
    return key_map(FLUX, "Flux")


@cache
def unet(family: str) -> KeyMap:
    return key_map(UNET, family)


@cache
def clip() -> KeyMap:
    keys = {f"{CLIP}.self_attn.q_proj.weight": (8, 6), f"{CLIP}.mlp.fc1.weight": (12, 6)}
    return KeyMap([], keys, text_encoder_parts(keys))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def lora(
    module: str, shape: Sequence[int], rank: int = 2, alpha: float | None = 1.5
) -> dict[str, Tensor]:
    """A LoRA in kohya's spelling on a layer; the numbers differ from module to module."""
    outputs, *inputs = shape
    ones = [1] * (len(inputs) - 1)
    shift = sum(map(ord, module)) % 7 / 10
    tensors = {
        f"{module}.lora_up.weight": random(outputs, rank, *ones) + shift,
        f"{module}.lora_down.weight": random(rank, *inputs) - shift,
    }
    return tensors | ({f"{module}.alpha": torch.tensor(alpha)} if alpha else {})


def read(tensors: Mapping[str, Tensor], strings: Mapping[str, str] | None = None) -> AdapterSet:
    return parse_tensors(tensors, strings or {}, "a file").as_trained()


def loha(module: str, outputs: int) -> dict[str, Tensor]:
    shapes = {"w1_a": (outputs, 2), "w1_b": (2, 6), "w2_a": (outputs, 2), "w2_b": (2, 6)}
    tensors = {f"{module}.hada_{name}": random(*shape) for name, shape in shapes.items()}
    return tensors | {f"{module}.alpha": torch.tensor(3.0)}


def effect(adapters: AdapterSet, *key_maps: KeyMap) -> dict[str, Tensor]:
    """The change of every weight, in its own rows; the base weight is random where it is read."""
    changes: dict[str, Tensor] = {}
    for one in key_maps:
        for bound in bind(adapters, one).bound:
            key = bound.target.weight
            base = random(*one.shapes[key]).double()
            rows = bound.target.rows
            total = changes.setdefault(key, torch.zeros_like(base))
            change = bound.adapter.delta_weight(base if rows is None else rows.take(base))
            if change is not None and rows is None:
                total += change
            elif change is not None and rows is not None:
                rows.add(total, change.double())
            shift = bound.adapter.delta_bias(None)
            if shift is not None:
                wide = changes.setdefault(bound.target.bias, torch.zeros(base.shape[0]).double())
                (rows or Rows(0, base.shape[0])).add(wide, shift.double())
    return changes


def assert_same(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 2e-6
) -> None:
    assert found.keys() == expected.keys()
    for key, change in expected.items():
        assert change.norm() > 0
        assert (found[key] - change).norm() <= tolerance * change.norm(), key


class Layers(nn.Module):
    """Layers under names with dots."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for path, shape in shapes.items():
            *above, last = path.split(".")
            place: nn.Module = self
            for name in above:
                if not hasattr(place, name):
                    place.add_module(name, nn.Module())
                place = getattr(place, name)
            outputs, inputs, *kernel = shape
            layer = (
                nn.Conv2d(inputs, outputs, (kernel[0], kernel[1]))
                if kernel
                else nn.Linear(inputs, outputs)
            )
            layer.weight.data = random(*shape)
            place.add_module(last, layer)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}
