"""Makes golden files in the layouts of tools that are no package: by hand, from float64 formulas.

sd-scripts, OneTrainer, ai-toolkit, ComfyUI, diffusers' older names and older versions of PEFT and
LyCORIS. Every case is a few tensors and, beside them, the change of the weight they stand for,
written as plainly as possible and apart from the code under test.

Run `python make_written.py`; it needs torch and safetensors only.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from writing import (
    HERE,
    STRENGTHS,
    fresh,
    layer_input,
    normal,
    record_versions,
    save,
    save_expected,
    save_layers,
)

KOHYA = {"ss_network_module": "networks.lora", "ss_network_dim": "3", "ss_network_alpha": "2.0"}
ONETRAINER = {"ot_branch": "master", "ot_revision": "0000000", "ot_config": json.dumps({})}
AI_TOOLKIT = {
    "format": "pt",
    "name": "golden",
    "software": json.dumps({"name": "ai-toolkit", "version": "0.7.0"}),
}


@dataclass
class Written:
    """A file under construction."""

    name: str
    header: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, tuple[str, Tensor]] = field(default_factory=dict)

    def random(self, key: str, *shape: int, std: float = 0.5) -> Tensor:
        """Adds a tensor of normal numbers to the file and returns it in float64."""
        return self.put(key, normal(*shape, seed=f"{self.name}.{key}", std=std))

    def put(self, key: str, value: Tensor | float) -> Tensor:
        """Adds a tensor to the file and returns it in float64."""
        self.tensors[key] = value if isinstance(value, Tensor) else torch.tensor(value)
        return self.tensors[key].double()

    def expect(self, module: str, layer: str, change: Tensor, shift: Tensor | None = None) -> None:
        """Notes the outputs of a layer whose weight and bias change by so much at strength 1."""
        base = fresh(layer).double()
        parameters = dict(base.named_parameters())
        outputs: list[Tensor] = []
        for strength in STRENGTHS:
            changed = {
                "weight": parameters["weight"] + strength * change.reshape(base.weight.shape)
            }
            if shift is not None:
                changed["bias"] = parameters["bias"] + strength * shift
            x = layer_input(layer).double()
            outputs.append(torch.func.functional_call(base, changed, (x,)))
        self.outputs[module] = (layer, torch.stack(outputs))

    def write(self) -> None:
        """Writes both files."""
        path = HERE / "written" / f"{self.name}.safetensors"
        save(path, self.tensors, self.header)
        save_expected(path, self.outputs, STRENGTHS, "formula in float64")


def weight_of(layer: str) -> Tensor:
    """Returns the base weight of a layer in float64."""
    return fresh(layer).weight.double()


def matrix_of(layer: str) -> Tensor:
    """Returns the base weight of a layer as a matrix with all inputs and taps in one axis."""
    return weight_of(layer).flatten(1)


SHAPES = {
    "linear": ((12,), (10,)),
    "square": ((12,), (12,)),
    "fused": ((30,), (10,)),
    "conv": ((8, 1, 1), (6, 3, 3)),
    "point": ((8, 1, 1), (6, 1, 1)),
}
"""Layer -> its outputs with the axes that follow the rank in `up`, its inputs with the kernel."""


def lora(file: Written, module: str, layer: str, up: str, down: str, rank: int = 3) -> Tensor:
    """Adds both factors of a LoRA under the given suffixes; returns their product."""
    (outputs, *ones), inputs = SHAPES[layer]
    first = file.random(module + up, outputs, rank, *ones)
    second = file.random(module + down, rank, *inputs)
    return first.flatten(1) @ second.flatten(1)


def skew(vectors: Tensor) -> Tensor:
    """Returns matrices with the vectors above the diagonal, row by row, and their negatives below."""
    size = (1 + math.isqrt(1 + 8 * vectors.shape[1])) // 2
    matrices = torch.zeros(len(vectors), size, size, dtype=vectors.dtype)
    rows, columns = torch.triu_indices(size, size, 1)
    matrices[:, rows, columns] = vectors
    matrices[:, columns, rows] = -vectors
    return matrices


def cayley(q: Tensor) -> Tensor:
    """Returns (I + Q)(I - Q)^-1."""
    identity = torch.eye(q.shape[-1], dtype=q.dtype)
    return (identity + q) @ torch.linalg.inv(identity - q)


def neumann(q: Tensor) -> Tensor:
    """Returns the first five terms that PEFT and OneTrainer take for it."""
    identity = torch.eye(q.shape[-1], dtype=q.dtype)
    return identity + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q


def kohya_like() -> list[Written]:
    """sd-scripts: plain files, and those that only the header tells apart."""
    plain = Written("kohya_lora", KOHYA)
    for layer in ("linear", "conv", "point"):
        module = f"lora_unet_{layer}"
        product = lora(plain, module, layer, ".lora_up.weight", ".lora_down.weight")
        plain.expect(module, layer, product * plain.put(f"{module}.alpha", 2.0) / 3)

    header_only = Written("kohya_alpha_in_header", KOHYA)
    product = lora(
        header_only, "lora_unet_linear", "linear", ".lora_up.weight", ".lora_down.weight"
    )
    header_only.expect("lora_unet_linear", "linear", product * 2 / 3)

    dylora = Written(
        "kohya_dylora",
        KOHYA
        | {"ss_network_module": "networks.dylora", "ss_network_args": json.dumps({"unit": "2"})},
    )
    for layer in ("linear", "conv", "point"):
        module = f"lora_unet_{layer}"
        product = lora(dylora, module, layer, ".lora_up.weight", ".lora_down.weight", 4)
        dylora.expect(module, layer, product * dylora.put(f"{module}.alpha", 2.0) / 4)

    fa = Written("kohya_lora_fa", KOHYA | {"ss_network_module": "networks.lora_fa"})
    product = lora(fa, "lora_unet_linear", "linear", ".lora_up.weight", ".lora_down.weight")
    fa.expect("lora_unet_linear", "linear", product * fa.put("lora_unet_linear.alpha", 2.0) / 3)

    split = Written(
        "kohya_split_qkv",
        KOHYA
        | {
            "ss_network_module": "networks.lora_flux",
            "ss_network_args": json.dumps({"split_qkv": "True"}),
        },
    )
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    parts = [normal(10, 2, seed=f"split.up.{part}", std=0.5) for part in range(3)]
    up = split.put(f"{module}.lora_up.weight", torch.block_diag(*parts))
    down = split.random(f"{module}.lora_down.weight", 6, 10)
    split.expect(module, "fused", up @ down * split.put(f"{module}.alpha", 1.0) / 2)
    return [plain, header_only, dylora, fa, split]


def kohya_oft() -> list[Written]:
    """sd-scripts' OFT: alpha times the number of outputs is the limit of Q over all blocks."""
    limited = Written("kohya_oft", {"ss_network_module": "networks.oft", "ss_network_dim": "2"})
    free = Written(
        "kohya_oft_wide_limit", {"ss_network_module": "networks.oft", "ss_network_dim": "2"}
    )
    for file, alpha in ((limited, 0.05), (free, 10.0)):
        for layer in ("linear", "conv", "point"):
            module = f"oft_unet_{layer}"
            weight = matrix_of(layer)
            blocks = file.random(
                f"{module}.oft_blocks", 2, len(weight) // 2, len(weight) // 2, std=0.3
            )
            limit = file.put(f"{module}.alpha", alpha) * len(weight)
            file.expect(module, layer, rotated_outputs(weight, blocks, limit) - weight)

    flux = Written(
        "kohya_oft_flux", {"ss_network_module": "networks.oft_flux", "ss_network_dim": "2"}
    )
    module = "oft_unet_double_blocks_0_img_attn_qkv"
    weight = matrix_of("fused")
    alpha = flux.put(f"{module}.alpha", 0.05)
    parts = [
        rotated_outputs(
            part, flux.random(f"{module}.oft_blocks.{index}", 2, 5, 5, std=0.3), alpha * 10
        )
        for index, part in enumerate(weight.split(10))
    ]
    flux.expect(module, "fused", torch.cat(parts) - weight)
    module = "oft_unet_double_blocks_0_img_attn_proj"
    weight = matrix_of("linear")
    blocks = flux.random(f"{module}.oft_blocks.0", 2, 6, 6, std=0.3)
    alpha = flux.put(f"{module}.alpha", 0.05)
    flux.expect(module, "linear", rotated_outputs(weight, blocks, alpha * 12) - weight)
    return [limited, free, flux]


