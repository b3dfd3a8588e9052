"""Parses a file: key -> (module name, role) -> method, for each module on its own."""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..adapters import ADAPTERS, Adapter, Role
from ..adapters.base import ALPHA, Spelling
from ..adapters.diff import Diff, FullRank
from ..adapters.dora import Dora
from ..adapters.lora import UP
from ..adapters.replacement import Replacement
from ..errors import (
    FileError,
    FormatError,
    MissingTensorError,
    NonFiniteError,
    ShapeError,
    counted,
    listed,
)
from ..shapes import check_fields
from . import peft
from .embeddings import Embeddings, is_embedding, split_embeddings
from .metadata import AdapterMetadata
from .read import Header, Progress, RawFile, finite, hollow, no_progress

Suffixes = dict[str, str]
"""Suffix as in the roles -> key, the tensors of one module."""
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Gives the tensors of a file under other names, for layouts that a host translates."""


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
    embeddings: Embeddings = field(default_factory=dict[str, dict[str, Tensor]])
    """Textual inversions that lie in the file beside its adapters."""
    notes: tuple[str, ...] = ()
    """Sentences about what was assumed or corrected."""
    spelling: Spelling = "kohya"
    """How the tensors of its LoRAs were named."""

    def sliced(self, rank: int) -> "AdapterSet":
        """Returns the set with every low-rank adapter cut to its first `rank` ranks."""
        cut = {
            module: tuple(adapter.sliced(rank) for adapter in adapters)
            for module, adapters in self.adapters.items()
        }
        return replace(self, adapters=cut)

    def cut(self, rank: int) -> "AdapterSet":
        """Returns the set cut to its first `rank` ranks, 0 for all, with a note where that is wrong."""
        if rank == 0:
            return self
        cut = self.sliced(rank)
        if self.metadata.is_dylora:
            return cut
        ranks = [adapter.rank for several in cut.adapters.values() for adapter in several]
        larger = sum(1 for one in ranks if one is not None and one > rank)
        notes = [
            f"Cut to rank {rank}, but the file is not marked as DyLoRA: only DyLoRA training puts "
            "the most important ranks first. Set rank to 0 for an ordinary LoRA."
        ]
        if larger:
            notes.append(f"Not cut, as their method has no order of ranks: {larger} layers.")
        return replace(cut, notes=(*cut.notes, *notes))

    def as_trained(self, *, corrections: bool = True) -> "AdapterSet":
        """Returns the set with everything that the header says and the tensors do not.

        Args:
            corrections: Whether to depart from other loaders where the header proves them wrong.
        """
        if self.metadata.is_settled:
            return self._as_settled()
        adapters: dict[str, tuple[Adapter, ...]] = {}
        assumed: Counter[str] = Counter()
        corrected: Counter[str] = Counter()
        for module, parsed in self.adapters.items():
            origin = self.metadata.origin(module)
            if origin.tool == "peft":
                self._require_ordinary(module, parsed, origin.options)
                assumed.update({remark for remark in [peft.remark(origin.options)] if remark})
            completions = [one.completed(origin, corrections=corrections) for one in parsed]
            adapters[module] = tuple(completion.adapter for completion in completions)
            assumed.update({one.assumed for one in completions if one.assumed})
            corrected.update({one.corrected for one in completions if one.corrected})
        notes = _assumptions(assumed)
        notes += [
            f"Corrected, as the metadata prove it, in {counted(count, 'layer')}: {what}."
            for what, count in corrected.items()
        ]
        return replace(self, adapters=adapters, notes=(*self.notes, *notes))

    def _as_settled(self) -> "AdapterSet":
        """Returns the set with the settings that it was saved with.

        Raises:
            FormatError: They cannot be read.
        """
        try:
            lost = [one for one in self.metadata.modules_with_settings if one not in self.adapters]
            adapters = {
                module: tuple(
                    one.with_unstored(self.metadata.settings(module, one.name)) for one in parsed
                )
                for module, parsed in self.adapters.items()
            }
        except FormatError as error:
            raise FormatError(f"{self.source} cannot be loaded: {error}") from error
        every = itertools.chain.from_iterable(adapters.values())
        assumed = Counter(one.assumes for one in every if one.assumes)
        notes = _assumptions(assumed)
        if lost:
            notes.append(
                f"The header has settings for {counted(len(lost), 'module')} that the file does not "
                f"have: {listed(lost, 3)}. If another tool renamed them, they act with those of the "
                "others now."
            )
        return replace(self, adapters=adapters, notes=(*self.notes, *notes))

    def _require_ordinary(
        self, module: str, adapters: Sequence[Adapter], options: Mapping[str, Any]
    ) -> None:
        """Refuses a LoRA that the configuration makes something else of.

        Raises:
            FormatError: It does.
        """
        meaning = peft.other_meaning(options)
        low_rank = any(isinstance(one, Dora) or one.name.startswith("LoRA") for one in adapters)
        if meaning and low_rank:
            raise FormatError(
                f"{self.source} cannot be loaded: its configuration says that {module} is {meaning}."
            )


def _assumptions(assumed: Mapping[str, int]) -> list[str]:
    """Returns sentences about what was assumed: what -> how often."""
    return [
        f"Nothing in the file says it, so it was assumed for {counted(count, 'layer')}: {what}."
        for what, count in assumed.items()
    ]


def parse_file(
    raw: RawFile, convert: Convert | None = None, progress: Progress = no_progress
) -> AdapterSet:
    """Finds the adapters of a file.

    What its header alone proves wrong is said before the numbers of any tensor are read, and only
    those of adapters are.

    Args:
        raw: The file.
        convert: Renames its tensors before they are looked at.
        progress: Told how far the numbers are read.

    Raises:
        FormatError: No tensor belongs to a known method, two methods fit the same tensors, or a
            tensor is of a dtype that its role has no use for.
        MissingTensorError: A module lacks a tensor that its method requires.
        NonFiniteError: A tensor holds NaN or infinity.
        ShapeError: The tensors of a module contradict each other.
    """
    tensors: dict[str, Tensor] = {}
    unreadable: list[str] = []
    for key, form in raw.header.forms.items():
        try:
            tensors[key] = raw.tensor(key)
        except FileError:
            tensors[key] = hollow(form)
            unreadable.append(key)
    named = tensors if convert is None else _converted(dict(tensors), convert, raw.name)
    as_in_file = all(tensors.get(key) is tensor for key, tensor in named.items())
    are_finite = partial(raw.is_finite, progress=progress) if as_in_file else _unknown
    parsed = parse_tensors(named, raw.metadata, raw.name, raw.config, are_finite)
    unclaimed = set(parsed.unclaimed)
    for key in unreadable:
        if key not in unclaimed:
            raw.tensor(key)
    return replace(parsed, notes=(*raw.notes, *parsed.notes))


def _converted(tensors: dict[str, Tensor], convert: Convert, source: str) -> Mapping[str, Tensor]:
    """Returns tensors under other names.

    Raises:
        FormatError: The host took them for a format of which they lack a part.
    """
    try:
        return convert(tensors)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise FormatError(
            f"{source} looks like a format that ComfyUI renames, but lacks a part of it "
            f"({type(error).__name__}: {error}). Save or download it again."
        ) from error


def _unknown(keys: Iterable[str]) -> bool:
    """Says nothing in advance: each tensor is looked at."""
    del keys
    return False


def parse_header(
    header: Header, config: Mapping[str, Any] | None = None, convert: Convert | None = None
) -> AdapterSet:
    """Finds the adapters of a file without their numbers: tensors on the meta device.

    Args:
        header: The header of the file.
        config: PEFT's configuration from a file beside it.
        convert: Renames its tensors before they are looked at.

    Raises:
        FormatError, MissingTensorError, ShapeError: As `parse_file`.
    """
    tensors = {key: hollow(form) for key, form in header.forms.items()}
    tensors = tensors if convert is None else _converted(tensors, convert, header.name)
    return parse_tensors(tensors, header.metadata, header.name, config)


def parse_tensors(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    source: str,
    config: Mapping[str, Any] | None = None,
    are_finite: Callable[[Iterable[str]], bool] = _unknown,
) -> AdapterSet:
    """Finds the adapters among named tensors; see `parse_file`.

    Args:
        tensors: Key -> tensor.
        metadata: The strings of the header.
        source: What to call the file in messages.
        config: PEFT's configuration from a file beside it, used if it can belong to it.
        are_finite: Whether some tensors are quickly known to hold finite numbers.
    """
    notes = _refused(itertools.filterfalse(_is_claimed, tensors), source)
    known = AdapterMetadata(dict(metadata))
    if not known.is_settled:
        known = replace(known, config=dict(config or {}))
    keys, embeddings = split_embeddings(tensors, source)
    modules, common, unclaimed = _by_module(keys, known, source)
    factored = any(suffix in UP.suffixes for own in modules.values() for suffix in own)
    used: set[str] = set()
    adapters: dict[str, tuple[Adapter, ...]] = {}
    incomplete: list[str] = []
    numbers: dict[str, str] = {}
    for module, own in modules.items():
        suffixes = _common_of(module, common) | own
        shapes = {suffix: tuple(tensors[key].shape) for suffix, key in suffixes.items()}
        claims = _claims(suffixes, shapes, source)
        if factored:  # a first factor alone is damage here, and no change of full rank
            claims = [claim for claim in claims if claim.method is not FullRank]
        claimed = {suffix for claim in claims for suffix in claim.suffixes.values()}
        left = [suffix for suffix in own if suffix not in claimed]
        used |= {
            place[suffix]
            for name, place in common.items()
            if _serves(name, module)
            for suffix in claimed & place.keys()
        }
        _refuse_second_spellings(claims, left, own, source)
        incomplete += [
            f"{module} has {suffix[1:]}, {_lack(suffix)}" for suffix in left if _owned(suffix)
        ]
        unclaimed += [own[suffix] for suffix in left]
        if claims and not incomplete:
            where = f"{source}: {module}"
            adapters[module] = _build_all(claims, suffixes, tensors, where)
            for suffix in itertools.chain.from_iterable(claim.numbers for claim in claims):
                numbers.setdefault(suffixes[suffix], where)
    if incomplete:
        raise MissingTensorError(
            f"{source} is incomplete: {listed(incomplete, 3, '; ')}. Download or save it again."
        )
    unclaimed += [key for place in common.values() for key in place.values() if key not in used]
    if not adapters:
        raise FormatError(_why_nothing(tensors, source))
    _refuse_quantised(unclaimed, source)
    if why := _misfit(known, adapters, tensors):
        note = f"adapter_config.json beside the file is not used, as it belongs to another: {why}."
        alone = parse_tensors(tensors, metadata, source, are_finite=are_finite)
        return replace(alone, notes=(note, *alone.notes))
    floats = {key for key in tensors if tensors[key].is_floating_point()}.difference(unclaimed)
    known_finite = floats if are_finite(floats) else set[str]()
    for key, where in numbers.items():
        if key not in known_finite:
            _finite(tensors[key], key, where)
    for name, vectors in embeddings.items():
        for encoder, vector in vectors.items():
            _finite(vector, f"the embedding {name} {encoder}".rstrip(), source)
    if known.config:
        notes = (*notes, "What its tensors do not say is from adapter_config.json beside the file.")
    spelling = _spelling(modules)
    return AdapterSet(source, adapters, known, tuple(unclaimed), embeddings, notes, spelling)


PEFTS_OWN = re.compile(r"\.lora_A(\.[^.]+)?\.weight")


def _spelling(modules: Mapping[str, Suffixes]) -> Spelling:
    """Returns how the LoRAs of a file are named; those with an alpha beside them are no PEFT's."""
    suffixes = {suffix for own in modules.values() for suffix in own}
    pefts = any(PEFTS_OWN.fullmatch(one) for one in suffixes)
    return "peft" if pefts and not suffixes.intersection(ALPHA.suffixes) else "kohya"


