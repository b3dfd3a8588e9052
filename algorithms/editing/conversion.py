"""Makes other adapters of those of a file: a LoRA of a chosen size, or whole changes.

Whatever a method is, what it changes in a layer is a sum of forms (`adapters/forms.py`). A LoRA is the
best low-rank copy of that sum, its scale folded into the factors, with alpha equal to the rank: so
every loader reads the same of it. What is no matrix or kernel (norms, biases, tables of a block) has no
LoRA, and stays as it is.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from math import hypot, prod
from typing import Any, Literal

import torch
from torch import Tensor

from ..adapters import Adapter
from ..adapters.diff import Diff, FullRank
from ..adapters.forms import Form
from ..adapters.lora import Lora, LoraTucker
from ..adapters.norm import Norm
from ..adapters.replacement import Replacement
from ..adapters.shira import Shira
from ..errors import EditingError, counted, listed
from ..families import in_text_encoder
from ..formats.metadata import PEFT_CONFIG, SETTLED, AdapterMetadata
from ..formats.parse import AdapterSet
from ..formats.write import to_tensors
from ..shapes import Float
from .accuracy import EXACT, Accuracy
from .decomposition import decomposed
from .network_metadata import OF_NETWORK, network_metadata, network_sizes
from .sites import Sited
from .size import Size
from .steps import Steps, no_steps
from .summary import megabytes, method_counts, summary
from .sums import Term, added, shifted
from .weight_shapes import hides_kernel, lora_of

To = Literal["LoRA", "full difference", "as it is"]
CONVERSION = "anyadapter.conversion"
"""Key of what was asked for and what became of it, as JSON."""
ALL_OF_IT = Size(error=EXACT)
"""As many ranks as it takes, within the precision of float32."""
OF_THE_TENSORS = (
    *("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"),
    SETTLED,
)
"""Keys that say what the tensors of the source were; saving makes them anew."""
OF_ANOTHER_SCALE = ("algo", "block_size", "rs_lora", "split_qkv")
"""Arguments of trainers by which a loader may correct the scale of a LoRA."""


@dataclass(frozen=True)
class Conversion:
    """What is asked for."""

    to: To = "LoRA"
    """`as it is` cuts LoRAs to the size and leaves all other methods alone."""
    size: Size = ALL_OF_IT
    norms_and_biases: bool = True
    """Whether what is no matrix stays too, which many trainers' loaders do not read."""

    def said(self) -> dict[str, Any]:
        """Returns what the metadata say of it."""
        return {**vars(self), "size": self.size.said()}


@dataclass(frozen=True, eq=False)
class Converted:
    """What came out."""

    adapter_set: AdapterSet
    accuracy: Accuracy
    """Against what the source changes, all that was dropped included."""
    notes: tuple[str, ...] = ()


def converted(
    sites: Iterable[Sited],
    adapter_set: AdapterSet,
    wish: Conversion,
    steps: Steps = no_steps,
) -> Converted:
    """Makes other adapters of a file.

    Several adapters of one layer become one. Strengths of the sites do not count: 1 stays as trained.

    Args:
        sites: All adapters of the file, with their layers where a model tells them.
        adapter_set: The file, completed.
        wish: What to make.
        steps: Told of each layer before it is made.

    Raises:
        EditingError: What a method changes cannot be told without the model, or nothing is left.
        ShapeError: An adapter does not fit its weight.
    """
    layers: dict[str, list[Sited]] = defaultdict(list)
    for site in sites:
        # One read serves the weight and the bias, and both go with the layer.
        read = None if site.read is None else cache(site.read)
        layers[site.module].append(replace(site, read=read))
    maker = _Maker(wish, adapter_set.source)
    if wish.to != "as it is":
        maker.look_at([*chain.from_iterable(layers.values())])
    made: dict[str, tuple[Adapter, ...]] = {}
    step = steps(len(layers))
    for module in [*layers]:
        step()
        adapters = maker.layer(module, layers.pop(module))  # and its weight is let go
        if adapters:
            made[module] = adapters
    if not made:
        raise EditingError(
            f"Nothing is left of {adapter_set.source}: it changes only what a LoRA has no place for "
            "(norms, biases). Keep the other changes, or make a full difference."
        )
    result = replace(adapter_set, adapters=made)
    result = replace(result, metadata=_metadata(adapter_set, result, wish, maker.accuracy))
    return Converted(result, maker.accuracy, maker.notes())


