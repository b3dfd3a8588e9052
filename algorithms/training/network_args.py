"""What the metadata of a file say of its method: `ss_network_module` and `ss_network_args`.

The names and the values, all of them strings, are those of the tool whose format the file has, so that
its loader and its readers understand it: sd-scripts' own modules where they can load the file, else
LyCORIS. What has no name there is left out: our own configuration is written beside it.
"""

from dataclasses import dataclass

from .methods import METHODS, MethodConfig

OF_SD_SCRIPTS = {
    "LoRA-LierLa": "networks.lora",
    "LoRA-C3Lier": "networks.lora",
    "LoRA+": "networks.lora",
    "NestedUNet": "networks.lora",
    "T-LoRA": "networks.lora",
    "LoRA-FA": "networks.lora_fa",
    "DyLoRA": "networks.dylora",
    "OFT (kohya)": "networks.oft",
}
ALGORITHMS = {
    "LoHa": "loha",
    "LoKr": "lokr",
    "(IA)^3": "ia3",
    "Full": "full",
    "Diag-OFT": "diag-oft",
    "BOFT": "boft",
    "GLoRA": "glora",
    "T-LoRA": "tlora",
}
LYCORIS = "lycoris.kohya"


@dataclass(frozen=True)
class NetworkArgs:
    """A network module of a trainer and its arguments."""

    module: str
    arguments: dict[str, str]


def network_args(config: MethodConfig) -> NetworkArgs:
    """Returns the module and the arguments that stand for a configuration.

    DyLoRA never becomes LyCORIS' (`algo=dylora`), whose files have another scale; `unit` tells that it
    can be cut, and `constant_scale`, our own word, how strong the cut is. GLoRA leaves out `rs_lora`, since LyCORIS saves a wrong alpha with it and loaders correct
    that: our alpha is right.
    """
    module = _module(config)
    arguments: dict[str, str] = {}
    if module == LYCORIS:
        arguments["algo"] = ALGORITHMS.get(config.method, "locon")
    if METHODS[config.method].kernels != "never":
        arguments |= _of_kernels(config, module)
    if config.method == "LoRA+":
        arguments["loraplus_lr_ratio"] = f"{config.ratio:g}"
    if config.method == "DyLoRA":
        arguments |= {"unit": str(config.unit), "constant_scale": "True"}
    if module == LYCORIS:
        arguments |= _of_lycoris(config)
    for name, share in (
        ("rank_dropout", config.rank_dropout),
        ("module_dropout", config.module_dropout),
    ):
        if share:
            arguments[name] = f"{share:g}"
    return NetworkArgs(module, arguments)


def _module(config: MethodConfig) -> str:
    own = OF_SD_SCRIPTS.get(config.method, LYCORIS)
    if config.method == "T-LoRA" and config.tlora_format == "LyCORIS":
        return LYCORIS
    more = config.dora or config.train_norms or config.use_tucker or config.rs_lora
    return LYCORIS if own == "networks.lora" and more else own


def _of_kernels(config: MethodConfig, module: str) -> dict[str, str]:
    """Returns the arguments of convolutions with kernels; LyCORIS trains them unless told not to."""
    if not config.trains_kernels:
        return {"conv_dim": "0"} if module == LYCORIS else {}
    if module == "networks.oft":
        return {"enable_conv": "True"}
    rank, alpha = config.of_kernels()
    return {"conv_dim": str(rank), "conv_alpha": f"{alpha:g}"}


def _of_lycoris(config: MethodConfig) -> dict[str, str]:
    """Returns LyCORIS' own arguments that are not at their defaults."""
    method, switches = config.method, {"train_norm": config.train_norms}
    arguments: dict[str, str] = {}
    if METHODS[method].takes_dora:
        switches |= {
            "dora_wd": config.dora,
            "use_tucker": config.use_tucker,
            "rs_lora": config.rs_lora,
        }
        if config.dora:
            arguments["wd_on_output"] = str(config.dora_on == "outputs")
        if config.dropout:
            arguments["dropout"] = f"{config.dropout:g}"
    if method == "LoKr":
        arguments["factor"] = str(config.factor)
        switches |= {
            "full_matrix": config.full_matrix,
            "decompose_both": config.decompose_both,
            "unbalanced_factorization": config.unbalanced,
        }
    if method in ("Diag-OFT", "BOFT"):
        switches["rescaled"] = config.rescaled
        if config.constraint:
            arguments["constraint"] = f"{config.constraint:g}"
    return arguments | {name: "True" for name, on in switches.items() if on}
