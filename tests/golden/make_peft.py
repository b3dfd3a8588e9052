"""Makes the golden files of PEFT: its own saving, loaded again by it, its own forward.

Run `python make_peft.py` where `peft` of the version in `VERSIONS.json` is installed.
"""

import json
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from writing import (
    HERE,
    STRENGTHS,
    Net,
    layer_input,
    normal,
    record_versions,
    save,
    save_expected,
    save_layers,
)

LINEAR = ("linear", "square")
SHARED = ("linear", "square", "broad")
"""Layers of different sizes, for methods that keep tensors for all modules."""
SOME = ("linear", "conv", "point")
CONVOLUTIONS = ("conv", "dilated", "point")


@dataclass(frozen=True)
class Case:
    """One folder."""

    name: str
    config: type[peft.PeftConfig]
    options: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = LINEAR
    std: float = 0.3
    scales: bool = False
    """Whether PEFT has a strength for it that starts from the base."""
    by_merge: tuple[str, ...] = ()
    """Layers where PEFT's forward is not what it merges, and the merge is right."""
    raw: bool = False
    """Whether the state dict is kept as it is in memory, with the adapter's name in the keys."""
    diffusers: bool = False
    """Whether the file is laid out as diffusers saves it, with the configuration in the header."""


def _alpha(rank: int, alpha: float, **others: Any) -> dict[str, Any]:
    return {"r": rank, "lora_alpha": alpha} | others