def _refused(keys: Iterable[str], source: str) -> tuple[str, ...]:
    """Returns notes on tensors that are known and not applied.

    Raises:
        FormatError: The file means nothing without them.
    """
    known = peft.refused(keys)
    if known is None:
        return ()
    if known.alone:
        raise FormatError(
            f"{source} is PEFT's {known.title}, which cannot be loaded: {known.refused}."
        )
    return (f"PEFT's {known.title} in the file are not applied: {known.refused}.",)


def _is_claimed(key: str) -> bool:
    """Whether a key ends like a tensor of a method that is known, and not like any weight."""
    suffix, _ = _split("." + key)
    return suffix is not None and _owned(suffix)


def _misfit(
    known: AdapterMetadata, adapters: Mapping[str, tuple[Adapter, ...]], keys: Iterable[str]
) -> str:
    """Returns why the configuration beside a file cannot belong to it; empty if it can."""
    if not known.config:
        return ""
    ranks = {
        module: adapter.rank
        for module, several in adapters.items()
        for adapter in several
        if adapter.rank is not None
    }
    return peft.misfit(known.config, list(keys), ranks, known.strings)


@dataclass(frozen=True)
class _Claim:
    """A method that takes some tensors of a module."""

    method: type[Adapter]
    suffixes: dict[str, str]
    """Field -> suffix found."""

    @cached_property
    def own(self) -> set[str]:
        """The suffixes that no other method may take as well."""
        shared = {role.field for role in self.method.roles if role.shared}
        return {suffix for name, suffix in self.suffixes.items() if name not in shared}

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The suffixes of tensors that are computed with."""
        fields = {role.field for role in self.method.roles if not role.scalar and not role.sizes}
        return tuple(suffix for name, suffix in self.suffixes.items() if name in fields)


def _roles() -> dict[str, list[tuple[type[Adapter], Role]]]:
    """Returns suffix -> the methods and roles that know it."""
    table: dict[str, list[tuple[type[Adapter], Role]]] = defaultdict(list)
    for method in ADAPTERS:
        for role in method.roles:
            for suffix in role.suffixes:
                table[suffix].append((method, role))
    return table


SUFFIXES = _roles()


def _pattern(suffix: str) -> str:
    return re.escape(suffix).replace(r"\*", r"[^.]+")


def _ending() -> re.Pattern[str]:
    """Returns what finds the longest suffix of a key: the leftmost match that reaches the end.

    It is tried at every separator, and names may have many of one kind and few suffixes of it.
    """
    by_separator: dict[str, list[str]] = defaultdict(list)
    for suffix in SUFFIXES:
        by_separator[suffix[0]].append(_pattern(suffix[1:]))
    starts = [f"{re.escape(one)}(?:{'|'.join(rest)})" for one, rest in by_separator.items()]
    return re.compile(f"(?:{'|'.join(starts)})$")


ENDING = _ending()
WILDCARDS = {suffix: re.compile(_pattern(suffix)) for suffix in SUFFIXES if "*" in suffix}
COMMON = {suffix for suffix, uses in SUFFIXES.items() if any(role.common for _, role in uses)}


def _by_module(
    keys: Iterable[str], known: AdapterMetadata, source: str
) -> tuple[dict[str, Suffixes], dict[str, Suffixes], list[str]]:
    """Splits keys at their longest known suffix.

    Returns:
        The modules, the tensors that serve all modules below a name, and the keys without a known
        suffix.

    Raises:
        FormatError: A module has the same tensor twice, under two adapter names.
    """
    modules: dict[str, Suffixes] = defaultdict(dict)
    common: dict[str, Suffixes] = defaultdict(dict)
    unknown: list[str] = []
    for key in keys:
        whole = "." + _as_read(key, known)  # what serves all modules may have nothing before it
        suffix, start = _split(whole)
        name = whole[1:start]
        if suffix is None or (not name and suffix not in COMMON):
            unknown.append(key)
            continue
        place = common[name] if suffix in COMMON else modules[name]
        if suffix in place:
            raise FormatError(
                f"{source} holds more than one adapter: {place[suffix]} and {key} are the same "
                "tensor of two of them. Save each adapter to a file of its own."
            )
        place[suffix] = key
    return modules, common, unknown


PLAIN = {role.field: role.suffixes[0] for role in Replacement.roles}
"""Name of a parameter in a model -> the suffix that says that it is stored whole."""


def _as_read(key: str, known: AdapterMetadata) -> str:
    """Returns a key as it is read: that of a layer stored whole may be the model's own name."""
    module, _, parameter = key.rpartition(".")
    if parameter not in PLAIN or not known.keeps_whole(module):
        return key
    suffix, start = _split(key)
    return module + PLAIN[parameter] if suffix is None or start == len(module) else key


