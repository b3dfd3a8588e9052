"""What PEFT and diffusers write: which types there are, and what their configuration means.

A type is known by its tensors' names; `adapter_config.json` names it too. Source: PEFT 0.21.2,
`peft.tuners` for the names and `peft.utils.other.get_pattern_key` for patterns.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import EditingError, counted, listed


@dataclass(frozen=True)
class PeftType:
    """A type of adapter in PEFT."""

    title: str
    """What the user reads."""
    mark: str
    """Pattern that a key of such a file contains."""
    refused: str = ""
    """Why it cannot be loaded; empty for types that are."""
    alone: bool = True
    """Whether the other tensors of a file mean nothing without those that are refused."""


NO_WEIGHT = "it is no change of weights"
ROUTED = "it chooses among its parts by what runs through the model, so it is no change of weights"

PEFT_TYPES: dict[str, PeftType] = {
    "LORA": PeftType("LoRA", r"\.lora_(embedding_)?[AB]\b"),
    "ADALORA": PeftType("AdaLoRA", r"\.lora_E\b"),
    "LOHA": PeftType("LoHa", r"\.hada_"),
    "LOKR": PeftType("LoKr", r"\.lokr_"),
    "IA3": PeftType("(IA)^3", r"\.ia3_l\b"),
    "OFT": PeftType("OFT", r"\.oft_(embedding_)?[rRs]\b"),
    "BOFT": PeftType("BOFT", r"\.boft_"),
    "VERA": PeftType("VeRA", r"\.vera_"),
    "PVERA": PeftType("PVeRA", r"\.pvera_"),
    "FOURIERFT": PeftType("FourierFT", r"\.fourierft_"),
    "WAVEFT": PeftType("WaveFT", r"\.waveft_"),
    "HRA": PeftType("HRA", r"\.hra_"),
    "MISS": PeftType("MiSS", r"\.miss_"),
    "BONE": PeftType("Bone", r"\.bone_"),
    "DELORA": PeftType("DeLoRA", r"\.delora_"),
    "RANDLORA": PeftType("RandLoRA", r"\.randlora_"),
    "VBLORA": PeftType("VB-LoRA", r"\.vblora_"),
    "C3A": PeftType("C3A", r"\.c3a_"),
    "SHIRA": PeftType("SHiRA", r"\.shira_"),
    "ROAD": PeftType("RoAd", r"\.road_"),
    "GRALORA": PeftType("GraLoRA", r"\.gralora_"),
    "GLORA": PeftType("GLoRA", r"\.glora_"),
    "HIRA": PeftType("HiRA", r"\.hira_"),
    "DEFT": PeftType("DEFT", r"\.deft_"),
    "PEANUT": PeftType("PEANuT", r"\.peanut_"),
    "OSF": PeftType("OSF", r"\.osf_"),
    "LN_TUNING": PeftType("LN tuning", r"\.ln_tuning_layers\b"),
    "BEFT": PeftType("BEFT", r"\.beft_bias\b"),
    "UNILORA": PeftType("Uni-LoRA", r"\bunilora_"),
    "PSOFT": PeftType(
        "PSOFT",
        r"\.psoft_",
        "it turns the singular vectors of the base weight, whose signs the file does not keep. "
        "Merge it in the tool that trained it and extract a LoRA",
    ),
    "TINYLORA": PeftType(
        "TinyLoRA",
        r"\btinylora_",
        "which of its shared vectors belongs to which layer follows from the order of the modules "
        "in its trainer, which the file does not keep",
    ),
    "FROD": PeftType(
        "FRoD",
        r"\bfrod_",
        "it rebuilds layers from a joint decomposition of the base weights, which is not done here",
    ),
    "ADAMSS": PeftType(
        "AdaMSS",
        r"\.adamss_",
        "its parts are clusters of the base weight, found anew at each load by a random search",
    ),
    "SUPERTUNING": PeftType("SuperTuning", r"\.supertuning_"),
    "KASA": PeftType(
        "KaSA", r"\.lora_diag\b", "it is trained on a base weight without its smallest directions"
    ),
    "MONTECLORA": PeftType("MonteCLoRA", r"monteclora", "its factors are drawn at random"),
    "POLY": PeftType("Poly", r"\.poly_(lora|router)", ROUTED),
    "LILY": PeftType("Lily", r"\.lily_", ROUTED),
    "XLORA": PeftType("X-LoRA", r"xlora_", ROUTED),
    "ADAPTION_PROMPT": PeftType("adaption prompt", r"\badaption_(prompt|gate)", NO_WEIGHT),
    "PROMPT_TUNING": PeftType(
        "prompt, prefix or p-tuning", r"\b(prompt_embeddings|prefix_task_(cols|rows))\b", NO_WEIGHT
    ),
    "SHADOW": PeftType("Shadow", r"\bshadow_", "it is a second model beside the first"),
    "TRAINABLE_TOKENS": PeftType(
        "trainable tokens",
        r"\btrainable_tokens_(delta|original)\b",
        "rows of the token table, of which the file does not say which",
        alone=False,
    ),
}

SAME_NAMES = {
    "P_TUNING": "PROMPT_TUNING",
    "PREFIX_TUNING": "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING": "PROMPT_TUNING",
    "CPT": "PROMPT_TUNING",
    "CARTRIDGE": "PROMPT_TUNING",
}
"""Types whose tensors have the names of another one's."""