CASES = [
    Case("lora", peft.LoraConfig, _alpha(3, 2), (*SOME, "square", "conv1d", "conv3d"), scales=True),
    Case("lora_rs", peft.LoraConfig, _alpha(3, 2, use_rslora=True), SOME, scales=True),
    Case(
        "lora_patterns",
        peft.LoraConfig,
        _alpha(
            3,
            2,
            rank_pattern={"conv": 2, "^square": 4},
            alpha_pattern={"linear": 5, "point|square": 1},
        ),
        (*SOME, "square"),
        scales=True,
    ),
    Case(
        "lora_rs_patterns",
        peft.LoraConfig,
        _alpha(3, 2, use_rslora=True, rank_pattern={"conv": 2}, alpha_pattern={"linear": 5}),
        SOME,
        scales=True,
    ),
    Case("lora_bias", peft.LoraConfig, _alpha(3, 2, lora_bias=True), SOME, scales=True),
    Case(
        "lora_modules_to_save",
        peft.LoraConfig,
        _alpha(3, 2, modules_to_save=["square", "layer_norm"]),
        (*SOME, "square", "layer_norm"),
    ),
    Case("lora_trains_biases", peft.LoraConfig, _alpha(3, 2, bias="lora_only"), SOME),
    Case(
        "dora", peft.LoraConfig, _alpha(3, 2, use_dora=True), (*SOME, "square", "conv1d", "conv3d")
    ),
    Case("dora_rs", peft.LoraConfig, _alpha(3, 2, use_dora=True, use_rslora=True), SOME),
    Case("loha", peft.LoHaConfig, {"r": 3, "alpha": 2}, (*SOME, "dilated"), 0.6, scales=True),
    Case(
        "loha_effective",
        peft.LoHaConfig,
        {"r": 3, "alpha": 2, "use_effective_conv2d": True, "alpha_pattern": {"point": 4}},
        (*CONVOLUTIONS, "conv1d"),
        0.6,
        scales=True,
    ),
    Case(
        "lokr",
        peft.LoKrConfig,
        {"r": 2, "alpha": 3, "decompose_factor": 2},
        ("linear", "broad", "wide"),
        scales=True,
    ),
    Case(
        "lokr_whole",
        peft.LoKrConfig,
        {"r": 8, "alpha": 3},
        ("linear", "conv", "point"),
        0.8,
        scales=True,
    ),
    Case(
        "lokr_decompose_both",
        peft.LoKrConfig,
        {"r": 2, "alpha": 3, "decompose_both": True},
        ("broad",),
        0.6,
        scales=True,
    ),
    Case(
        "lokr_effective",
        peft.LoKrConfig,
        {"r": 3, "alpha": 2, "decompose_factor": 2, "use_effective_conv2d": True},
        ("wide",),
        0.6,
        scales=True,
    ),
    Case("ia3_outputs", peft.IA3Config, {"feedforward_modules": []}, (*SOME, "square")),
    Case(
        "ia3_inputs",
        peft.IA3Config,
        {"feedforward_modules": ["linear", "square", "conv", "point"]},
        (*SOME, "square"),
    ),
    Case("oft", peft.OFTConfig, {"oft_block_size": 5, "r": 0}, ("linear", "broad"), 0.1),
    Case(
        "oft_cayley",
        peft.OFTConfig,
        {"oft_block_size": 5, "r": 0, "use_cayley_neumann": False},
        ("linear", "broad"),
    ),
    Case(
        "oft_terms",
        peft.OFTConfig,
        {"oft_block_size": 5, "r": 0, "num_cayley_neumann_terms": 7},
        ("linear",),
        0.1,
    ),
    Case(
        "oft_block_share",
        peft.OFTConfig,
        {"oft_block_size": 5, "r": 0, "block_share": True},
        ("linear", "broad"),
        0.1,
    ),
    Case(
        "oft_coft",
        peft.OFTConfig,
        {"oft_block_size": 5, "r": 0, "coft": True, "eps": 0.9},
        ("linear",),
        0.3,
    ),
    Case(
        "oft_conv",
        peft.OFTConfig,
        {"oft_block_size": 3, "r": 0},
        ("conv", "point", "wide"),
        0.1,
        by_merge=("conv", "wide"),
    ),
    Case(
        "oft_conv_cayley",
        peft.OFTConfig,
        {"oft_block_size": 3, "r": 0, "use_cayley_neumann": False},
        ("conv", "point"),
        by_merge=("conv",),
    ),
    Case(
        "boft",
        peft.BOFTConfig,
        {"boft_block_size": 2, "boft_n_butterfly_factor": 1},
        ("linear", "conv", "point"),
    ),
    Case("vera", peft.VeraConfig, {"r": 4}, SHARED, 1.0),
    Case(
        "vera_without_projection",
        peft.VeraConfig,
        {"r": 4, "save_projection": False, "projection_prng_key": 5},
        SHARED,
        1.0,
    ),
    Case(
        "adalora",
        peft.AdaLoraConfig,
        {"init_r": 4, "target_r": 2, "lora_alpha": 3, "total_step": 10},
        std=0.6,
    ),
    Case("fourierft", peft.FourierFTConfig, {"n_frequency": 40, "scaling": 60.0}, std=1.0),
    Case("hra", peft.HRAConfig, {"r": 4}, (*LINEAR, "conv", "point")),
    Case("hra_gs", peft.HRAConfig, {"r": 4, "apply_GS": True}, ("linear", "conv")),
    Case("miss", peft.MissConfig, {"r": 4}),
    Case("miss_bat", peft.MissConfig, {"r": 2, "init_weights": "bat"}),
    Case("miss_mini", peft.MissConfig, {"r": 4, "mini_r": 2, "init_weights": "mini"}),
    Case("delora", peft.DeloraConfig, {"r": 4, "delora_lambda": 5}),
    Case("randlora", peft.RandLoraConfig, {"r": 4, "randlora_alpha": 20}, SHARED),
    Case(
        "vblora",
        peft.VBLoRAConfig,
        {"r": 2, "num_vectors": 12, "vector_length": 2, "topk": 2},
        std=0.6,
    ),
    Case(
        "vblora_topk",
        peft.VBLoRAConfig,
        {"r": 2, "num_vectors": 12, "vector_length": 2, "topk": 2, "save_only_topk_weights": True},
        std=0.6,
    ),
    Case("waveft", peft.WaveFTConfig, {"n_frequency": 40, "scaling": 5.0}),
    Case("c3a", peft.C3AConfig, {"block_size": 2}, std=1.0),
    Case("shira", peft.ShiraConfig, {"r": 2, "random_seed": 3}),
    Case("road_1", peft.RoadConfig, {"variant": "road_1", "group_size": 2}),
    Case("road_2", peft.RoadConfig, {"variant": "road_2", "group_size": 2}),
    Case("road_4", peft.RoadConfig, {"variant": "road_4", "group_size": 2}),
    Case("ln_tuning", peft.LNTuningConfig, {}, ("layer_norm",)),
    Case("gralora", peft.GraloraConfig, {"r": 4, "alpha": 6, "gralora_k": 2}),
    Case("gralora_hybrid", peft.GraloraConfig, {"r": 4, "alpha": 6, "gralora_k": 2, "hybrid_r": 2}),
    Case("lora_raw", peft.LoraConfig, _alpha(3, 2, lora_bias=True), SOME, scales=True, raw=True),
    Case("dora_raw", peft.LoraConfig, _alpha(3, 2, use_dora=True), SOME, raw=True),
    Case("loha_raw", peft.LoHaConfig, {"r": 3, "alpha": 2}, SOME, 0.6, scales=True, raw=True),
    Case("lokr_raw", peft.LoKrConfig, {"r": 2, "alpha": 3}, ("broad",), scales=True, raw=True),
    Case("ia3_raw", peft.IA3Config, {"feedforward_modules": []}, SOME, raw=True),
    Case("oft_raw", peft.OFTConfig, {"oft_block_size": 5, "r": 0}, ("linear",), 0.1, raw=True),
    Case("boft_raw", peft.BOFTConfig, {"boft_block_size": 2}, SOME, raw=True),
    Case("vera_raw", peft.VeraConfig, {"r": 4}, std=1.0, raw=True),
    Case(
        "lora_diffusers",
        peft.LoraConfig,
        _alpha(3, 2, rank_pattern={"conv": 2}, alpha_pattern={"linear": 5}, use_rslora=True),
        SOME,
        scales=True,
        diffusers=True,
    ),
    Case("dora_diffusers", peft.LoraConfig, _alpha(3, 2, use_dora=True), SOME, diffusers=True),
    Case(
        "lokr_diffusers",
        peft.LoKrConfig,
        {"r": 2, "alpha": 3},
        ("linear", "broad"),
        scales=True,
        diffusers=True,
    ),
    Case(
        "oft_diffusers",
        peft.OFTConfig,
        {"oft_block_size": 5, "r": 0, "use_cayley_neumann": False},
        ("linear",),
        diffusers=True,
    ),
    Case("beft", peft.BeftConfig, {}, ("linear",)),
    Case("deft", peft.DeftConfig, {"r": 3}),
    Case("deft_qr", peft.DeftConfig, {"r": 3, "decomposition_method": "qr"}),
    Case("frod", peft.FrodConfig, {"sparse_rate": 0.1, "progressbar": False}, ("linear",)),
    Case("glora", peft.GloraConfig, {"r": 3, "config_C": "none"}),
    Case(
        "glora_vectors",
        peft.GloraConfig,
        {"r": 3, "config_A_B": "vector", "config_C": "none", "config_D_E": "vector"},
    ),
    Case("glora_bias_of_weight", peft.GloraConfig, {"r": 3}, ("linear",)),
    Case("hira", peft.HiraConfig, {"r": 3}, (*LINEAR, "conv", "point", "conv1d"), 0.6),
    Case("osf", peft.OSFConfig, {"effective_rank": 3}),
    Case("peanut", peft.PeanutConfig, {"r": 3}),
    Case("psoft", peft.PsoftConfig, {"r": 4, "psoft_alpha": 4}),
    Case("pvera", peft.PveraConfig, {"r": 4}, SHARED, 1.0),
    Case("supertuning", peft.SupertuningConfig, {"sparsity": 0.8}),
    Case("tinylora", peft.TinyLoraConfig, {"r": 2, "u": 4}, std=1.0),
    Case("unilora", peft.UniLoraConfig, {"r": 2, "theta_d_length": 16}, std=1.0),
    Case(
        "unilora_indices",
        peft.UniLoraConfig,
        {"r": 2, "theta_d_length": 16, "save_indices": True},
        std=1.0,
    ),
]