def _common_of(module: str, common: Mapping[str, Suffixes]) -> Suffixes:
    """Returns the tensors that serve a module: those below the longest start of its name."""
    serving: Suffixes = {}
    for name in sorted(common, key=len):
        if _serves(name, module):
            serving |= common[name]
    return serving


def _serves(name: str, module: str) -> bool:
    return not name or module == name or module.startswith(name + ".")


@lru_cache(maxsize=16384)  # most files of a model have the same names
def _split(key: str) -> tuple[str | None, int]:
    """Returns the longest known suffix, `*` for the name of an adapter, and where it begins."""
    found = ENDING.search(key)
    if found is None:
        return None, 0
    ending = found.group()
    if ending in SUFFIXES:
        return ending, found.start()
    spelled = (suffix for suffix, pattern in WILDCARDS.items() if pattern.fullmatch(ending))
    return next(spelled), found.start()


@lru_cache(maxsize=1024)  # the modules of all files are of a few kinds
def _candidates(suffixes: frozenset[str]) -> tuple[_Claim, ...]:
    """Returns the methods whose required roles are all there, whatever the shapes."""
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
    return tuple(claims)


def _claims(
    suffixes: Suffixes, shapes: Mapping[str, tuple[int, ...]], source: str
) -> Sequence[_Claim]:
    """Returns the methods that the tensors of one module make.

    A method claims when all its required roles are there, the numbers of their axes and whatever
    else it asks of their shapes fit, and none of its own ones is taken by a method that claims
    more (LoRA's Tucker form over LoRA).
    """
    claims = _fitting(frozenset(shapes.items()))
    for first, second in itertools.combinations(claims, 2):
        if first.own & second.own:
            raise FormatError(
                f"{source}: {', '.join(sorted(suffixes.values()))} can be read as "
                f"{first.method.name} and as {second.method.name}; Any Adapter does not guess between them."
            )
    return claims