def rotated_outputs(weight: Tensor, blocks: Tensor, limit: Tensor) -> Tensor:
    """Returns R^T W for each block of rows, with Q = B - B^T within the limit."""
    q = blocks - blocks.mT
    norm = q.norm()
    q = q * (torch.minimum(norm, limit) + 1e-8) / (norm + 1e-8)
    return torch.block_diag(*cayley(q)).T @ weight


def onetrainer() -> list[Written]:
    """OneTrainer: LoHa in four axes, DoRA on both axes, LoKr, and OFT on the inputs."""
    loha = Written("onetrainer_loha", ONETRAINER)
    for layer in ("linear", "conv", "point"):
        module = f"lora_unet_{layer}"
        (outputs, *ones), inputs = SHAPES[layer]
        parts = [
            loha.random(f"{module}.hada_w{i}_a", outputs, 3, *ones).flatten(1)
            @ loha.random(f"{module}.hada_w{i}_b", 3, *inputs).flatten(1)
            for i in (1, 2)
        ]
        loha.expect(module, layer, parts[0] * parts[1] * loha.put(f"{module}.alpha", 2.0) / 3)

    dora = []
    for name, axis in (("onetrainer_dora", 1), ("onetrainer_dora_outputs", 0)):
        file = Written(name, ONETRAINER)
        for layer in ("linear", "square", "conv", "point"):
            module = f"lora_unet_{layer}"
            product = lora(file, module, layer, ".lora_up.weight", ".lora_down.weight")
            product = product * file.put(f"{module}.alpha", 2.0) / 3
            file.expect(
                module, layer, decomposed(file, f"{module}.dora_scale", layer, product, axis)
            )
        dora.append(file)

    lokr = Written("onetrainer_lokr", ONETRAINER)
    module = "lora_unet_linear"
    whole = torch.kron(
        lokr.random(f"{module}.lokr_w1", 3, 2),
        lokr.random(f"{module}.lokr_w2_a", 4, 2) @ lokr.random(f"{module}.lokr_w2_b", 2, 5),
    )
    lokr.expect(module, "linear", whole * lokr.put(f"{module}.alpha", 3.0) / 2)
    module = "lora_unet_conv"
    left = lokr.random(f"{module}.lokr_w1", 2, 2)
    right = lokr.random(f"{module}.lokr_w2_a", 4, 2) @ lokr.random(f"{module}.lokr_w2_b", 2, 27)
    change = torch.kron(left[:, :, None, None], right.reshape(4, 3, 3, 3)).flatten(1)
    change = change * lokr.put(f"{module}.alpha", 3.0) / 2
    lokr.expect(module, "conv", decomposed(lokr, f"{module}.dora_scale", "conv", change, 1))

    oft = []
    for name, scaled in (("onetrainer_oft", False), ("onetrainer_oft_scaled", True)):
        file = Written(name, ONETRAINER)
        for layer, size in (("linear", 5), ("conv", 6), ("point", 3)):
            module = f"lora_unet_{layer}"
            weight = matrix_of(layer)
            count = weight.shape[1] // size
            std = 0.1 * (2 * math.sqrt(size - 1) if scaled else 1)
            vectors = file.random(f"{module}.oft_R.weight", count, size * (size - 1) // 2, std=std)
            if scaled:
                file.put(f"{module}.oft_R.scaled_oft", torch.tensor(True))
                vectors = vectors / (2 * math.sqrt(size - 1))
            rotation = torch.block_diag(*neumann(skew(vectors)))
            turned = weight @ (rotation.T if layer == "linear" else rotation)
            file.expect(module, layer, turned - weight)
        oft.append(file)
    return [loha, *dora, lokr, *oft]


def decomposed(file: Written, key: str, layer: str, change: Tensor, kept: int) -> Tensor:
    """Adds magnitudes on one axis and returns the whole change, W' - W."""
    weight = weight_of(layer)
    changed = weight + change.reshape(weight.shape)
    others = tuple(axis for axis in range(weight.ndim) if axis != kept)
    length = changed.pow(2).sum(others, keepdim=True).sqrt()
    spread = normal(*length.shape, seed=f"{file.name}.{key}", std=0.3).abs() + 0.7
    magnitude = file.put(key, (length * spread).float())
    return magnitude * changed / length - weight


def ai_toolkit() -> list[Written]:
    """ai-toolkit: dotted names, DoRA as `magnitude`, whole LoKr, and whole weights as `lora_A`."""
    dora = Written("ai_toolkit_dora", AI_TOOLKIT)
    for layer in ("linear", "square"):
        module = f"diffusion_model.{layer}"
        product = lora(dora, module, layer, ".lora_B.weight", ".lora_A.weight")
        change = decomposed(dora, f"{module}.magnitude", layer, product, 0)
        dora.tensors[f"{module}.magnitude"] = dora.tensors[f"{module}.magnitude"].flatten()
        dora.expect(module, layer, change)

    lokr = Written("ai_toolkit_lokr_whole", AI_TOOLKIT)
    for module, alpha in (
        ("diffusion_model.linear", torch.tensor(9999999999.0)),
        ("lycoris_linear", torch.tensor(9999999999.0).half()),
    ):
        change = torch.kron(
            lokr.random(f"{module}.lokr_w1", 3, 2), lokr.random(f"{module}.lokr_w2", 4, 5)
        )
        lokr.put(f"{module}.alpha", alpha)
        lokr.expect(module, "linear", change)

    whole = Written("ai_toolkit_fullrank", AI_TOOLKIT)
    for layer in ("linear", "square"):
        module = f"diffusion_model.{layer}"
        change = whole.random(f"{module}.lora_A.weight", *matrix_of(layer).shape)
        whole.expect(module, layer, change)

    bias = Written("ai_toolkit_bias", AI_TOOLKIT)
    module = "lora_unet_linear"
    scale = bias.put(f"{module}.alpha", 2.0) / 3
    product = lora(bias, module, "linear", ".lora_up.weight", ".lora_down.weight")
    shift = bias.random(f"{module}.lora_up.bias", 12)
    bias.expect(module, "linear", product * scale, shift * scale)
    return [dora, lokr, whole, bias]


def older() -> list[Written]:
    """Layouts that newer versions of their tools no longer write."""
    glora = Written(
        "old_glora",
        {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "glora"})},
    )
    for layer in ("linear", "square", "point"):
        module = f"lora_unet_{layer}"
        (outputs, *ones), (inputs, *_) = SHAPES[layer]
        a1, a2, b1, b2 = (
            glora.random(f"{module}.{key}.weight", *shape, *ones).flatten(1)
            for key, shape in (
                ("a1", (3, inputs)),
                ("a2", (inputs, 3)),
                ("b1", (3, inputs)),
                ("b2", (outputs, 3)),
            )
        )
        change = matrix_of(layer) @ a2 @ a1 + b2 @ b1
        glora.expect(module, layer, change * glora.put(f"{module}.alpha", 2.0) / 3)

    outputs_side = Written("old_peft_oft_outputs", {"format": "pt"})
    for layer, count in (("linear", 2), ("conv", 2), ("point", 4)):
        module = f"base_model.model.{layer}"
        weight = matrix_of(layer)
        size = len(weight) // count
        b = outputs_side.random(f"{module}.oft_r", count, size, size, std=0.4)
        rotation = torch.block_diag(*cayley(-(b - b.mT) / 2))
        outputs_side.expect(module, layer, rotation.T @ weight - weight)

    inputs_side = Written("old_peft_oft_inputs", {"format": "pt"})
    for layer, size in (("linear", 5), ("point", 3), ("conv", 6)):
        module = f"base_model.model.{layer}"
        weight = matrix_of(layer)
        b = inputs_side.random(f"{module}.oft_r", weight.shape[1] // size, size, size, std=0.4)
        rotation = torch.block_diag(*cayley(-(b - b.mT) / 2))
        factor = inputs_side.put(
            f"{module}.oft_s", 1 + normal(len(weight), 1, seed=f"old oft_s {layer}", std=0.3)
        )
        inputs_side.expect(module, layer, factor * (weight @ rotation.T) - weight)

    mochi = Written("mochi_lora", {"format": "pt"})
    product = lora(mochi, "blocks.0.linear", "linear", ".lora_B", ".lora_A")
    mochi.expect("blocks.0.linear", "linear", product)

    diffusers = Written("old_diffusers", {"format": "pt"})
    for module, up, down in (
        ("unet.mid_block.attn1.processor.to_q", "_lora.up.weight", "_lora.down.weight"),
        ("unet.mid_block.attn1.to_k", ".lora.up.weight", ".lora.down.weight"),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
            ".lora_linear_layer.up.weight",
            ".lora_linear_layer.down.weight",
        ),
    ):
        diffusers.expect(module, "linear", lora(diffusers, module, "linear", up, down))
    return [glora, outputs_side, inputs_side, mochi, diffusers]


