"""What Inspect Adapter says about a file: what it is, where it acts, how it was trained, what fits."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .adapters import Adapter
from .analysis.inspection import Change, norms_by, ranks_by_block, shares
from .analysis.spectrum import Spectrum
from .errors import listed
from .families.blocks import Group
from .formats.description import Description, describe, read_sidecar
from .formats.parse import AdapterSet
from .report import methods

MB = 1024 * 1024
SECTIONS = {"model": "diffusion model", "clip": "text encoders"}
MOST_TAGS = 20
TRAINING_WORDS = {
    "steps": "steps",
    "epochs": "epochs",
    "images": "images",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "learning_rate_model": "of the diffusion model",
    "learning_rate_text_encoder": "of the text encoders",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "software": "software",
    "comment": "comment",
}
"""Facts about the training that are told, and what they are called."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found in a file."""

    adapter_set: AdapterSet
    path: Path
    size_bytes: int
    made_for: str | None
    """The family that it was made for."""
    model: str | None
    """The family of the model that is connected."""
    connected: tuple[str, ...]
    """Parts of a model that are connected."""
    groups: tuple[Group, ...]
    changes: tuple[Change, ...]
    spectra: tuple[tuple[Change, Spectrum], ...]
    """Of the changes that were looked at."""
    misfits: tuple[str, ...]
    """Sentences about what does not fit the model."""


def inspection_report(found: Findings) -> str:
    """Returns the text, in paragraphs."""
    adapter_set = found.adapter_set
    about = describe(adapter_set.metadata.strings, read_sidecar(found.path))
    paragraphs = [
        [*_file(found, about)],
        [*_training(about)],
        [*_blocks(found)],
        [*_ranks(found)],
        [*_fit(found), *adapter_set.notes],
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


def _file(found: Findings, about: Description) -> Iterator[str]:
    adapter_set = found.adapter_set
    yield f"{adapter_set.source}, {found.size_bytes / MB:.1f} MB"
    yield f"Method: {methods(adapter_set)}{_scales(adapter_set)}."
    family = found.made_for or "a model that its names do not tell"
    told = about.architecture or about.base_model
    yield f"Made for: {family}" + (f" (the file says: {told})." if told else ".")
    counts = Counter(_section(found, change) for change in found.changes)
    told_counts = [
        f"{count} in the {SECTIONS[name]}" for name, count in sorted(counts.items(), reverse=True)
    ]
    yield f"Layers: {', '.join(told_counts)}."
    if adapter_set.embeddings:
        yield f"Embeddings: {listed([*adapter_set.embeddings])}."
    if adapter_set.unclaimed:
        yield f"Tensors not understood: {listed(adapter_set.unclaimed)}."


def _scales(adapter_set: AdapterSet) -> str:
    """Returns the alphas that stand in a file, with the scales that they make."""
    found = {
        (alpha, one.rank)
        for several in adapter_set.adapters.values()
        for one in map(_innermost, several)
        if isinstance(alpha := getattr(one, "alpha", None), float | int) and one.rank and alpha
    }
    if not found:
        return ""
    scales = sorted({alpha / rank for alpha, rank in found})
    alphas = sorted({alpha for alpha, _ in found})
    span = f"{scales[0]:.3g}" if len(scales) == 1 else f"{scales[0]:.3g} to {scales[-1]:.3g}"
    return f", alpha {listed([f'{alpha:g}' for alpha in alphas], 3)} (scale {span})"


def _innermost(adapter: Adapter) -> Adapter:
    inner = getattr(adapter, "inner", None)
    return inner if isinstance(inner, Adapter) else adapter


def _training(about: Description) -> Iterator[str]:
    if about.title or about.author:
        yield f"Title: {about.title or '?'}" + (f", by {about.author}" if about.author else "")
    if about.base_model:
        yield f"Base model: {about.base_model}"
    facts = [
        f"{word} {about.training[key]}"
        for key, word in TRAINING_WORDS.items()
        if key in about.training
    ]
    facts += [f"resolution {about.resolution}"] if about.resolution else []
    facts += [about.date] if about.date else []
    if facts:
        yield f"Training: {', '.join(facts)}"
    if about.trigger_words:
        yield f"Trigger words: {', '.join(word.text for word in about.trigger_words)}"
    if about.usage_hint:
        yield f"Usage: {about.usage_hint}"
    if about.tags:
        tags = [f"{tag} ({count})" for tag, count in about.tags]
        yield f"Tags: {listed(tags, MOST_TAGS)}"


def _blocks(found: Findings) -> Iterator[str]:
    norms = norms_by(found.changes, lambda place: place.block)
    ranks = ranks_by_block(found.spectra)
    estimated = sum(not change.exact for change in found.changes)
    unknown = sum(change.norm is None for change in found.changes)
    for section, title in SECTIONS.items():
        own = {
            block: norms[block]
            for group in found.groups
            if group.section == section
            for block in group.blocks
            if block in norms
        }
        if not own:
            continue
        yield f"Blocks of the {title}, by their share of the change (norm, effective rank):"
        for block, share in shares(own).items():
            rank = f"{ranks[block]:8.1f}" if block in ranks else ""
            yield f"  {block:6} {100 * share:5.1f} %  {own[block] or 0.0:10.4g}{rank}"
        silent = [block for block, norm in own.items() if norm is None]
        if silent:
            yield f"  not known: {', '.join(silent)}"
    if estimated:
        yield (
            f"The norms of {estimated} layers are estimates, as their method changes a weight by what "
            "it is: connect the model."
        )
    if unknown:
        yield f"The norms of {unknown} layers take the numbers of the model's weights: connect it."


def _ranks(found: Findings) -> Iterator[str]:
    ranks = [(change, spectrum.effective_rank) for change, spectrum in found.spectra]
    ranks = sorted((pair for pair in ranks if pair[1]), key=lambda pair: pair[1])
    if not ranks:
        return
    mean = sum(rank for _, rank in ranks) / len(ranks)
    (least, low), (most, high) = ranks[0], ranks[-1]
    yield (
        f"Effective rank: {mean:.1f} on average, from {low:.1f} ({least.site.module}) to "
        f"{high:.1f} ({most.site.module})."
    )
    if len(found.spectra) < len(found.changes):
        yield f"Looked at: {len(found.spectra)} of {len(found.changes)} layers, those that change most."


def _fit(found: Findings) -> Iterator[str]:
    if not found.connected:
        return
    if found.misfits:
        yield from found.misfits
        return
    yield f"All of it fits the {' and the '.join(found.connected)}."


def _section(found: Findings, change: Change) -> str:
    block = change.site.place.block
    inside = (group.section for group in found.groups if block in group.blocks)
    return next(inside, "model")