def _refuse_second_spellings(
    claims: Sequence[_Claim], left: Iterable[str], own: Suffixes, source: str
) -> None:
    """Refuses a module that holds a tensor of one of its methods twice, in two spellings.

    Raises:
        FormatError: It does.
    """
    left = set(left)
    for claim in claims:
        for role in claim.method.roles:
            second = [suffix for suffix in role.suffixes if suffix in left]
            if second:
                first = claim.suffixes[role.field]
                raise FormatError(
                    f"{source} holds the same tensor of {claim.method.name} twice, as {own[first]} "
                    f"and as {own[second[0]]}, and Any Adapter does not guess which one counts."
                )


SCALES = (".weight_scale", ".scale_weight", ".weight_scale_2", ".comfy_quant", ".input_scale")
"""Endings of what stands beside a quantised weight (ComfyUI, its converters)."""


def _refuse_quantised(unclaimed: Iterable[str], source: str) -> None:
    """Refuses adapters beside scales, without which their numbers mean nothing.

    No tool that trains adapters writes any; converters of whole models do, if they are given one.

    Raises:
        FormatError: There are scales.
    """
    scales = [key for key in unclaimed if key.endswith(SCALES)]
    if scales:
        raise FormatError(
            f"{source} was quantised with scales of its own: {listed(scales, 3)}. "
            "Use the adapter as it was trained, or convert it to float16 or to fp8 without scales."
        )


