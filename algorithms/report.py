"""What the user is told about a loaded file: methods, ranks, layers, and what found no home."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .adapters import Adapter
from .adapters.lora import Lora, LoraTucker
from .errors import counted, listed
from .formats.parse import AdapterSet


@dataclass(frozen=True)
class Coverage:
    """What became of a file in one part of the model."""

    part: str
    """`diffusion model` or `text encoder`."""
    layers: int
    """Layers of the file that were adapted."""
    modules: int
    """Layers that the file has for this part."""
    unhooked: tuple[str, ...] = ()
    """Layers whose weight was patched since no hook can reach them."""
    misfits: tuple[str, ...] = ()
    """Layers that do not fit the model, each with the reason."""


def report(
    adapter_set: AdapterSet,
    coverage: Sequence[Coverage],
    homeless: Mapping[str, Sequence[str]],
    notes: Sequence[str] = (),
) -> str:
    """Returns the text on the node.

    Args:
        adapter_set: The file.
        coverage: The model parts that are connected.
        homeless: Likely cause -> module names that mean nothing in any of them.
        notes: Further sentences.
    """
    lines = [methods(adapter_set), "Adapted: " + ", ".join(_covered(part) for part in coverage)]
    for part in coverage:
        if part.misfits:
            lines.append(
                f"Left out, as they do not fit the {part.part}: {listed(part.misfits, 3, '; ')}"
            )
        if part.unhooked:
            lines.append(
                f"Patched as weights, since no hook reaches them: {listed(part.unhooked, 3)}"
            )
    lines += [
        f"Not applied: {counted(len(modules), 'layer')}, as {cause} ({listed(modules, 3)})"
        for cause, modules in homeless.items()
    ]
    if adapter_set.unclaimed:
        lines.append(f"Tensors not understood: {listed(adapter_set.unclaimed)}")
    sentences = [f"{line}." for line in lines]  # some pages show the line breaks as blanks
    return "\n".join([*sentences, *adapter_set.notes, *notes])


def contents(adapter_set: AdapterSet) -> str:
    """Returns what a file is, where there is no model to put it on."""
    lines = [f"{methods(adapter_set)}, in {counted(len(adapter_set.adapters), 'layer')}"]
    if adapter_set.embeddings:
        lines.append(f"Embeddings: {listed(list(adapter_set.embeddings))}")
    if adapter_set.unclaimed:
        lines.append(f"Tensors not understood: {listed(adapter_set.unclaimed)}")
    return "\n".join([*(f"{line}." for line in lines), *adapter_set.notes])


def methods(adapter_set: AdapterSet) -> str:
    """Returns the methods of a file with their ranks, for example `LoRA-C3Lier, rank 4 to 16`."""
    ranks = rank_span(adapter_set)
    return f"{method_names(adapter_set)}, rank {ranks}" if ranks else method_names(adapter_set)


def method_names(adapter_set: AdapterSet) -> str:
    """Returns the methods of a file, for example `LoRA-LierLa, IA3`."""
    everything = _everything(adapter_set)
    found = dict.fromkeys(adapter.label for adapter in everything)
    training = adapter_set.metadata.training
    return ", ".join(_method_name(name, everything, training) for name in found)


def rank_span(adapter_set: AdapterSet) -> str:
    """Returns the ranks of a file, for example `4 to 16`; empty where no method has one."""
    found = {one.rank for one in _everything(adapter_set) if one.rank is not None}
    if not found:
        return ""
    least, most = min(found), max(found)
    return f"{least}" if least == most else f"{least} to {most}"


def _everything(adapter_set: AdapterSet) -> list[Adapter]:
    return [one for several in adapter_set.adapters.values() for one in several]


def _method_name(name: str, adapters: Sequence[Adapter], training: str | None) -> str:
    """Returns the field's name of a method: for LoRA, by its layers and its training."""
    if name != Lora.name:
        return name
    kernels = any(
        isinstance(adapter, LoraTucker)
        or (isinstance(adapter, Lora) and any(size > 1 for size in adapter.down.shape[2:]))
        for adapter in adapters
    )
    layers = "LoRA-C3Lier (LoCon)" if kernels else "LoRA-LierLa"
    return f"{layers}, trained as {training}" if training else layers


def _covered(part: Coverage) -> str:
    return f"{part.part} {part.layers} of {counted(part.modules, 'layer')}"
