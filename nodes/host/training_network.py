"""Finds the layers to train in models of the host, and makes what learns beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Generator, nn

from ...algorithms.adapters import Adapter
from ...algorithms.errors import ShapeError, TrainingError, UnsupportedLayerError, listed
from ...algorithms.families.blocks import Section
from ...algorithms.formats.read import Progress, no_progress
from ...algorithms.training.config import OF_THE_METHOD, TrainingConfig
from ...algorithms.training.kohya_blocks import rules_of_arguments
from ...algorithms.training.methods import METHODS, MethodConfig
from ...algorithms.training.optimizer_kinds import single_rate
from ...algorithms.training.optimizers import ParameterGroup
from ...algorithms.training.rules import Chosen, PlacedRules, RuleTable
from ...algorithms.training.targets import Targets
from ...algorithms.training.trainable import TrainableAdapter, TrainableNetwork
from .training_hooks import Trained, blocks_of
from .training_targets import clip_targets, model_targets


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that learns."""

    name: str
    """Module name in the file."""
    section: Section
    """Whether it is of the diffusion model or of the text encoders."""
    path: str
    """Of the module in there."""
    rate: float
    """Factor on the learning rate."""


@dataclass(frozen=True, eq=False)
class Network:
    """What learns, where it stands, and how fast."""

    trainable: TrainableNetwork
    sites: tuple[Site, ...]
    groups: tuple[ParameterGroup, ...]
    targets: Targets
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """How many numbers learn."""
        return sum(one.numel() for one in self.trainable.parameters() if one.requires_grad)

    def adapters(self) -> dict[str, tuple[Adapter, ...]]:
        """Returns what a file holds, by module name."""
        return {name: (adapter,) for name, adapter in self.trainable.adapters().items()}

    def on(self, section: Section, model: nn.Module, *, checkpointing: bool) -> Trained:
        """Returns what stands on the diffusion model, or on the text encoders.

        Args:
            section: Which of both.
            model: Its modules.
            checkpointing: Whether its blocks are computed again for the gradient.
        """
        adapters = {
            one.path: self.trainable[one.name] for one in self.sites if one.section == section
        }
        return Trained(adapters, blocks_of(model, adapters) if checkpointing else ())


def build_network(
    model: ModelPatcher,
    clip: CLIP | None,
    config: TrainingConfig,
    adapter_dtype: torch.dtype,
    progress: Progress = no_progress,
) -> Network:
    """Makes what learns, at its start.

    Args:
        model: The diffusion model, loaded: starts of DoRA and T-LoRA read its weights.
        clip: The text encoders, where they learn too.
        config: Method, layers and rates.
        adapter_dtype: Of the parameters.
        progress: Told how many layers of how many have their start: some take seconds each.

    Raises:
        TrainingError: A rule is wrong, or no layer is left to train.
    """
    targets = model_targets(model)
    if clip is not None:
        targets = targets.joined(clip_targets(clip))
    placed = _placed(targets, config)
    generator = Generator().manual_seed(config.seed)
    device = model.load_device
    adapters: dict[str, TrainableAdapter] = {}
    sites: list[Site] = []
    left_out: dict[str, str] = {}
    not_taken: list[str] = []
    for number, chosen in enumerate(placed.chosen, start=1):
        progress(number, len(placed.chosen))
        layer = chosen.layer
        own = _method_of(config.method, chosen)
        try:
            start = METHODS[own.method].start(layer.layer, own, generator)
        except (ShapeError, UnsupportedLayerError) as error:
            left_out[layer.name] = str(error)
            continue
        if start is None:
            not_taken.append(layer.name)
            continue
        adapters[layer.name] = TrainableAdapter(
            start,
            own,
            dtype=adapter_dtype,
            reparametrized=single_rate(config.optimizer.name),
            sees_noise=layer.section == "model",
        ).to(device)
        sites.append(Site(layer.name, layer.section, layer.target.module, chosen.rate))
    if not adapters:
        why = next(iter(left_out.values()), "the method takes none of the layers that are chosen")
        raise TrainingError(f"{config.method.method} trains nothing here: {why.rstrip('.')}.")
    notes = [*placed.describe().splitlines()]
    if not_taken:
        notes.append(f"Of these the method does not take {listed(not_taken, 2)}.")
    if left_out:
        reasons = [f"{name} ({why})" for name, why in left_out.items()]
        notes.append(f"Layers that cannot have this method: {listed(reasons, 2)}.")
    groups = _groups(sites, adapters)
    return Network(TrainableNetwork(adapters), tuple(sites), groups, targets, tuple(notes))


def _placed(targets: Targets, config: TrainingConfig) -> PlacedRules:
    """Returns the layers to train: by the user's rules, sd-scripts' arguments, and a preset."""
    layers, method = config.layers, config.method
    table = RuleTable.parse(layers.rules)
    arguments = layers.arguments()
    if arguments:
        rate = config.optimizer.learning_rate
        table = table.followed_by(rules_of_arguments(arguments, targets, learning_rate=rate))
    preset = layers.preset if layers.preset != OF_THE_METHOD else _preset_of(method)
    table = table.followed_by(RuleTable.of_preset(preset))
    return table.on(targets, norms=method.train_norms)


def _preset_of(method: MethodConfig) -> str:
    """Returns the layers that the method's own tool adapts."""
    if method.method == "(IA)^3":
        return "ia3"
    if method.method == "OFT (kohya)":
        return "attn-only"
    return "C3Lier" if method.trains_kernels else "LierLa"


def _method_of(method: MethodConfig, chosen: Chosen) -> MethodConfig:
    known = {one.name for one in fields(MethodConfig)}
    options: dict[str, Any] = {
        name: value for name, value in chosen.options.items() if name in known
    }
    return replace(method, **options) if options else method


def _groups(
    sites: Sequence[Site], adapters: Mapping[str, TrainableAdapter]
) -> tuple[ParameterGroup, ...]:
    """Returns the parameters by their rates, under the names that other trainers log.

    Args:
        sites: Where they stand.
        adapters: What has them.
    """
    found: dict[tuple[Section, float, bool], list[nn.Parameter]] = {}
    for site in sites:
        adapter = adapters[site.name]
        for group, parameters in adapter.groups().items():
            is_plus = group == "plus" and adapter.config.ratio != 1
            factor = site.rate * (adapter.config.ratio if is_plus else 1.0)
            found.setdefault((site.section, factor, is_plus), []).extend(parameters)
    return tuple(
        ParameterGroup(_group_name(*key), tuple(parameters), key[1], key[0])
        for key, parameters in found.items()
        if parameters
    )


def _group_name(section: Section, factor: float, is_plus: bool) -> str:
    words = ["unet" if section == "model" else "textencoder"]
    words += ["plus"] if is_plus else []
    return " ".join(words if factor == 1 else [*words, f"x{factor:g}"])
