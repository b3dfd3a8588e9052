"""Writes an adapter set: the inverse of parsing."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..adapters import Adapter
from ..adapters.base import ALPHA, Setting, Spelling, times
from ..adapters.diff import Diff
from ..adapters.dora import Dora
from ..adapters.glora import Glora, GloraOld
from ..adapters.loha import Loha, LohaTucker
from ..adapters.lokr import Lokr
from ..adapters.lora import Lora, LoraTucker
from ..adapters.tlora import Tlora
from ..errors import EditingError
from . import peft
from .embeddings import embedding_tensors
from .metadata import PEFT_CONFIG, SETTLED, Settings
from .parse import COMMON, AdapterSet


def to_tensors(
    adapter_set: AdapterSet, spelling: Spelling = "kohya"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a file that holds this set.

    Each role is written with its first spelling, so the spelling of the file that was read may
    change, the names of the modules do not. A tensor that serves all modules is written once, where
    PEFT has it; its configuration goes into the header.

    Args:
        adapter_set: The set.
        spelling: `peft` writes what PEFT and diffusers read: factors with the scale in them and no
            alpha, with a configuration for them in the header.

    Raises:
        EditingError: PEFT has no place for a method, or a layer has two adapters of one.
    """
    adapter_set = for_peft(adapter_set) if spelling == "peft" else adapter_set
    strings = dict(adapter_set.metadata.strings)
    if adapter_set.metadata.config:
        strings[PEFT_CONFIG] = json.dumps(adapter_set.metadata.config)
    tensors: dict[str, Tensor] = {}
    for module, adapters in adapter_set.adapters.items():
        names = [one.name for one in adapters]
        for adapter in adapters:
            if names.count(adapter.name) > 1:
                raise EditingError(
                    f"{module} has two adapters of {adapter.name}, and a file holds one. "
                    "Combine them into one first (Combine Adapters)."
                )
            for suffix, value in adapter.stored(spelling).items():
                tensor = torch.as_tensor(value)
                key = _common_key(module, suffix) if suffix in COMMON else module + suffix
                if tensors.setdefault(key, tensor) is tensor:
                    continue
                if suffix in COMMON:
                    tensors[module + suffix] = tensor  # another file's, joined to this set
                elif suffix not in ALPHA.suffixes or not torch.equal(tensors[key], tensor):
                    raise EditingError(
                        f"{module} has {' and '.join(one.label for one in adapters)}, each with its "
                        f"own {suffix[1:]}, and a file holds one. Convert one of them first "
                        "(Convert Adapter)."
                    )
    tensors.update(embedding_tensors(adapter_set.embeddings))
    return tensors, strings


def for_peft(adapter_set: AdapterSet) -> AdapterSet:
    """Returns the set as PEFT keeps it, with the configuration that PEFT and diffusers read it by.

    PEFT has a bias in all LoRAs of a model or in none: those without one get zeros. Names of the
    host's own get no configuration, as no other tool would look for one there.

    Raises:
        EditingError: PEFT has no place for a method.
    """
    adapters: dict[str, tuple[Adapter, ...]] = {}
    facts: dict[str, peft.LoraFacts] = {}
    for module, several in adapter_set.adapters.items():
        kept = [one.for_peft() for one in several]
        (adapter, *others) = kept
        lora = _innermost(adapter) if adapter else None
        if others or adapter is None or not isinstance(lora, Lora):
            names = " and ".join(one.label for one in several)
            raise EditingError(
                f"{module} is {names}, for which PEFT and diffusers have no place. Convert it to "
                "LoRA first (Convert Adapter), or save it for another tool."
            )
        adapters[module] = (adapter,)
        facts[module] = peft.LoraFacts(
            lora.rank, decomposed=adapter is not lora, biased=lora.bias is not None
        )
    config = peft.lora_config(facts)
    biased = {peft.component(module) for module, one in facts.items() if one.biased}
    adapters = {
        module: (_with_bias(adapter) if peft.component(module) in biased else adapter,)
        for module, (adapter,) in adapters.items()
    }
    strings = {
        key: text for key, text in adapter_set.metadata.strings.items() if key != PEFT_CONFIG
    }
    if peft.OF_HOST not in map(peft.component, adapters):
        strings[PEFT_CONFIG] = json.dumps(config)
    metadata = replace(adapter_set.metadata, strings=strings, config={})
    return replace(adapter_set, adapters=adapters, metadata=metadata)


def _with_bias(adapter: Adapter) -> Adapter:
    """Returns a LoRA that changes the bias, if only by zeros."""
    if not isinstance(adapter, Lora) or adapter.bias is not None:
        return adapter
    return replace(adapter, bias=adapter.up.new_zeros(adapter.up.shape[0]))