def comfyui() -> list[Written]:
    """ComfyUI and the files around it: matrices for kernels, its own OFT, whole weights."""
    trained = Written("comfyui_lora")
    module = "diffusion_model.conv"
    product = trained.random(f"{module}.lora_up.weight", 8, 3) @ trained.random(
        f"{module}.lora_down.weight", 3, 54
    )
    trained.expect(module, "conv", product * trained.put(f"{module}.alpha", 1.0) / 3)

    oft = Written("comfyui_oft")
    module = "diffusion_model.linear"
    weight = matrix_of("linear")
    blocks = oft.random(f"{module}.oft_blocks", 3, 4, 4, std=0.6)
    limit = oft.put(f"{module}.alpha", 1.0)
    oft.expect(module, "linear", rotated_outputs(weight, blocks, limit) - weight)

    diff = Written("diff")
    module = "diffusion_model.conv"
    diff.expect(
        module,
        "conv",
        diff.random(f"{module}.diff", 8, 6, 3, 3),
        diff.random(f"{module}.diff_b", 8),
    )
    module = "diffusion_model.layer_norm"
    diff.expect(
        module, "layer_norm", diff.random(f"{module}.diff", 12), diff.random(f"{module}.diff_b", 12)
    )
    module = "diffusion_model.linear"
    product = lora(diff, module, "linear", ".lora_up.weight", ".lora_down.weight")
    diff.expect(module, "linear", product, diff.random(f"{module}.diff_b", 12))

    absolute = Written("set_weight")
    for layer in ("layer_norm", "linear"):
        module = f"diffusion_model.{layer}"
        weight = weight_of(layer)
        wanted = absolute.random(f"{module}.set_weight", *weight.shape)
        absolute.expect(module, layer, wanted - weight)
    return [trained, oft, diff, absolute]


GROUPS: tuple[Callable[[], list[Written]], ...] = (
    kohya_like,
    kohya_oft,
    onetrainer,
    ai_toolkit,
    older,
    comfyui,
)

if __name__ == "__main__":
    save_layers()
    for group in GROUPS:
        for file in group():
            file.write()
    record_versions()