def randomise(model: nn.Module, case: Case) -> None:
    """Gives every parameter of the adapter numbers that matter."""
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad and parameter.is_floating_point():
            change = normal(*parameter.shape, seed=f"{case.name}.{name}", std=case.std)
            parameter.data = parameter.data + change


def made(case: Case) -> nn.Module:
    """Returns a model with a new adapter."""
    torch.manual_seed(0)
    whole = case.options.get("modules_to_save", ())
    targets = [layer for layer in case.layers if layer not in whole]
    config = case.config(target_modules=targets, **case.options)
    return peft.get_peft_model(Net(case.layers), config)


def make(case: Case, folder: Path) -> None:
    """Writes the two files of an adapter and what PEFT computes with it."""
    model = made(case).eval()
    randomise(model, case)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        saved = load_file(Path(temporary) / "adapter_model.safetensors")
        config = json.loads((Path(temporary) / "adapter_config.json").read_text())
        again = peft.PeftModel.from_pretrained(Net(case.layers), temporary).eval()
    for key, value in config.items():
        if isinstance(value, list):
            config[key] = sorted(value)  # sets, in an order that changes from run to run
    path, prefix = folder / "adapter_model.safetensors", "base_model.model."
    if case.raw:
        saved = {key: value for key, value in again.state_dict().items() if ".default" in key}
    if case.diffusers:
        prefix = "unet."
        saved = {key.replace("base_model.model.", prefix): value for key, value in saved.items()}
        in_header = json.dumps({f"unet.{key}": value for key, value in config.items()}, indent=2)
        save(path, saved, {"format": "pt", "lora_adapter_metadata": in_header})
    else:
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        save(path, saved, {"format": "pt"})

    again.double()
    strengths = STRENGTHS if case.scales else STRENGTHS[:1]
    outputs = {
        prefix + name: (name, torch.stack([run(again, name, strength) for strength in strengths]))
        for name in case.layers
        if name not in case.by_merge
    }
    if case.by_merge:
        again.base_model.merge_adapter()
        for name in case.by_merge:
            merged = getattr(again.base_model.model, name).base_layer
            outputs[prefix + name] = (name, merged(layer_input(name).double())[None])
    oracle = "PEFT, forward in float64"
    if case.by_merge:
        oracle += f", its merge for {' and '.join(case.by_merge)}"
    save_expected(path, outputs, strengths, oracle)


def run(model: Any, name: str, strength: float) -> Tensor:
    """Returns what PEFT computes for one layer."""
    layer = getattr(model.base_model.model, name)
    if strength != 1:
        layer.set_scale("default", strength)
    with torch.no_grad():
        y = layer(layer_input(name).double())
    if strength != 1:
        layer.set_scale("default", 1.0)
    return y


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    save_layers()
    for case in CASES:
        make(case, HERE / "peft" / case.name)
    record_versions("peft")