def conversion_report(before: AdapterSet, made: Converted) -> str:
    """Returns what was made of a file, for people.

    Args:
        before: The file, completed.
        made: What came out.
    """
    after = made.adapter_set
    of_before, of_after = _tensors(before), _tensors(after)
    dtype = _usual_dtype(of_before)
    sizes = [f"{megabytes(of_after)} in {_usual_dtype(of_after)}"]
    if dtype != _usual_dtype(of_after):
        same = (tensor.to("meta", getattr(torch, dtype)) for tensor in of_after)
        sizes.append(f"{megabytes(same)} in {dtype} as before")
    return "\n".join(
        [
            f"{before.source}: {summary(before)} -> {summary(after)}.",
            f"Tensors: {megabytes(of_before)} in {dtype} before, {', '.join(sizes)}.",
            made.accuracy.sentence(),
            *made.notes,
        ]
    )


@dataclass(frozen=True, eq=False)
class _Change:
    """All that the adapters of one layer change in it, at strength 1."""

    form: Form | None
    """Of the weight, None where only the bias changes."""
    shape: tuple[int, ...]
    """Of the weight."""
    shift: Float[Tensor, " O"] | None
    """Of the bias."""

    @property
    def norm(self) -> float:
        """Returns the norm of both together."""
        return hypot(0.0 if self.form is None else self.form.norm(), self.shift_norm)

    @property
    def shift_norm(self) -> float:
        return 0.0 if self.shift is None else float(torch.linalg.vector_norm(self.shift))

    def whole(self) -> Float[Tensor, "O ..."] | None:
        """Returns the change of the weight in its shape."""
        return None if self.form is None else self.form.matrix.reshape(self.shape).contiguous()