@lru_cache(maxsize=4096)
def _fitting(forms: frozenset[tuple[str, tuple[int, ...]]]) -> tuple[_Claim, ...]:
    """Returns the claims on tensors of these suffixes and shapes, without those inside others.

    Left out are claims whose shapes do not fit, where another claim on the same tensors does. The
    only claim on some tensors stays whatever their shapes: it then says what is wrong.
    """
    shapes = dict(forms)
    claims = _candidates(frozenset(shapes))

    def fits(claim: _Claim) -> bool:
        of_fields = {field: shapes[suffix] for field, suffix in claim.suffixes.items()}
        return claim.method.fits(of_fields)

    fitting = [claim for claim in claims if fits(claim)]
    contested = {suffix for claim in fitting for suffix in claim.own}
    left = [claim for claim in claims if claim in fitting or not claim.own & contested]
    return tuple(one for one in left if not any(one.own < other.own for other in left))


def _build_all(
    claims: Sequence[_Claim], suffixes: Suffixes, tensors: Mapping[str, Tensor], where: str
) -> tuple[Adapter, ...]:
    """Makes the adapters of a module; magnitudes are put around the additive one.

    Raises:
        FormatError: There is no single additive adapter for the magnitudes.
    """
    built = [
        _build(claim, suffixes, tensors, where) for claim in claims if claim.method is not Dora
    ]
    for claim in claims:
        if claim.method is Dora:
            inner = [adapter for adapter in built if adapter.additive and _has_weight(adapter)]
            if len(inner) != 1:
                names = " and ".join(adapter.name for adapter in inner) or "nothing"
                raise FormatError(
                    f"{where} has DoRA magnitudes, which belong to one additive adapter, "
                    f"but there is {names} beside them. Save the adapter again."
                )
            decomposed = _build(claim, suffixes, tensors, where, inner=inner[0])
            built = [adapter for adapter in built if adapter is not inner[0]] + [decomposed]
    return tuple(built)


