"""Several adapters in one: what all of them change together, exactly or of a given size.

    W + sum of s_i * dW_i(W)

The sum is exact where ranks may add up; to a size it is the best copy of low rank. TIES, DARE and
pruning sum something else on purpose, and the report says how far that is from the plain sum.
Files are sorted by their content before anything is added, so their order does not matter, bit for
bit.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal

import torch
from torch import Tensor

from ..adapters import Adapter
from ..adapters.diff import Diff
from ..adapters.forms import Form, Product, Whole
from ..adapters.lora import Lora, LoraTucker
from ..adapters.lora_embedding import LoraEmbedding
from ..adapters.norm import Norm
from ..errors import EditingError, counted, listed
from ..formats.embeddings import Embeddings
from ..formats.parse import AdapterSet
from ..keymap import KeyMap, Target
from ..shapes import Float
from .accuracy import Accuracy
from .combined_metadata import combined_metadata
from .decomposition import decomposed
from .digests import digest
from .joining import Input, Joint, contents_of, joints_of, names_of, ordered
from .pruning import Sign, agreed, at_random, largest, weighted
from .scaling import scaled
from .size import Size
from .steps import Steps, no_steps
from .summary import summary
from .sums import Term, added, shifted
from .weight_shapes import hides_kernel, lora_of

Mode = Literal["exact", "svd", "ties", "dare linear", "dare ties", "magnitude"]
LORAS = (Lora, LoraTucker, LoraEmbedding)
BASE_MODEL = ("modelspec.architecture", "ss_base_model_version")


@dataclass(frozen=True)
class Recipe:
    """How changes are combined."""

    mode: Mode = "exact"
    size: Size | None = None
    """Of the result, in all modes but `exact`; None stores whole changes."""
    density: float = 0.5
    """Share of the numbers of each change that `ties`, `dare` and `magnitude` keep."""
    sign: Sign = "total"
    """What the majority is of which `ties` and `dare ties` take the sign."""

    def __post_init__(self) -> None:
        """Checks that it means something.

        Raises:
            EditingError: It does not.
        """
        if self.mode == "svd" and self.size is None:
            raise EditingError(
                "The mode svd makes an adapter of a size: choose a rank or an error."
            )
        if not 0 < self.density <= 1:
            raise EditingError(f"The density is {self.density}, and must be above 0 and up to 1.")

    def said(self) -> dict[str, Any]:
        """Returns what the metadata say of it."""
        found: dict[str, Any] = {"mode": self.mode}
        if self.mode != "exact" and self.size is not None:
            found["size"] = self.size.said()
        if self.mode not in ("exact", "svd"):
            found["density"] = self.density
        if self.mode.endswith("ties"):
            found["sign"] = self.sign
        return found


@dataclass(frozen=True, eq=False)
class Combined:
    """One adapter set made of several."""

    adapter_set: AdapterSet
    accuracy: Accuracy
    """Of what was made, against the exact sum, or against what the mode prunes it to."""
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Made:
    """What became of a joint."""

    adapters: tuple[Adapter, ...]
    norm: float
    error: float = 0.0
    sum_norm: float = 0.0
    """Of the plain sum, where something else was meant."""
    strayed: float = 0.0
    """Norm of the difference between what was meant and the plain sum."""


def combined(
    inputs: Sequence[Input],
    recipe: Recipe,
    key_maps: Mapping[str, KeyMap] | None = None,
    steps: Steps = no_steps,
) -> Combined:
    """Returns one adapter set that changes what all inputs change together.

    Args:
        inputs: The files; one may be there several times.
        recipe: How.
        key_maps: Of the models by which the sites were placed.
        steps: Told of each layer before it is made.

    Raises:
        EditingError: Nothing goes in, the files do not fit each other, or a change depends on a
            weight that is not there.
    """
    maps = tuple((key_maps or {}).values())
    contents = contents_of(inputs)
    files = ordered(inputs, contents)
    joints = joints_of(files, maps, contents)
    names = names_of(joints, maps)
    adapters: dict[str, tuple[Adapter, ...]] = {}
    accuracy = Accuracy()
    strayed: list[float] = []
    sums: list[float] = []
    step = steps(len(joints))
    for joint, name in zip(joints, names, strict=True):
        step()
        if name in adapters:
            raise EditingError(
                f"{joint.files()}: {name} fits the model in one file and not in another. They were "
                "made for different models."
            )
        made = _made(joint, recipe)
        adapters[name] = made.adapters
        if made.adapters:  # else all that was there cancels
            accuracy.add(name, made.norm, made.error)
        strayed.append(made.strayed)
        sums.append(made.sum_norm)
    adapters = {name: several for name, several in adapters.items() if several}
    if not adapters:
        raise EditingError(
            "There is nothing to combine: no adapter is on, all strengths are 0, or they cancel. Add "
            "one."
        )
    embeddings, renamed = _embeddings(files)
    sets = [one.adapter_set for one in files]
    every = [one for several in adapters.values() for one in several]
    said = recipe.said() | {"adapters": [one.said for one in files]}
    metadata = combined_metadata([one.metadata for one in sets], every, said)
    source = " + ".join(dict.fromkeys(PurePath(one.source).stem for one in sets))
    result = AdapterSet(source, adapters, metadata, embeddings=embeddings)
    made_of = f"Made: {summary(result)}."
    notes = [*_of_files(sets), made_of, *_of_methods(joints, adapters, names), *renamed]
    if any(sums):
        share = math.hypot(*strayed) / math.hypot(*sums)
        notes.append(
            f"What {recipe.mode} makes of the changes differs from their plain sum by "
            f"{100 * share:.2g} % of it."
        )
    return Combined(result, accuracy, tuple(notes))


def _made(joint: Joint, recipe: Recipe) -> _Made:
    """Returns the adapters of a layer of the result."""
    if recipe.mode == "exact":
        return _exact(joint)
    if recipe.mode == "svd":
        return _of_size(joint, recipe)
    return _pruned(joint, recipe)


def _exact(joint: Joint) -> _Made:
    """Returns adapters that change exactly the sum: those of one file themselves, where it is alone."""
    joint = _without_doubles(joint)
    kept = _kept(joint.terms)
    if kept is not None:
        forms = [one.form() for one in kept]
        return _Made(kept, math.hypot(*(one.norm() for one in forms if one is not None), 0.0))
    form = added(joint.terms)
    norm = 0.0 if form is None else form.norm()
    return _Made(_adapters(joint, form, shifted(joint.terms)), norm)


def _without_doubles(joint: Joint) -> Joint:
    """Returns the same with one change for several equal ones, as of a file that is there twice."""
    found: dict[tuple[bytes | Adapter, Target | None], list[Term]] = {}
    for term in joint.terms:
        place = term.content or term.site.adapter, term.site.target
        found.setdefault(place, []).append(term)
    strengths = [math.fsum(term.strength for term in several) for several in found.values()]
    terms = [
        replace(several[0], strength=strength)
        for several, strength in zip(found.values(), strengths, strict=True)
        if strength
    ]
    return replace(joint, terms=tuple(terms))


def _kept(terms: Sequence[Term]) -> tuple[Adapter, ...] | None:
    """Returns the adapters themselves at their strengths, or None where it takes a sum.

    They are if one file alone has them, by one name and of different methods. One adapter of a file
    may also stand beside changes of the bias alone of others.
    """
    if not terms:
        return ()
    if any(term.rows is not None for term in terms):
        return None
    found = [scaled(term.site.adapter, term.strength) for term in terms]
    every = tuple(one for one in found if one is not None)
    if len(every) < len(found):
        return None
    kinds = {type(one) for one in every}
    modules = {term.site.module for term in terms}
    if len({term.number for term in terms}) == len(modules) == 1 and len(kinds) == len(every):
        return every
    changing = [one for one in every if not _is_of_bias(one)]
    if len(changing) != 1 or isinstance(changing[0], Diff | Norm):
        return None
    shift = shifted([term for term in terms if _is_of_bias(term.site.adapter)])
    return None if shift is None else (changing[0], Diff(None, shift))


def _is_of_bias(adapter: Adapter) -> bool:
    return isinstance(adapter, Diff) and adapter.diff is None


def _of_size(joint: Joint, recipe: Recipe) -> _Made:
    """Returns the best LoRA of a size for the sum; what has one axis stays whole."""
    joint = _without_doubles(joint)
    form = added(joint.terms)
    if form is None or _is_vector(form):
        return _exact(joint)
    assert recipe.size is not None, "the recipe was checked"
    size = recipe.size.on(joint.shape or ())
    limit = size.fixed_rank
    if limit is not None and isinstance(form, Product) and form.left.shape[1] <= limit:
        if all(isinstance(term.site.adapter, LORAS) for term in joint.terms):
            return _exact(joint)  # it is of that size
        return _Made(_adapters(joint, form, shifted(joint.terms)), form.norm())
    return _decomposed(joint, form, size)


def _decomposed(joint: Joint, form: Form, size: Size) -> _Made:
    factors = decomposed(form, size, joint.seed)
    low = Product(factors.up, factors.down)
    return _Made(_adapters(joint, low, shifted(joint.terms)), factors.norm, factors.error)


def _pruned(joint: Joint, recipe: Recipe) -> _Made:
    """Returns what TIES, DARE or pruning make of the changes of all files; biases are summed."""
    files: dict[int, list[Term]] = {}
    for term in joint.terms:
        files.setdefault(term.number, []).append(term)
    changes: list[Tensor] = []
    strengths: list[float] = []
    plain: Tensor | None = None
    seen: Counter[bytes] = Counter()
    for terms in files.values():
        strength = max(abs(term.strength) for term in terms)
        form = added([replace(term, strength=term.strength / strength) for term in terms])
        if form is None:
            continue
        if _is_vector(form):
            return _exact(joint)
        change = form.matrix
        plain = change * strength if plain is None else plain.add_(change, alpha=strength)
        if recipe.mode.startswith("dare"):
            content = terms[0].content or digest(terms[0].site.adapter)
            seen[content] += 1  # one file may be there several times
            seed = f"{content.hex()} {seen[content]}\n{joint.seed}"
            change = at_random(change, recipe.density, seed)
        else:
            change = largest(change, recipe.density)
        changes.append(change)
        strengths.append(strength)
    if plain is None:
        return _exact(joint)
    if recipe.mode.endswith("ties"):
        meant = agreed(changes, strengths, recipe.sign)
    else:
        meant = weighted(changes, strengths)
    del changes
    strayed, sum_norm = float((meant - plain).norm()), float(plain.norm())
    if recipe.size is None:
        made = _Made(_adapters(joint, Whole(meant), shifted(joint.terms)), float(meant.norm()))
    else:
        made = _decomposed(joint, Whole(meant), recipe.size.on(joint.shape or ()))
    return replace(made, sum_norm=sum_norm, strayed=strayed)


def _is_vector(form: Form) -> bool:
    """Whether a change has one axis, as the scale of a norm."""
    return form.sizes[1] == 1


def _adapters(
    joint: Joint, form: Form | None, shift: Float[Tensor, " O"] | None
) -> tuple[Adapter, ...]:
    """Returns the adapters that change weight and bias so.

    Raises:
        EditingError: The change is whole, and the weight becomes larger.
    """
    kinds = {type(term.site.adapter) for term in joint.terms}
    if kinds == {Norm}:
        return (Norm(None if form is None else form.matrix[:, 0], shift),)
    if isinstance(form, Product):
        rank = form.left.shape[1]
        if kinds == {LoraEmbedding}:
            return (
                LoraEmbedding(form.right.T.contiguous(), form.left.T.contiguous(), float(rank)),
            )
        bias = () if shift is None else (Diff(None, shift),)
        made = lora_of(form.left, form.right, joint.shape or form.sizes)
        return (replace(made, reshape=joint.reshape), *bias)
    if form is None:
        return () if shift is None else (Diff(None, shift),)
    return (Diff(joint.matrix(form.matrix), shift),)


def _embeddings(inputs: Sequence[Input]) -> tuple[Embeddings, list[str]]:
    """Returns all textual inversions; of two by one name with other vectors one is renamed."""
    found: dict[str, Mapping[str, Tensor]] = {}
    notes: list[str] = []
    for one in inputs:
        for name, vectors in one.adapter_set.embeddings.items():
            free, number = name, 2
            while free in found and not _are_equal(found[free], vectors):
                free, number = f"{name}_{number}", number + 1
            found[free] = vectors
            if free != name:
                notes.append(
                    f"Two files have an embedding {name} of their own: that of {one.name} is called "
                    f"{free} here."
                )
    return found, list(dict.fromkeys(notes))


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[encoder], other[encoder]) for encoder in one
    )


def _of_files(sets: Sequence[AdapterSet]) -> list[str]:
    """Returns what is to be told of the files: what was left out, assumed, or does not go together."""
    notes: dict[str, None] = {}
    for one in sets:
        notes |= {f"{one.source}: {note}": None for note in one.notes}
        if one.unclaimed:
            notes[
                f"{one.source}: {counted(len(one.unclaimed), 'tensor')} not understood and left out: "
                f"{listed(one.unclaimed, 3)}."
            ] = None
    for key in BASE_MODEL:
        models = dict.fromkeys(filter(None, (one.metadata.strings.get(key) for one in sets)))
        if len(models) > 1:
            notes[f"The files were made for different models: {listed(list(models))}."] = None
            break
    return list(notes)


def _of_methods(
    joints: Sequence[Joint], adapters: Mapping[str, Sequence[Adapter]], names: Sequence[str]
) -> list[str]:
    """Returns what was made of changes that depend on the weight, or hide its kernel."""
    notes: list[str] = []
    turned: Counter[str] = Counter()
    kernels: list[str] = []
    for joint, name in zip(joints, names, strict=True):
        if name not in adapters:
            continue
        kinds = {type(one) for one in adapters[name]}
        gone = [
            one for one in (term.site.adapter for term in joint.terms) if type(one) not in kinds
        ]
        turned.update({one.label for one in gone if one.needs_weight})
        if joint.whole is None and any(hides_kernel(one) for one in gone):
            kernels.append(name)
    if turned:
        methods = listed([f"{label} in {counted(n, 'layer')}" for label, n in turned.items()])
        notes.append(
            f"Depends on the weights that it changes, and was turned into its change of those of this "
            f"model: {methods}."
        )
    if kernels:
        notes.append(
            f"Nothing tells whether these layers have kernels, and they were stored as matrices: "
            f"{listed(kernels, 3)}. Connect the model if they have."
        )
    return notes