@dataclass
class _Maker:
    """Makes the adapters of one layer after the other, and collects what is to be told."""

    wish: Conversion
    source: str
    accuracy: Accuracy = field(default_factory=Accuracy)
    unknown: set[str] = field(default_factory=set[str])
    """Layers of which what they change cannot be told, though their part is connected."""
    larger: list[str] = field(default_factory=list[str])
    flat: list[str] = field(default_factory=list[str])
    dropped: list[str] = field(default_factory=list[str])
    bloated: list[str] = field(default_factory=list[str])

    def look_at(self, sites: Sequence[Sited]) -> None:
        """Finds the layers that cannot be told, before any work is done.

        Raises:
            EditingError: The part of the model that would tell them is not connected.
        """
        connected = {in_text_encoder(site.module) for site in sites if site.target is not None}
        untold = [site for site in sites if _is_untold(site)]
        missing = [site for site in untold if in_text_encoder(site.module) not in connected]
        if missing:
            methods = listed([*dict.fromkeys(site.adapter.label for site in missing)], 5)
            parts = {in_text_encoder(site.module) for site in missing}
            what = " and ".join(
                name for inside, name in ((False, "MODEL"), (True, "CLIP")) if inside in parts
            )
            layers = counted(len(missing), "layer")
            raise EditingError(
                f"What {methods} changes in {layers} of {self.source} depends on the weights there "
                f"(first in {missing[0].module}). Connect the {what} that it was made for."
            )
        self.unknown = {site.module for site in untold}

    def layer(self, module: str, sites: Sequence[Sited]) -> tuple[Adapter, ...]:
        """Returns what becomes of the adapters of one layer."""
        if self.wish.to == "as it is":
            return tuple(self._resized(site) for site in sites)
        if module in self.unknown:
            return tuple(site.adapter for site in sites)
        if _reshape(sites) and (len(sites) > 1 or self.wish.to != "LoRA"):
            self.larger.append(module)
            return tuple(site.adapter for site in sites)
        change = self._change(sites)
        if change.form is None or _is_vector(sites[0], change.shape):
            return self._other(module, sites, change)
        if self.wish.to == "full difference":
            return self._whole(module, sites, change)
        return self._low_rank(module, sites, change)

    def _change(self, sites: Sequence[Sited]) -> _Change:
        """Returns the sum of what the adapters of a layer change.

        Raises:
            EditingError: They do not change a weight of one shape.
        """
        if any(site.shape is None and hides_kernel(site.adapter) for site in sites):
            self.flat.append(sites[0].module)
        terms = [Term(site, self.source, 1.0) for site in sites]
        shapes = (site.weight_shape for site in sites)
        shape = max((one for one in shapes if one is not None), key=len, default=())
        return _Change(added(terms), shape, shifted(terms))

    def _resized(self, site: Sited) -> Adapter:
        """Returns a LoRA cut to its size, any other adapter unchanged."""
        adapter = site.adapter
        if not isinstance(adapter, Lora | LoraTucker):
            return adapter
        shape = site.weight_shape
        assert shape is not None, "a LoRA tells it"
        factors = decomposed(adapter.form(), self.wish.size.on(shape), site.module)
        if factors.up.shape[1] >= adapter.rank:
            self.accuracy.add(site.module, factors.norm, 0.0)
            return adapter
        self.accuracy.add(site.module, factors.norm, factors.error)
        made = lora_of(factors.up, factors.down, shape)
        reshape = adapter.reshape if isinstance(adapter, Lora) else None
        return replace(made, bias=adapter.delta_bias(None), reshape=reshape)

    def _low_rank(
        self, module: str, sites: Sequence[Sited], change: _Change
    ) -> tuple[Adapter, ...]:
        """Returns a LoRA, and beside it the change of the bias."""
        assert change.form is not None, "the others have no LoRA"
        factors = decomposed(change.form, self.wish.size.on(change.shape), module)
        made, error = lora_of(factors.up, factors.down, change.shape), factors.error
        own = sites[0].adapter
        if len(sites) == 1 and isinstance(own, Lora) and _is_as_made(own, made):
            made, error = replace(own, bias=None), 0.0
        if made.up.numel() + made.down.numel() > prod(change.form.sizes):
            self.bloated.append(module)
        if _reshape(sites):
            made = replace(made, reshape=_reshape(sites))
        norm = hypot(factors.norm, change.shift_norm)
        if change.shift is None:
            self.accuracy.add(module, norm, error)
            return (made,)
        if self.wish.norms_and_biases:
            self.accuracy.add(module, norm, error)
            return made, Diff(diff_b=change.shift)
        self.dropped.append(module)
        self.accuracy.add(module, norm, hypot(error, change.shift_norm))
        return (made,)

    def _whole(self, module: str, sites: Sequence[Sited], change: _Change) -> tuple[Adapter, ...]:
        """Returns the change of weight and bias as they are; a file's own one stays as it is."""
        own = sites[0].adapter
        self.accuracy.add(module, change.norm, 0.0)
        if len(sites) == 1 and isinstance(own, Diff):
            return (own,)
        return (Diff(change.whole(), change.shift),)

    def _other(self, module: str, sites: Sequence[Sited], change: _Change) -> tuple[Adapter, ...]:
        """Returns what has no LoRA exactly, or nothing where only LoRAs are wanted."""
        norm = change.norm
        if self.wish.to == "LoRA" and not self.wish.norms_and_biases:
            self.dropped.append(module)
            self.accuracy.add(module, norm, norm)
            return ()
        self.accuracy.add(module, norm, 0.0)
        own = sites[0].adapter
        if len(sites) == 1 and isinstance(own, Norm | Diff):
            return (own,)
        return (Diff(change.whole(), change.shift),)

    def notes(self) -> tuple[str, ...]:
        """Returns a sentence on everything that is not as asked, or might not be."""
        said: list[str] = []
        if self.unknown:
            said.append(
                f"Left as they are, since {counted(len(self.unknown), 'layer')} of what they depend "
                f"on is not in the model: {listed(sorted(self.unknown), 3)}."
            )
        if self.larger:
            said.append(
                "Left as they are, since they make the weight larger than the model's: "
                f"{listed(self.larger, 3)}."
            )
        if self.dropped:
            said.append(
                f"Dropped in {counted(len(self.dropped), 'layer')}, and counted as error: changes of "
                f"norms, biases and the like, which are no LoRA: {listed(self.dropped, 3)}."
            )
        if self.bloated:
            said.append(
                f"In {counted(len(self.bloated), 'layer')} the LoRA is larger than the weight, as it "
                "takes so many ranks to lose so little: a full difference is smaller, or allow an "
                f"error. First one: {self.bloated[0]}."
            )
        if self.flat:
            said.append(
                f"The file does not tell the kernels of {counted(len(self.flat), 'layer')}, so that "
                "they are written as matrices. ComfyUI reads them on convolutions too, trainers do "
                f"not: connect the model if there are any. First one: {self.flat[0]}."
            )
        return tuple(said)


