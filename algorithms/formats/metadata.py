"""The metadata of adapter files: every key that is read or written, and what it means."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AdapterMetadata:
    """The strings of a file's header, with the readings that loading needs."""

    strings: Mapping[str, str]

    @property
    def network_module(self) -> str:
        """The trainer's module, `networks.lora` for instance (sd-scripts); empty if unknown."""
        return self.strings.get("ss_network_module", "")

    @property
    def network_args(self) -> dict[str, Any]:
        """The trainer's arguments (sd-scripts `ss_network_args`)."""
        return _json_object(self.strings.get("ss_network_args"))

    @property
    def network_alpha(self) -> float | None:
        """Alpha of the whole network, which counts only where tensors of alpha are missing."""
        return _number(self.strings.get("ss_network_alpha"))

    @property
    def architecture(self) -> str:
        """What the file says it was made for; a hint, since metadata can lie. Empty if unknown."""
        return self.strings.get("modelspec.architecture") or self.strings.get(
            "ss_base_model_version", ""
        )

    @property
    def is_lycoris_dylora(self) -> bool:
        """Whether LyCORIS trained it as DyLoRA."""
        return self.network_args.get("algo") == "dylora"

    @property
    def is_dylora(self) -> bool:
        """Whether the ranks are ordered, so that the first ones can be used alone."""
        return self.is_lycoris_dylora or self.network_module == "networks.dylora"

    @property
    def training(self) -> str | None:
        """The training method where it leaves no mark in the tensors: LoRA-FA, LoRA+, DyLoRA."""
        if self.network_module == "networks.lora_fa":
            return "LoRA-FA"
        if self.is_dylora:
            return "DyLoRA"
        if any(key.startswith("loraplus_") for key in self.network_args):
            return "LoRA+"
        return None

    @property
    def dylora_alpha_factor(self) -> float:
        """What the alpha of a DyLoRA file must be multiplied by to act as it was trained.

        LyCORIS trains with alpha / blocks and saves alpha, which every loader divides by ranks:
        the factor is its block size (default 4). sd-scripts needs none.
        """
        if not self.is_lycoris_dylora:
            return 1.0
        return _number(self.network_args.get("block_size")) or 4.0

    def peft_alpha(self, module: str, rank: int) -> float | None:
        """Returns the alpha that gives the scale of PEFT's configuration of this module.

        PEFT writes no alpha into the tensors; diffusers keeps the configuration under
        `lora_adapter_metadata`, one set of keys a component (`unet.r`, `unet.lora_alpha`).
        With `use_rslora` the scale is lora_alpha / sqrt(rank) (Kalajdzievski 2023,
        arXiv 2312.03732). Patterns override rank and alpha of single modules, by PEFT's rule: a
        key counts if the module's name ends with it.

        Args:
            module: Module name as in the file.
            rank: R of its tensors.
        """
        config = _json_object(self.strings.get("lora_adapter_metadata"))
        component = module.partition(".")[0] + "."
        own = {key.removeprefix(component): value for key, value in config.items()}
        alpha = _by_pattern(own.get("alpha_pattern"), module, own.get("lora_alpha"))
        if alpha is None:
            return None
        return alpha * rank**0.5 if own.get("use_rslora") else alpha


def _by_pattern(patterns: Any, module: str, default: Any) -> float | None:
    """Returns the number of the first pattern that a module's name ends with, else the default."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return _number(value)
    return _number(default)


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:  # a foreign tool's business; the tensors still say what they are
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