def _has_weight(adapter: Adapter) -> bool:
    """Whether an adapter can change a weight, and not a bias alone."""
    return not isinstance(adapter, Diff) or adapter.diff is not None


def _build(
    claim: _Claim,
    suffixes: Suffixes,
    tensors: Mapping[str, Tensor],
    where: str,
    **inner: Adapter,
) -> Adapter:
    """Makes the adapter of a claim from its tensors, checked."""
    values = _values(claim, suffixes, tensors, where)
    try:
        return claim.method(**inner, **values)
    except (FormatError, ShapeError) as error:
        raise type(error)(f"{where}: {error}.") from error


def _values(
    claim: _Claim, suffixes: Suffixes, tensors: Mapping[str, Tensor], where: str
) -> dict[str, Any]:
    """Returns the fields of a claim, checked: tensors, and numbers for scalar roles."""
    values: dict[str, Any] = {}
    for role in claim.method.roles:
        if role.field not in claim.suffixes:
            continue
        key = suffixes[claim.suffixes[role.field]]
        if role.scalar:
            values[role.field] = _scalar(tensors[key], key, where)
            if role.required and values[role.field] is None:
                _finite(tensors[key], key, where)
        elif role.sizes:
            values[role.field] = _sizes(tensors[key], key, where)
        else:
            _require_numbers(tensors[key], key, role, where)
            values[role.field] = tensors[key]
    tensors_only = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    check_fields(claim.method, tensors_only, where)
    if any(value.dtype == torch.float64 for value in tensors_only.values()):
        # Changes are computed in float32 or in float64, so a product must not mix both.
        floats = {k: v for k, v in tensors_only.items() if v.is_floating_point()}
        values |= {name: value.double() for name, value in floats.items()}
    return values