def _is_untold(site: Sited) -> bool:
    """Whether nothing tells what an adapter changes: its tensors do not, and no model is there."""
    if site.read is not None:
        return False
    if isinstance(site.adapter, Shira):  # it has the places that change, and not how many there are
        return True
    return site.adapter.to("meta").form() is None


def _is_vector(site: Sited, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is no matrix or kernel: of a norm, or a table that a block has."""
    if site.target is not None and site.target.parameter != "weight":
        return True
    whole = isinstance(site.adapter, Diff | FullRank | Replacement)
    table = whole and site.target is None and len(shape) == 3 and shape[0] == 1
    return len(shape) < 2 or table


def _reshape(sites: Sequence[Sited]) -> tuple[int, ...] | None:
    """Returns the shape that an adapter gives the weight, if one does."""
    own = (site.adapter.reshape for site in sites if isinstance(site.adapter, Lora))
    return next((shape for shape in own if shape is not None), None)


def _is_as_made(own: Lora, made: Lora) -> bool:
    """Whether a file's own LoRA is no larger than the one that was made, and of the same shapes."""
    return (
        own.rank <= made.rank
        and own.up.shape[2:] == made.up.shape[2:]
        and own.down.shape[1:] == made.down.shape[1:]
    )


def _metadata(
    adapter_set: AdapterSet, made: AdapterSet, wish: Conversion, accuracy: Accuracy
) -> AdapterMetadata:
    """Returns what the header says of the result: nothing that was true of the source alone."""
    known = adapter_set.metadata
    strings = {key: text for key, text in known.strings.items() if key not in OF_THE_TENSORS}
    every = [adapter for adapters in made.adapters.values() for adapter in adapters]
    config = known.config
    if wish.to == "as it is":
        is_lora = any(isinstance(one, Lora | LoraTucker) for one in every)
        if is_lora and known.network_module.startswith(("networks.", "lycoris")):
            kept = {k: v for k, v in known.network_args.items() if k not in OF_ANOTHER_SCALE}
            strings |= network_sizes(every, kept)
    else:
        gone = (*OF_NETWORK, PEFT_CONFIG)
        strings = {key: text for key, text in strings.items() if key not in gone}
        strings |= network_metadata(every, {} if wish.to == "LoRA" else {"algo": "full"})
        config = {}
    ranks = [one.rank for one in every if one.rank is not None]
    strings[CONVERSION] = json.dumps(
        {
            "from": method_counts(adapter_set),
            **wish.said(),
            "ranks": ranks and [min(ranks), max(ranks)],
            "error": accuracy.relative,
        }
    )
    return replace(known, strings=strings, config=config)


def _tensors(adapter_set: AdapterSet) -> list[Tensor]:
    return [*to_tensors(adapter_set)[0].values()]


def _usual_dtype(tensors: Iterable[Tensor]) -> str:
    """Returns the dtype of most numbers."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return counts.most_common(1)[0][0]