def refused(keys: Iterable[str]) -> PeftType | None:
    """Returns the type of PEFT that some keys belong to and that cannot be loaded, if any."""
    text = "\n".join(keys)
    found = (
        known for known in PEFT_TYPES.values() if known.refused and re.search(known.mark, text)
    )
    return next(found, None)


def title(keys: Iterable[str]) -> str:
    """Returns the type of PEFT that some keys belong to; empty for none."""
    text = "\n".join(keys)
    found = (known.title for known in PEFT_TYPES.values() if re.search(known.mark, text))
    return next(found, "")


def misfit(
    config: Mapping[str, Any],
    keys: Sequence[str],
    ranks: Mapping[str, int],
    strings: Mapping[str, str],
) -> str:
    """Returns why an `adapter_config.json` cannot belong to a file beside it; empty if it can.

    A folder of many files has one such name only, so it may have been left by another file.

    Args:
        config: The configuration.
        keys: All keys of the file.
        ranks: Module name -> rank, of methods that have one.
        strings: The header of the file.
    """
    other = [key for key in ("ss_network_module", "ot_config", "software") if key in strings]
    if other:
        return f"the file's own header names another tool ({other[0]})"
    name = str(config.get("peft_type", ""))
    known = PEFT_TYPES.get(SAME_NAMES.get(name, name))
    text = "\n".join(keys)
    if known is None:
        return f"its type {name or '(none)'} is unknown"
    if not re.search(known.mark, text):
        return f"it is for {known.title}, whose tensors the file does not have"
    if name == "LORA" and re.search(PEFT_TYPES["ADALORA"].mark, text):
        return "it is for LoRA, the file is AdaLoRA"
    targets = config.get("target_modules")
    for module, rank in ranks.items():
        if isinstance(targets, list) and not _is_target(module, targets):
            return f"{module} is none of its target modules"
        expected = _expected_rank(config, module)
        if expected is not None and expected != rank:
            return f"{module} has rank {rank}, it says {expected:g}"
    return ""


def of_module(config: Mapping[str, Any], module: str) -> dict[str, Any]:
    """Returns the part of a header's configuration that is about one module.

    diffusers puts the component before each key (`unet.r`), unless it saves a single model.

    Args:
        config: The configuration, as in `lora_adapter_metadata`.
        module: Module name as in the file.
    """
    for prefix in {key.rpartition(".")[0] for key in config if "." in key}:
        if module.removeprefix(WRAPPER).startswith(prefix + "."):
            start = prefix + "."
            return {
                key.removeprefix(start): value
                for key, value in config.items()
                if key.startswith(start)
            }
    return {key: value for key, value in config.items() if "." not in key}


def by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """Returns the value of the first pattern that fits a module's name, else the default.

    The rule of PEFT's `get_pattern_key`: a pattern fits the end of a name from a dot on; one that
    starts with `^` is about the whole name, which PEFT counts from the model that it wraps.
    """
    if not isinstance(patterns, Mapping):
        return default
    name = name_in_model(module)
    return next((value for pattern, value in patterns.items() if _fits(pattern, name)), default)


COMPONENTS = re.compile(r"(unet|transformer(_2)?|text_encoder(_[23])?|diffusion_model)\.")
"""What stands before the names of a model inside of a pipeline."""
OF_HOST = "diffusion_model."
"""The component whose layers have the host's names, which are no names of diffusers."""


WRAPPER = "base_model.model."
"""What PEFT's own wrapper puts before the names of a model."""


def name_in_model(module: str) -> str:
    """Returns a module's name as PEFT counts it: from the model that it wraps.

    What follows PEFT's wrapper is that name. Without it a component of a pipeline stands first.
    """
    if module.startswith(WRAPPER):
        return module.removeprefix(WRAPPER)
    return module.removeprefix(component(module)).removeprefix(WRAPPER)


def component(module: str) -> str:
    """Returns the component of a pipeline that a name begins with, and its dot; empty for none."""
    found = COMPONENTS.match(module)
    return "" if found is None else found.group()


@dataclass(frozen=True)
class LoraFacts:
    """What a configuration says of one LoRA."""

    rank: int
    decomposed: bool = False
    """Whether it has DoRA's magnitudes."""
    biased: bool = False
    """Whether it changes the bias."""