FLOATS = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
}
"""Dtypes that a tensor of an adapter may have."""


def _scalar(tensor: Tensor, key: str, where: str) -> float | None:
    """Returns a one-element tensor as a number; one that overflowed its dtype counts as missing."""
    if tensor.numel() != 1:
        raise ShapeError(f"{where}: {key} should be one number and has shape {list(tensor.shape)}.")
    if tensor.dtype not in FLOATS and (tensor.is_floating_point() or tensor.is_complex()):
        raise FormatError(f"{where}: {key} should be a number, but is {_spelled(tensor.dtype)}.")
    if tensor.is_meta:
        return 1.0
    value = float(tensor.item())
    return value if math.isfinite(value) else None


def _require_numbers(tensor: Tensor, key: str, role: Role, where: str) -> None:
    """Checks that a tensor is not empty and has the kind of numbers that its role has.

    Raises:
        FormatError: It has another kind of numbers.
        ShapeError: It is empty.
    """
    if tensor.numel() == 0 and not role.empty:
        raise ShapeError(
            f"{where}: {key} is empty, its shape is {list(tensor.shape)}. "
            "The file is damaged; download or save it again."
        )
    if role.whole:
        fits = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    else:
        fits = tensor.dtype in FLOATS
    if not fits:
        raise FormatError(
            f"{where}: {key} is {_spelled(tensor.dtype)}, but {role.field} is made of "
            f"{'whole numbers' if role.whole else 'float32, float16, bfloat16 or fp8'}. "
            "The file was quantised or converted in a way that is unknown; use the original."
        )


def _spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sizes(tensor: Tensor, key: str, where: str) -> tuple[int, ...] | None:
    """Returns the numbers of a tensor that holds sizes; None where only the header was read."""
    if tensor.is_meta:
        return None
    sizes = [] if tensor.is_complex() else tensor.double().flatten().tolist()
    if not sizes or any(size < 1 or not size.is_integer() for size in sizes):
        raise ShapeError(f"{where}: {key} should hold sizes of a weight and does not.")
    return tuple(int(size) for size in sizes)


def _finite(tensor: Tensor, key: str, where: str) -> None:
    """Checks the numbers of a tensor; those of a header pass for good ones.

    Raises:
        FormatError: They are whole and below 0.
        NonFiniteError: They are not finite.
    """
    if tensor.is_meta:
        return
    if not tensor.is_floating_point():
        if bool((tensor < 0).any()):
            raise FormatError(f"{where}: {key} holds places below 0. Download or save it again.")
    elif not finite(tensor):
        raise NonFiniteError(
            f"{where}: {key} contains NaN or infinity. It would turn every picture black; "
            "the training went wrong or the file is damaged. Use an earlier save."
        )


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
    if any("string_to_param" in key or is_embedding(key) for key in keys):
        return f"{source} is a textual inversion embedding, not an adapter: put it in embeddings."
    if title := peft.title(keys):
        return (
            f"{source} is PEFT's {title}, but holds no whole layer of it: it was saved without what "
            "follows from a seed in its trainer. Save it with `save_projection=True` or "
            "`save_indices=True`."
        )
    return (
        f"{source} holds no adapter that is known: none of its {len(keys)} tensors has a known "
        f"ending. Its first ones are {', '.join(keys[:3])}."
    )
