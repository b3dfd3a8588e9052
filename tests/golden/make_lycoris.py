"""Makes the golden files of LyCORIS: its own modules, its own saving, its own forward.

Run `python make_lycoris.py` where `lycoris-lora` of the version in `VERSIONS.json` is installed.
"""

import json
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from lycoris.config import PRESET
from lycoris.wrapper import LycorisNetwork
from torch import Tensor
from writing import (
    HERE,
    STRENGTHS,
    Net,
    layer_input,
    normal,
    order_header,
    record_versions,
    save_expected,
    save_layers,
)

PRODUCTS = ("linear", "square", "conv", "dilated", "point", "conv1d", "conv3d")
SOME = ("linear", "conv", "point")


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    algo: str
    layers: tuple[str, ...] = SOME
    rank: int = 3
    alpha: float = 2.0
    std: float = 0.4
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("locon", "locon", (*PRODUCTS, "grouped")),
    Case("locon_half", "locon", dtype=torch.float16),
    Case("locon_scalar", "locon", std=0.8, options={"use_scalar": True}),
    Case("locon_rs", "locon", options={"rs_lora": True}),
    Case(
        "locon_tucker",
        "locon",
        ("conv", "dilated", "conv1d", "conv3d"),
        options={"use_tucker": True},
    ),
    Case("locon_dora", "locon", (*SOME, "dilated", "conv1d"), options={"weight_decompose": True}),
    Case(
        "locon_dora_inputs",
        "locon",
        (*SOME, "square"),
        options={"weight_decompose": True, "wd_on_out": False},
    ),
    Case(
        "locon_tucker_dora",
        "locon",
        ("conv",),
        options={"use_tucker": True, "weight_decompose": True},
    ),
    Case("loha", "loha", (*PRODUCTS, "grouped"), std=0.6),
    Case("loha_rs", "loha", std=0.6, options={"rs_lora": True}),
    Case(
        "loha_tucker",
        "loha",
        ("conv", "dilated", "conv1d", "conv3d"),
        std=0.5,
        options={"use_tucker": True},
    ),
    Case("loha_dora", "loha", std=0.6, options={"weight_decompose": True}),
    Case(
        "loha_dora_inputs", "loha", std=0.6, options={"weight_decompose": True, "wd_on_out": False}
    ),
    Case("lokr", "lokr", ("broad", "wide", "linear", "conv"), 2, options={"factor": 2}),
    Case("lokr_rs", "lokr", ("broad", "wide"), 2, options={"factor": 2, "rs_lora": True}),
    Case("lokr_whole", "lokr", (*PRODUCTS, "grouped"), 64, options={"full_matrix": True}),
    Case("lokr_decompose_both", "lokr", ("broad",), 2, std=0.7, options={"decompose_both": True}),
    Case("lokr_tucker", "lokr", ("wide",), 3, std=0.7, options={"factor": 2, "use_tucker": True}),
    Case(
        "lokr_unbalanced",
        "lokr",
        ("broad", "wide"),
        2,
        std=0.6,
        options={"factor": 2, "unbalanced_factorization": True},
    ),
    Case(
        "lokr_dora",
        "lokr",
        ("broad", "wide", "point"),
        2,
        options={"factor": 2, "weight_decompose": True},
    ),
    Case(
        "lokr_dora_inputs",
        "lokr",
        ("broad", "wide"),
        2,
        options={"factor": 2, "weight_decompose": True, "wd_on_out": False},
    ),
    Case("ia3_outputs", "ia3", (*PRODUCTS,)),
    Case("ia3_inputs", "ia3", (*PRODUCTS,), options={"train_on_input": True}),
    Case("full", "full", ("linear", "conv", "conv1d")),
    Case("norm", "locon", ("linear", "layer_norm", "group_norm"), options={"train_norm": True}),
    Case("diag_oft", "diag-oft", (*PRODUCTS,), 4, std=0.3),
    Case("diag_oft_blocks_of_4", "diag-oft", ("wide",), 4, std=0.3),
    Case("diag_oft_constraint", "diag-oft", SOME, 4, std=0.3, options={"constraint": 0.05}),
    Case("diag_oft_rescaled", "diag-oft", SOME, 4, std=0.3, options={"rescaled": True}),
    Case("boft", "boft", ("conv", "wide", "dilated", "point", "conv1d"), 2, std=0.2),
    Case("boft_blocks_of_4", "boft", ("wide",), 4, std=0.2),
    Case("boft_linear", "boft", ("linear", "square"), 6, std=0.2),
    Case("boft_constraint", "boft", ("conv", "point"), 2, std=0.2, options={"constraint": 0.05}),
    Case("boft_rescaled", "boft", ("conv", "point"), 2, std=0.2, options={"rescaled": True}),
    Case("glora", "glora", (*PRODUCTS,)),
    Case("glora_rs", "glora", options={"rs_lora": True}),
    Case("dylora", "dylora", SOME, 4, options={"block_size": 2}),
    Case("tlora", "tlora", ("linear", "point"), std=0.3),
]

NETWORK_ARGUMENTS = {"weight_decompose": "dora_wd", "wd_on_out": "wd_on_output"}
"""Where the option of a module has another name on the command line, as the header keeps it."""


def make(case: Case) -> None:
    """Writes one adapter file and what LyCORIS computes with it."""
    torch.manual_seed(0)
    model = Net(case.layers)
    LycorisNetwork.apply_preset(PRESET["full"])
    LycorisNetwork.LORA_PREFIX = "lora_unet"
    network = LycorisNetwork(
        model,
        lora_dim=case.rank,
        conv_lora_dim=case.rank,
        alpha=case.alpha,
        conv_alpha=case.alpha,
        network_module=case.algo,
        warn_on_unmatched=False,
        **case.options,
    )
    network.apply_to()
    for name, parameter in network.named_parameters():
        change = normal(*parameter.shape, seed=f"{case.name}.{name}", std=case.std)
        parameter.data = (parameter.data + change).to(case.dtype).float()
    path = HERE / "lycoris" / f"{case.name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    network.save_weights(str(path), case.dtype, header(case))
    order_header(path)

    # LyCORIS inverts rotations in float32, whatever the rest is in.
    precision = torch.float32 if "oft" in case.algo else torch.float64
    model.to(precision)
    network.to(precision)
    outputs: dict[str, tuple[str, Tensor]] = {}
    for module in network.loras:
        layer = module.lora_name.removeprefix("lora_unet_")
        x = layer_input(layer).to(precision)
        outputs[module.lora_name] = (layer, torch.stack([run(module, x, s) for s in STRENGTHS]))
    save_expected(path, outputs, STRENGTHS, f"LyCORIS, forward of its module in {precision}")


def run(module: Any, x: Tensor, strength: float) -> Tensor:
    """Returns what a module of LyCORIS computes.

    DyLoRA draws its blocks by chance; here it has its last training step, when all are in play.
    """
    module.multiplier = strength
    if hasattr(module, "up_list"):
        everything = (module.block_count - 1) * module.block_size
        module.get_random_rank_weight = lambda: module.get_weight(everything)
    with torch.no_grad():
        return module(x)


def header(case: Case) -> dict[str, str]:
    """Returns the strings that sd-scripts puts in the header when it trains with LyCORIS."""
    arguments = {NETWORK_ARGUMENTS.get(key, key): str(value) for key, value in case.options.items()}
    return {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": str(case.rank),
        "ss_network_alpha": str(case.alpha),
        "ss_network_args": json.dumps({"algo": case.algo} | arguments),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    save_layers()
    for case in CASES:
        make(case)
    record_versions("lycoris-lora")