def lora_config(modules: Mapping[str, LoraFacts]) -> dict[str, Any]:
    """Returns the configuration of LoRAs of scale 1.

    The keys have the component of a pipeline before them, as diffusers writes them into a header;
    none has where the names have none, as in PEFT's own `adapter_config.json`.

    Args:
        modules: Module name in the file -> what it is.

    Raises:
        EditingError: PEFT has no configuration for LoRAs of these kinds beside each other.
    """
    by_component: dict[str, dict[str, LoraFacts]] = defaultdict(dict)
    for module, facts in modules.items():
        by_component[component(module)][name_in_model(module)] = facts
    for start, named in by_component.items():
        _require_one_kind(start, named)
    return {
        start + key: value
        for start, named in by_component.items()
        for key, value in _config_of(named).items()
    }


def _require_one_kind(start: str, named: Mapping[str, LoraFacts]) -> None:
    """Checks that PEFT can have these LoRAs in one model.

    Raises:
        EditingError: Some have DoRA and others not, or DoRA changes a bias.
    """
    where = f" of {start.removesuffix('.')}" if start else ""
    with_dora = [name for name, facts in named.items() if facts.decomposed]
    biased = [name for name in with_dora if named[name].biased]
    if biased:
        raise EditingError(
            f"DoRA{where} changes the bias too in {counted(len(biased), 'layer')}, which PEFT and "
            f"diffusers refuse: {listed(biased, 3)}. Save it for another tool."
        )
    without = [name for name, facts in named.items() if not facts.decomposed]
    if with_dora and without:
        raise EditingError(
            f"DoRA is in {len(with_dora)} of {len(named)} layers{where}, for example not in "
            f"{without[0]}, and PEFT and diffusers know it for all layers of a model only. Convert "
            "it to LoRA first (Convert Adapter), or save it for another tool."
        )


def _config_of(named: Mapping[str, LoraFacts]) -> dict[str, Any]:
    """Returns the configuration of the LoRAs of one model: path -> what it is."""
    usual = Counter(facts.rank for facts in named.values()).most_common(1)[0][0]
    ends = {name.split(".", count)[-1] for name in named for count in range(1, name.count(".") + 1)}
    # A pattern fits the end of a path, and this one is about the whole.
    ranks = {
        (f"^{name}" if name in ends else name): facts.rank
        for name, facts in named.items()
        if facts.rank != usual
    }
    return {
        "peft_type": "LORA",
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": ranks,
        "alpha_pattern": dict(ranks),
        "target_modules": sorted(named),
        "use_dora": any(facts.decomposed for facts in named.values()),
        "use_rslora": False,
        "lora_bias": any(facts.biased for facts in named.values()),
        "bias": "none",
    }


def _fits(pattern: str, name: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except (re.error, OverflowError):  # PEFT itself fails on it, so that nobody was trained with it
        return False


def _is_target(module: str, targets: Sequence[Any]) -> bool:
    name = name_in_model(module)
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _expected_rank(config: Mapping[str, Any], module: str) -> float | None:
    """Returns the rank that a configuration gives a module; None for types without one."""
    if config.get("peft_type") == "ADALORA":
        return None  # its ranks shrink while it is trained
    rank = by_pattern(config.get("rank_pattern"), module, config.get("r"))
    return float(rank) if isinstance(rank, int | float) and rank else None


CHANGED_BASES = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "lora_ga": "LoRA-GA",
}
"""Starts of `init_lora_weights` that take the first product out of the base weight."""

VARIANTS = {
    "alora_invocation_tokens": "an activated LoRA, which works after certain tokens only",
    "arrow_config": "part of an Arrow mixture, " + ROUTED,
    "use_qalora": "QA-LoRA, whose input is pooled",
    "use_bdlora": "BD-LoRA, whose factors are split over devices",
    "monteclora_config": "MonteCLoRA, whose factors are drawn at random",
    "kasa_config": "KaSA, which is trained on a base weight without its smallest singular values",
    "layer_replication": "a LoRA on copies of layers, which the model does not have",
    "target_parameters": "a LoRA on stacked parameters (`target_parameters`)",
}
"""Options of a LoRA with another meaning of its tensors, by what they make of it."""


def other_meaning(options: Mapping[str, Any]) -> str:
    """Returns what a configuration makes of LoRA's tensors besides a LoRA; empty for nothing."""
    start = str(options.get("init_lora_weights", ""))
    for name, title in CHANGED_BASES.items():
        if start.startswith(name):
            return (
                f"{title}, trained on a base weight that the start of the training had changed. "
                "Save it in PEFT with `path_initial_model_for_weight_conversion`"
            )
    return next((title for key, title in VARIANTS.items() if options.get(key)), "")


def remark(options: Mapping[str, Any]) -> str:
    """Returns what has to be assumed about a LoRA; empty for nothing."""
    if options.get("init_lora_weights") == "loftq":
        return "the base weight, although LoftQ trained it on one that was quantised"
    return ""
