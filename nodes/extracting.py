"""Extract Adapter: the difference between two models, as an adapter of one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..algorithms.adapters import Adapter
from ..algorithms.editing.accuracy import Accuracy
from ..algorithms.editing.extraction import (
    METHODS,
    Extracted,
    Extraction,
    Method,
    extracted,
    extracted_parameter,
    extraction_metadata,
)
from ..algorithms.editing.pairing import Pairing, Shared, paired
from ..algorithms.editing.summary import megabytes, summary
from ..algorithms.errors import EditingError, TrainingError, counted, listed
from ..algorithms.families import detect, sizes_of
from ..algorithms.formats.parse import AdapterSet
from ..algorithms.keymap import KeyMap
from ..algorithms.training.run_metadata import naming_of
from .adapting import CLIP, MODEL, key_maps_of
from .host.injections import is_hooked
from .host.messages import LayersBar, show_text
from .host.prediction import sampling_of
from .host.unused_weights import unused_weights
from .host.weights import Weights
from .inputs import LARGEST_RANK, chosen_size, size_inputs, size_limits
from .schema import advanced
from .sockets import AdapterSocket

SOURCE = "the extracted adapter"


class ExtractAdapter(io.ComfyNode):
    """Makes an adapter that turns one model into another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterExtract",
            display_name="Extract Adapter",
            category="Any Adapter",
            description=(
                "Makes an adapter of the difference between two models: put on the base, it makes "
                "the tuned one of it. For a LoRA of a fine-tuned or merged checkpoint."
            ),
            inputs=[
                io.Model.Input(
                    "model_tuned",
                    optional=True,
                    tooltip="The diffusion model that the adapter should lead to. Patches of other "
                    "nodes on it count.",
                ),
                io.Model.Input(
                    "model_base",
                    optional=True,
                    tooltip="The diffusion model that the adapter will be used with.",
                ),
                io.Clip.Input(
                    "clip_tuned",
                    optional=True,
                    tooltip="The text encoders that the adapter should lead to. Leave both out if "
                    "they were not trained.",
                ),
                io.Clip.Input(
                    "clip_base",
                    optional=True,
                    tooltip="The text encoders that the adapter will be used with.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="LoRA",
                    tooltip="LoRA is what every tool reads. DoRA keeps the length of each row apart, "
                    "which costs little and keeps more. LoKr is the nearest Kronecker product, (IA)^3 "
                    "the nearest factors of rows or columns: both small and coarse. full keeps the "
                    "whole difference.",
                ),
                *size_inputs(of="Of LoRA and DoRA.", kept_energy=0.9, error=0.1),
                io.Boolean.Input(
                    "norms_and_biases",
                    default=True,
                    tooltip="Whether changes of norms, biases and other small tensors are kept too, "
                    "exactly. Most loaders apply them.",
                ),
                *size_limits(),
                advanced(
                    io.Int.Input(
                        "factor",
                        default=-1,
                        min=-1,
                        max=LARGEST_RANK,
                        tooltip="Of LoKr, as in LyCORIS: how many parts a side of the weight is cut "
                        "into. -1 makes both sides about equal, which is smallest; a small number "
                        "keeps more.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "minimum",
                        default=0.0,
                        min=0.0,
                        max=0.99,
                        step=0.0001,
                        round=0.0001,
                        tooltip="A layer that differs by no more than this share of its weight is left "
                        "out. What was only rounded to another precision is left out anyway.",
                    )
                ),
            ],
            outputs=[
                AdapterSocket.Output(
                    display_name="adapter",
                    tooltip="For Save Adapter, for Load Adapter, or to go on with.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="How much of the difference it holds, and what was left out.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        method: Method,
        size: str,
        rank: int,
        kept_energy: float,
        error: float,
        norms_and_biases: bool = True,
        largest_rank: int = 0,
        conv_rank: int = 0,
        factor: int = -1,
        minimum: float = 0.0,
        model_tuned: Any = None,
        model_base: Any = None,
        clip_tuned: Any = None,
        clip_base: Any = None,
    ) -> io.NodeOutput:
        """Returns the adapter, with a report on the node."""
        wish = Extraction(
            size=chosen_size(
                size,
                rank=rank,
                kept_energy=kept_energy,
                error=error,
                largest_rank=largest_rank,
                conv_rank=conv_rank,
            ),
            method=method,
            factor=factor or -1,
            minimum=minimum,
            norms_and_biases=norms_and_biases,
        )
        found = extract(wish, (model_tuned, model_base), (clip_tuned, clip_base))
        show_text(cls.hidden.unique_id, found.report)
        return io.NodeOutput(found.adapter_set, found.report, ui={"text": [found.report]})


@dataclass(frozen=True, eq=False)
class Extract:
    """An adapter of the difference between models, and what the user is told."""

    adapter_set: AdapterSet
    report: str


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two diffusion models, or the text encoders of two models."""

    part: str
    tuned: Weights
    base: Weights
    pairing: Pairing


def extract(wish: Extraction, models: tuple[Any, Any], clips: tuple[Any, Any]) -> Extract:
    """Makes an adapter of the difference between models, one layer at a time.

    Args:
        wish: What is made.
        models: The tuned MODEL and the base; None for what is not connected.
        clips: The same of CLIP.

    Raises:
        EditingError: Half of a pair is missing, or both; the models share nothing, or do not
            differ; a weight is not finite.
    """
    sides = {MODEL: models, CLIP: clips}
    for part, (tuned, base) in sides.items():
        if (tuned is None) != (base is None):
            raise EditingError(
                f"Of the {part} only one is connected: the difference takes a tuned one and a base."
            )
    key_maps = key_maps_of(models[1], clips[1])
    if not key_maps:
        raise EditingError("There is nothing to compare: connect a tuned model and its base.")
    pairs = [_pair(part, *sides[part], key_map) for part, key_map in key_maps.items()]
    adapters: dict[str, tuple[Adapter, ...]] = {}
    accuracy = Accuracy()
    pairings = [pair.pairing for pair in pairs]
    step = LayersBar(sum(len(one.nameless) + len(one.shared) for one in pairings))
    notes = [note for pair in pairs for note in _strangers(pair, step)]
    notes += [
        f"Adapters hang on the {which} {part} by hooks, which its weights do not show: they do not "
        "count. Bake into Model makes weights of them."
        for part, connected in sides.items()
        for which, one in zip(("tuned", "base"), connected, strict=True)
        if one is not None and is_hooked(getattr(one, "patcher", one))
    ]
    for pair in pairs:
        left_out: dict[str, list[str]] = defaultdict(list)
        for layer in pair.pairing.shared:
            step()
            made = _of_layer(pair, layer, wish, left_out)
            if made is not None and made.norm:
                accuracy.add(layer.name, made.norm, made.error)
                if made.adapters:
                    adapters[layer.name] = made.adapters
        notes += [
            f"Left out of the {pair.part}, as {why}: {listed(names)}."
            for why, names in left_out.items()
        ]
    if not adapters:
        raise EditingError(" ".join(["There is no difference to make an adapter of.", *notes]))
    every = [one for several in adapters.values() for one in several]
    metadata = extraction_metadata(wish, every, _base_model_version(key_maps, models[1]))
    adapter_set = AdapterSet(SOURCE, adapters, metadata)
    return Extract(adapter_set, _report(wish, adapter_set, pairs, accuracy, notes))


def _pair(part: str, tuned: Any, base: Any, key_map: KeyMap) -> _Pair:
    """Returns what two models share.

    Raises:
        EditingError: They share nothing.
    """
    # Patches of the pack are part of what a model is, too: both are read as they stand.
    there, here = (
        Weights(getattr(one, "patcher", one), with_adapters=True) for one in (tuned, base)
    )
    unused = unused_weights(base)
    ours, theirs = (
        {key: weights.shape(key) for key in weights.keys if key not in unused}
        for weights in (here, there)
    )
    pairing = paired(ours, theirs, key_map)
    if not any(layer.is_weight for layer in pairing.shared):
        raise EditingError(
            f"The two {part}s share no layer: they are of different kinds. Connect a model and the "
            "one that it was trained from."
        )
    return _Pair(part, there, here, pairing)


def _of_layer(
    pair: _Pair, layer: Shared, wish: Extraction, left_out: Mapping[str, list[str]]
) -> Extracted | None:
    """Returns what a layer becomes; None where its numbers cannot be compared.

    Args:
        pair: The models.
        layer: Of both.
        wish: What is made.
        left_out: Why -> what is left out: this layer or its bias are added to it.
    """
    weights = _both(pair, layer.key)
    if isinstance(weights, str):
        left_out[weights].append(layer.name)
        return None
    dtypes = {side.stored_dtype(layer.key) for side in (pair.base, pair.tuned)}
    unlike = len(dtypes) == 2 and None not in dtypes
    if not layer.is_weight:
        return extracted_parameter(*weights, wish, layer.name, unlike=unlike)
    biases = (None, None)
    if layer.bias is not None and wish.norms_and_biases:
        found = _both(pair, layer.bias)
        if isinstance(found, str):
            left_out[found].append(f"the bias of {layer.name}")
        else:
            biases = found
    return extracted(*weights, wish, layer.name, *biases, unlike=unlike)


def _both(pair: _Pair, key: str) -> tuple[Any, Any] | str:
    """Returns what a parameter is in the base and in the tuned model, or why it is left out."""
    base, tuned = pair.base.read(key), pair.tuned.read(key)
    if base is None or tuned is None:
        return "numbers cannot be had (they are quantised in a way that is unknown here)"
    if any(tuple(one.shape) != pair.base.shape(key) for one in (base, tuned)):
        return "a patch makes weights larger (that of a control LoRA for example)"
    return base, tuned


def _strangers(pair: _Pair, step: Callable[[], None]) -> Iterator[str]:
    """Says what of two models cannot be compared, or not be kept; `step` goes before each look."""
    pairing = pair.pairing
    if pairing.alone:
        yield f"Only one of both {pair.part}s has {listed(pairing.alone, 3)}: left out."
    if pairing.misfits:
        yield f"The shapes differ, so that these are left out: {listed(pairing.misfits, 3)}."
    lost: list[str] = []
    for key in pairing.nameless:
        step()
        if _differ(pair, key):
            lost.append(key)
    if lost:
        yield f"Differs, but no adapter can hold it: {listed(lost, 3)}."


def _differ(pair: _Pair, key: str) -> bool:
    base, tuned = pair.base.read(key), pair.tuned.read(key)
    return base is not None and tuned is not None and not base.equal(tuned)


def _base_model_version(key_maps: Mapping[str, KeyMap], model: Any) -> str:
    """Returns what sd-scripts calls the family of the models."""
    sizes = {key: axes for one in key_maps.values() for key, axes in sizes_of(one.shapes).items()}
    try:
        kind = "eps" if model is None else sampling_of(model).kind
    except TrainingError:
        kind = "eps"  # it is told apart for SD 2 alone, of which both kinds are known
    return naming_of(detect(sizes), kind).base_model_version


def _report(
    wish: Extraction,
    adapter_set: AdapterSet,
    pairs: list[_Pair],
    accuracy: Accuracy,
    notes: list[str],
) -> str:
    """Returns what the user is told."""
    shared = sum(len(pair.pairing.shared) for pair in pairs)
    made = [adapter for several in adapter_set.adapters.values() for adapter in several]
    tensors = (tensor for adapter in made for tensor in adapter.tensors().values())
    lines = [
        f"{wish.method} of {counted(len(adapter_set.adapters), 'layer')} of {shared}, from the "
        f"{' and the '.join(pair.part for pair in pairs)}; {megabytes(tensors)}.",
        f"Made: {summary(adapter_set)}.",
        accuracy.sentence(),
    ]
    ranks = sorted(adapter.rank for adapter in made if adapter.rank is not None)
    if ranks and ranks[0] != ranks[-1]:
        lines.append(f"Half of the ranks are up to {ranks[len(ranks) // 2]}.")
    if not wish.norms_and_biases:
        lines.append("Norms and biases were not looked at.")
    return "\n".join([*lines, *notes])