def for_kohya(adapter_set: AdapterSet) -> AdapterSet:
    """Returns the set as the tools beside PEFT keep it: with what they read in its place.

    The bias of a LoRA becomes a change of the bias (`diff_b`), as ComfyUI drops the other. Methods
    that share a layer and its alpha are brought to the same one.
    """
    adapters = {
        module: _with_one_alpha(_biases_apart(several))
        for module, several in adapter_set.adapters.items()
    }
    return replace(adapter_set, adapters=adapters)


def _biases_apart(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
    shift: Tensor | None = None
    kept: list[Adapter] = []
    for adapter in adapters:
        lora = _innermost(adapter)
        if not isinstance(lora, Lora | LoraTucker) or lora.bias is None:
            kept.append(adapter)
            continue
        own = lora.delta_bias(None)
        shift = own if shift is None or own is None else shift + own
        bare = replace(lora, bias=None)
        kept.append(replace(adapter, inner=bare) if isinstance(adapter, Dora) else bare)
    if shift is None:
        return adapters
    for place, adapter in enumerate(kept):
        if isinstance(adapter, Diff):
            known = adapter.diff_b
            kept[place] = replace(adapter, diff_b=shift if known is None else shift + known)
            return tuple(kept)
    return (*kept, Diff(diff_b=shift))


SCALED = (Lora, LoraTucker, Loha, LohaTucker, Lokr, Glora, GloraOld, Tlora)
"""Methods whose scale every tool reads as alpha / rank from the tensors."""
SCALED_BY_PEFT = (Lora, LoraTucker, Loha, LohaTucker, Lokr)
"""Those for which PEFT reads alpha from its configuration instead."""


FACTORS = ("up", "w1_a", "w1")
"""Tensors of a method whose scale is read from alpha: the first that is there scales its change."""


def _with_one_alpha(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
    """Returns adapters of one layer with the alpha of the first; the others' factors take the rest.

    Other methods with an alpha keep theirs, and `to_tensors` refuses it where it is not the same.
    """
    alphas = {one.alpha for one in adapters if isinstance(one, SCALED_BY_PEFT)}
    if len(alphas) < 2:
        return adapters
    alpha = next(one.alpha for one in adapters if isinstance(one, SCALED_BY_PEFT))
    made: list[Adapter] = []
    for adapter in adapters:
        if isinstance(adapter, SCALED_BY_PEFT):
            tensors = adapter.tensors()
            name = next(one for one in FACTORS if one in tensors)
            same = replace(adapter, alpha=alpha)
            factor = times(tensors[name], adapter.scale / same.scale)
            made.append(same.with_tensors({name: factor}))
        else:
            made.append(adapter)
    return tuple(made)


def settled(adapter_set: AdapterSet) -> AdapterSet:
    """Returns a completed set with a header that says so: what is saved is read back the same.

    What its header alone said is now in the adapters; without a word on it, it would be applied
    again at the next load. Alpha is written out even where it is the rank, as LyCORIS needs it.
    DoRA's magnitudes get the name that is read beside `lora_up`. PEFT's configuration goes where it
    would scale a second time in diffusers or in PEFT.

    Args:
        adapter_set: The set, after `as_trained`.
    """
    adapters = {
        module: tuple(_spelled_out(one) for one in several)
        for module, several in adapter_set.adapters.items()
    }
    said: dict[str, dict[str, Mapping[str, Setting]]] = defaultdict(dict)
    for module, several in adapters.items():
        for adapter in several:
            said[adapter.name][module] = adapter.unstored()
    metadata = adapter_set.metadata
    strings = {**metadata.strings, SETTLED: Settings.gathered(said).written()}
    every = [one for several in adapters.values() for one in several]
    if any(isinstance(_innermost(one), SCALED_BY_PEFT) for one in every):
        strings.pop(PEFT_CONFIG, None)
        metadata = replace(metadata, config={})
    return replace(adapter_set, adapters=adapters, metadata=replace(metadata, strings=strings))


def _innermost(adapter: Adapter) -> Adapter:
    return adapter.inner if isinstance(adapter, Dora) else adapter


def _spelled_out(adapter: Adapter) -> Adapter:
    """Returns the adapter with the alpha that makes its scale, and magnitudes that others read."""
    if isinstance(adapter, Dora):
        return replace(adapter.for_others(), inner=_spelled_out(adapter.inner))
    if not isinstance(adapter, SCALED) or adapter.alpha:
        return adapter
    return replace(adapter, alpha=float(adapter.rank or 1))


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors on the CPU of which none has memory that is another's, as the format needs it."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.nbytes or storage.data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        apart[name] = own
    return apart


def _common_key(module: str, suffix: str) -> str:
    """Returns where a tensor stands that serves all modules of a model: beside the model's name."""
    start, dot, _ = module.partition(".")
    return start + suffix if dot else suffix[1:]
