"""The metadata of adapter files: every key that is read or written, and what it means."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..adapters.base import Origin, Setting, Tool
from ..errors import FormatError
from .peft import by_pattern, of_module


@dataclass(frozen=True)
class AdapterMetadata:
    """The strings of a file's header, with the readings that loading needs."""

    strings: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """PEFT's `adapter_config.json` beside the file; empty where there is none."""

    @property
    def network_module(self) -> str:
        """The trainer's module, `networks.lora` for instance (sd-scripts); empty if unknown."""
        return self.strings.get("ss_network_module", "")

    @cached_property
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
    def is_settled(self) -> bool:
        """Whether the tensors and `settings` say everything, and nothing else of the header counts."""
        return SETTLED in self.strings

    def settings(self, module: str, method: str) -> Mapping[str, Setting]:
        """Returns what a settled file says of an adapter besides its tensors: field -> value.

        Args:
            module: Module name as in the file.
            method: Name of the method.

        Raises:
            FormatError: It cannot be read.
        """
        return self._settings.of(module, method)

    @property
    def modules_with_settings(self) -> tuple[str, ...]:
        """Returns the modules of which a settled file says something of their own."""
        tables = self._settings.methods.values()
        return tuple(dict.fromkeys(module for table in tables for module in table["others"]))

    @cached_property
    def _settings(self) -> "Settings":
        return Settings.read(self.strings[SETTLED])

    def tool(self, module: str) -> Tool | None:
        """Returns which tool made a module, by the header or by a prefix that only it writes."""
        if self.config or PEFT_CONFIG in self.strings:
            return "peft"
        if self.network_module.startswith("networks."):
            return "kohya"
        if self.network_module.startswith("lycoris"):
            return "lycoris"
        if any(key in self.strings for key in ("ot_config", "ot_branch", "ot_revision")):
            return "onetrainer"
        if "ai-toolkit" in self.strings.get("software", ""):
            return "ai-toolkit"
        for prefix, tool in TOOL_PREFIXES.items():
            if module.startswith(prefix):
                return tool
        return None

    def origin(self, module: str) -> Origin:
        """Returns what is said of one module outside of its tensors.

        PEFT keeps everything but the tensors in its configuration: diffusers writes it into the
        header under `lora_adapter_metadata`, with the component before each key (`unet.r`), PEFT
        itself into `adapter_config.json` beside the file. Patterns override rank and alpha of
        single modules.

        Args:
            module: Module name as in the file.
        """
        tool = self.tool(module)
        if tool == "peft":
            options = of_module(self._peft_config, module)
            default = options.get("lora_alpha", options.get("alpha"))
            alpha = _number(by_pattern(options.get("alpha_pattern"), module, default))
            rank = _number(by_pattern(options.get("rank_pattern"), module, options.get("r")))
            return Origin(tool, alpha, options, module, _whole(rank))
        if tool == "onetrainer":
            return Origin(tool, None, self._onetrainer_config, module)
        rank = _whole(_number(self.strings.get("ss_network_dim")))
        return Origin(tool, self.network_alpha, self.network_args, module, rank)

    def keeps_whole(self, module: str) -> bool:
        """Whether PEFT stored a layer whole, beside its adapters, under its plain name.

        `modules_to_save` names layers by how their path ends, or something that they are part of.

        Args:
            module: Module name as in the file.
        """
        if not self._peft_config:
            return False
        saved = of_module(self._peft_config, module).get("modules_to_save")
        parts = module.split(".")
        paths = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return isinstance(saved, list) and any(
            path.endswith(str(name)) for path in paths for name in saved
        )

    @cached_property
    def _peft_config(self) -> dict[str, Any]:
        return _json_object(self.strings.get(PEFT_CONFIG)) or dict(self.config)

    @cached_property
    def _onetrainer_config(self) -> dict[str, Any]:
        return _json_object(self.strings.get("ot_config"))


PEFT_CONFIG = "lora_adapter_metadata"
"""Key of the header that diffusers keeps PEFT's configuration in."""
SETTLED = "anyadapter_settled"
"""Key of the header by which a file of ours says that its tensors need no completing, and what
they do not hold: `{"version": 1, "methods": {method: {"usual": {field: value}, "others":
{module: {field: value}}}}}`."""
SETTLED_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """What the tensors of a settled file do not hold, by method."""

    methods: Mapping[str, Mapping[str, Any]]
    """Method -> its usual settings, and those of modules that have others."""

    @classmethod
    def read(cls, text: str) -> "Settings":
        """Returns what `written` gave.

        Raises:
            FormatError: It is damaged, or of a later version.
        """
        said = _json_object(text)
        if said.get("version") != SETTLED_VERSION:
            raise FormatError(
                f"the header's {SETTLED} is of version {said.get('version')}, and only "
                f"{SETTLED_VERSION} is known here. Update Any Adapter."
            )
        methods = said.get("methods")
        if not isinstance(methods, dict) or not all(map(_is_table, methods.values())):
            raise FormatError(
                f"the header's {SETTLED} is damaged. Save or download the file again."
            )
        return cls(methods)

    @classmethod
    def gathered(cls, said: Mapping[str, Mapping[str, Mapping[str, Setting]]]) -> "Settings":
        """Returns settings in short: most layers of a file have the same.

        Args:
            said: Method -> module -> its settings.
        """
        methods: dict[str, dict[str, Any]] = {}
        for method, modules in said.items():
            spelled = Counter(json.dumps(one, sort_keys=True) for one in modules.values())
            usual = json.loads(spelled.most_common(1)[0][0])
            others = {module: dict(one) for module, one in modules.items() if one != usual}
            if usual or others:
                methods[method] = {"usual": usual, "others": others}
        return cls(methods)

    def written(self) -> str:
        """Returns the text for the header."""
        return json.dumps({"version": SETTLED_VERSION, "methods": self.methods})

    def of(self, module: str, method: str) -> Mapping[str, Setting]:
        """Returns the settings of an adapter."""
        table = self.methods.get(method, {"usual": {}, "others": {}})
        return table["others"].get(module, table["usual"])


def _is_table(found: Any) -> bool:
    """Whether something read is the settings of a method: the usual ones and those of modules."""
    others = found.get("others") if isinstance(found, dict) else None
    every = [found.get("usual"), *others.values()] if isinstance(others, dict) else [None]
    return all(
        isinstance(one, dict) and all(isinstance(value, Setting) for value in one.values())
        for one in every
    )


TOOL_PREFIXES: dict[str, Tool] = {
    "base_model.model.": "peft",
    "oft_unet_": "kohya",
    "lycoris_": "lycoris",
}


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (
        ValueError,
        RecursionError,
    ):  # a foreign tool's business; the tensors still say what they are
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: float | None) -> int | None:
    return int(value) if value else None
