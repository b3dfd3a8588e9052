"""Parses a file: key -> (module name, role) -> method, for each module on its own."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..adapters import ADAPTERS, Adapter, Role
from ..errors import FormatError, MissingTensorError, NonFiniteError, ShapeError, listed
from ..shapes import check_fields
from .metadata import AdapterMetadata
from .read import RawFile

Suffixes = dict[str, str]
"""Suffix -> key, the tensors of one module."""


@dataclass(frozen=True, eq=False)
class AdapterSet:
    """All adapters of one file."""

    source: str
    """The file name, for messages."""
    adapters: Mapping[str, tuple[Adapter, ...]]
    """Module name -> its adapters: one, or several methods that are added."""
    metadata: AdapterMetadata
    unclaimed: tuple[str, ...] = ()
    """Keys that no method understands."""

    def sliced(self, rank: int) -> "AdapterSet":
        """Returns the set with every low-rank adapter cut to its first `rank` ranks."""

        def slice_one(_: str, adapter: Adapter) -> Adapter:
            return adapter.sliced(rank)

        return self._each(slice_one)

    def as_trained(self) -> "AdapterSet":
        """Returns the set with each alpha as training meant it, where the tensors do not say it.

        A missing alpha comes from PEFT's configuration in the metadata, or from
        `ss_network_alpha`; that of a LyCORIS DyLoRA is corrected (`dylora_alpha_factor`).
        """
        return self._each(self._with_alpha)

    def _with_alpha(self, module: str, adapter: Adapter) -> Adapter:
        alpha: float | None = getattr(adapter, "alpha", None)
        rank = adapter.rank
        if rank is None:
            return adapter
        if alpha is None:
            alpha = self.metadata.peft_alpha(module, rank) or self.metadata.network_alpha
        if not alpha:
            return adapter
        changed: dict[str, Any] = {"alpha": alpha * self.metadata.dylora_alpha_factor}
        return replace(adapter, **changed)

    def _each(self, change: Callable[[str, Adapter], Adapter]) -> "AdapterSet":
        return replace(
            self,
            adapters={
                module: tuple(change(module, adapter) for adapter in adapters)
                for module, adapters in self.adapters.items()
            },
        )


def parse_file(raw: RawFile) -> AdapterSet:
    """Finds the adapters of a file.

    Raises:
        FormatError: No tensor belongs to a known method, or two methods fit the same tensors.
        MissingTensorError: A module lacks a tensor that its method requires.
        NonFiniteError: A tensor holds NaN or infinity.
        ShapeError: The tensors of a module contradict each other.
    """
    return parse_tensors({key: raw.tensor(key) for key in raw.shapes}, raw.metadata, raw.name)


def parse_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str
) -> AdapterSet:
    """Finds the adapters among named tensors; see `parse_file`."""
    modules, unclaimed = _by_module(tensors)
    adapters: dict[str, tuple[Adapter, ...]] = {}
    incomplete: list[str] = []
    for module, suffixes in modules.items():
        claims = _claims(suffixes)
        claimed = {suffix for claim in claims for suffix in claim.suffixes.values()}
        left = [suffix for suffix in suffixes if suffix not in claimed]
        incomplete += [
            f"{module} has {suffix[1:]}, {_lack(suffix)}" for suffix in left if _owned(suffix)
        ]
        unclaimed += [suffixes[suffix] for suffix in left]
        if claims:
            adapters[module] = tuple(
                _build(claim, suffixes, tensors, f"{source}: {module}") for claim in claims
            )
    if incomplete:
        raise MissingTensorError(
            f"{source} is incomplete: {listed(incomplete, 3, '; ')}. Download or save it again."
        )
    if not adapters:
        raise FormatError(_why_nothing(tensors, source))
    return AdapterSet(source, adapters, AdapterMetadata(dict(metadata)), tuple(unclaimed))


@dataclass(frozen=True)
class _Claim:
    """A method that takes some tensors of a module."""

    method: type[Adapter]
    suffixes: dict[str, str]
    """Field -> suffix found."""

    @property
    def own(self) -> set[str]:
        """The suffixes that no other method may take as well."""
        shared = {role.field for role in self.method.roles if role.shared}
        return {suffix for name, suffix in self.suffixes.items() if name not in shared}


def _roles() -> dict[str, list[tuple[type[Adapter], Role]]]:
    """Returns suffix -> the methods and roles that know it, longest suffix first."""
    table: dict[str, list[tuple[type[Adapter], Role]]] = defaultdict(list)
    for method in ADAPTERS:
        for role in method.roles:
            for suffix in role.suffixes:
                table[suffix].append((method, role))
    return {suffix: table[suffix] for suffix in sorted(table, key=len, reverse=True)}


SUFFIXES = _roles()


def _by_module(keys: Iterable[str]) -> tuple[dict[str, Suffixes], list[str]]:
    """Splits keys at their longest known suffix; returns also those that have none."""
    modules: dict[str, Suffixes] = defaultdict(dict)
    unknown: list[str] = []
    for key in keys:
        suffix = next((suffix for suffix in SUFFIXES if key.endswith(suffix)), None)
        if suffix is None or suffix == key:
            unknown.append(key)
        else:
            modules[key.removesuffix(suffix)][suffix] = key
    return modules, unknown


def _claims(suffixes: Suffixes) -> list[_Claim]:
    """Returns the methods that the tensors of one module make.

    A method claims when all its required roles are there, and none of its own ones is taken by
    a method that claims more (LoRA's Tucker form over LoRA).
    """
    claims: list[_Claim] = []
    for method in ADAPTERS:
        found: dict[str, str] = {}
        for role in method.roles:
            spelled = [suffix for suffix in role.suffixes if suffix in suffixes]
            if spelled:
                found[role.field] = spelled[0]
        claim = _Claim(method, found)
        if claim.own and all(role.field in found for role in method.roles if role.required):
            claims.append(claim)
    claims = [claim for claim in claims if not any(claim.own < other.own for other in claims)]
    for first, second in itertools.combinations(claims, 2):
        if first.own & second.own:
            raise FormatError(
                f"{', '.join(sorted(suffixes.values()))} can be read as {first.method.name} and as "
                f"{second.method.name}; Any Adapter does not guess between them."
            )
    return claims


def _build(claim: _Claim, suffixes: Suffixes, tensors: Mapping[str, Tensor], where: str) -> Adapter:
    """Makes the adapter of a claim from its tensors, checked."""
    values: dict[str, Any] = {}
    for role in claim.method.roles:
        if role.field not in claim.suffixes:
            continue
        key = suffixes[claim.suffixes[role.field]]
        if role.scalar:
            values[role.field] = _scalar(tensors[key], key, where)
        else:
            values[role.field] = _finite(tensors[key], key, where)
    check_fields(claim.method, {k: v for k, v in values.items() if isinstance(v, Tensor)}, where)
    return claim.method(**values)


def _scalar(tensor: Tensor, key: str, where: str) -> float | None:
    """Returns a one-element tensor as a number; one that overflowed its dtype counts as missing."""
    if tensor.numel() != 1:
        raise ShapeError(f"{where}: {key} should be one number and has shape {list(tensor.shape)}.")
    value = tensor.float().item()
    return value if torch.isfinite(torch.tensor(value)) else None


def _finite(tensor: Tensor, key: str, where: str) -> Tensor:
    """Returns the tensor if all its numbers are finite."""
    numbers = (
        tensor if tensor.dtype.itemsize > 1 or not tensor.is_floating_point() else tensor.float()
    )
    if not torch.isfinite(numbers).all():
        raise NonFiniteError(
            f"{where}: {key} contains NaN or infinity. It would turn every picture black; "
            "the training went wrong or the file is damaged. Use an earlier save."
        )
    return tensor


def _owned(suffix: str) -> bool:
    """Whether a suffix belongs to a method that needs another tensor beside it."""
    return any(not role.shared for _, role in SUFFIXES[suffix])


def _lack(suffix: str) -> str:
    """Says what a module lacks that has this suffix and makes no adapter."""
    method, _ = SUFFIXES[suffix][0]
    needed = [role.suffixes[0][1:] for role in method.roles if role.required]
    return f"but {method.name} needs {' and '.join(needed)}"


CHECKPOINT_STARTS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")


def _why_nothing(keys: Iterable[str], source: str) -> str:
    """Says what a file seems to be that holds no adapter."""
    keys = list(keys)
    if any(key.startswith(CHECKPOINT_STARTS) for key in keys):
        return f"{source} is a checkpoint, not an adapter: load it with Load Checkpoint."
    if any("string_to_param" in key or key in ("emb_params", "clip_l", "clip_g") for key in keys):
        return f"{source} is a textual inversion embedding, not an adapter: put it in embeddings."
    return (
        f"{source} holds no adapter that is known: none of its {len(keys)} tensors has a known "
        f"ending. Its first ones are {', '.join(keys[:3])}."
    )
