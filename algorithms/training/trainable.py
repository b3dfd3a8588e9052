"""Adapters as modules that learn: the tensors of any adapter as parameters, and a network of such.

An adapter is made anew from its parameters at every call, so that gradients flow through the very
functions that apply it later, and no method is written twice. What differs while it trains (a drawn
rank, masks, dropouts, a norm that counts as a constant) is put in at one place: `_in_training`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from ..adapters import Adapter
from ..adapters.dora import INNER, Dora
from ..adapters.glora import Glora
from ..adapters.lora import Lora
from ..errors import TrainingError
from ..layers import Layer
from ..shapes import Float
from .dropped_lora import DroppedLora
from .methods import METHODS, MethodConfig
from .trained_tlora import RankMasks, TrainedTlora
from .training_form import TrainingForm

Group = Literal["base", "plus"]


class TrainableAdapter(nn.Module):
    """One adapter that learns."""

    def __init__(
        self,
        start: Adapter,
        config: MethodConfig,
        *,
        dtype: torch.dtype = torch.float32,
        reparametrized: bool = False,
        sees_noise: bool = True,
    ) -> None:
        """Takes a start.

        Args:
            start: What `Method.start` gives.
            config: The configuration that it was made with.
            dtype: Of the parameters.
            reparametrized: LoRA+ for an optimiser with one learning rate: the parameter is
                u = up / ratio, so that a step of it is `config.ratio` times one of up. It is LoRA+
                for optimisers that do not see the size of a gradient, as Adam, but for their eps
                and weight decay. Else the ratio is the matter of `groups`.
            sees_noise: Whether its inputs are as noisy as the samples: those of text encoders are not.
        """
        super().__init__()
        self.config = config
        self.form = start.to("meta")
        """The adapter without numbers, which are the parameters."""
        self._attributes = {name: _attribute(name) for name in self.form.tensors()}
        self._ratio = config.ratio if reparametrized else 1.0
        self._plus: set[str] = set()
        self._sees_noise = sees_noise
        self._drawn: float | None = None
        self._used: Tensor | None = None
        method = METHODS[config.method]
        for name, tensor in start.tensors().items():
            value = tensor.detach().to(dtype=dtype, copy=True)
            own = name.removeprefix(INNER)
            if own in method.plus:
                self._plus.add(name)
                value = value / self._ratio
            if own in method.fixed:
                self.register_buffer(_attribute(name), value)
            else:
                self.register_parameter(_attribute(name), nn.Parameter(value))

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the adapter by the names of its fields, with gradients."""
        found: dict[str, Tensor] = {}
        for name, attribute in self._attributes.items():
            value: Tensor = getattr(self, attribute)
            found[name] = value * self._ratio if name in self._plus and self._ratio != 1 else value
        return found

    def current(self) -> Adapter:
        """Returns the adapter as it is now, in the form that it trains in, with gradients."""
        return self.form.with_tensors(self.tensors())

    @torch.no_grad()
    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Gives some tensors other numbers, in place.

        Args:
            tensors: Names of fields of the adapter -> numbers.
        """
        for name, value in tensors.items():
            ratio = self._ratio if name in self._plus else 1.0
            own: Tensor = getattr(self, _attribute(name))
            own.copy_(value / ratio)

    def groups(self) -> Mapping[Group, list[nn.Parameter]]:
        """Returns the parameters: `plus` are those that LoRA+ gives the higher rate.

        With the ratio in the parameters themselves, all are `base`.
        """
        groups: dict[Group, list[nn.Parameter]] = {"base": [], "plus": []}
        attributes = {_attribute(name) for name in self._plus} if self._ratio == 1 else set[str]()
        for name, parameter in self.named_parameters():
            groups["plus" if name in attributes else "base"].append(parameter)
        return groups

    def begin_step(self, masks: RankMasks | None, drawn: float) -> None:
        """Takes what changes from step to step.

        Args:
            masks: T-LoRA's, for the noise of each sample; None is unknown.
            drawn: A number from 0 to below 1, by which DyLoRA chooses its rank.
        """
        self._drawn, self._used = drawn, None
        if masks is not None and self._sees_noise and isinstance(self.form, TrainedTlora):
            least, device = self.config.min_rank, next(self.parameters()).device
            self._used = masks.of(self.form.rank, least, self.config.rank_power, device)

    def change(
        self, x: Float[Tensor, "B ..."], y: Float[Tensor, "B ..."], layer: Layer
    ) -> Float[Tensor, "..."]:
        """Returns the change of an output; gradients reach the parameters, `x` and `y`.

        Args:
            x: The input of the layer.
            y: What the layer gives without the adapter.
            layer: The layer.

        Raises:
            TrainingError: T-LoRA cannot tell the samples of `x` apart.
            UnsupportedLayerError: DoRA needs the weight, and the layer does not give it.
        """
        config = self.config
        if self.training and self._is_left_out():
            return self._nothing(y)
        adapter, weight = self._in_training(self.current(), x), layer.blank
        if adapter.prepares_from_weight:
            dtype = torch.promote_types(x.dtype, torch.float32)
            weight = layer.weight(x.new_empty(0, dtype=dtype))
        ready = adapter.prepared(weight).to(x.device, x.dtype)
        change = ready.delta_output(x, y, layer)
        if self.training and config.rank_dropout and _drops_rows(adapter):
            rows = torch.rand(layer.weight_shape[0], device=y.device) > config.rank_dropout
            change = change * layer.over_channels(rows.to(y.dtype), y)
        return change

    @torch.no_grad()
    def adapter(self) -> Adapter:
        """Returns what a file stores: its tensors are copies, and making the very same change."""
        copies = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
        return _stored(self.form.with_tensors(copies), self.config)

    def _in_training(self, adapter: Adapter, x: Tensor) -> Adapter:
        """Returns an adapter as it is in this step, and on this input."""
        if isinstance(adapter, Dora):
            # The norm is that of the change without dropouts, as in PEFT.
            return replace(adapter, inner=self._in_training(adapter.inner, x))
        config, copies = self.config, 1
        used: Tensor | None = None
        if isinstance(adapter, TrainedTlora):
            copies = 2
            used = self._used_ranks(x) if self.training else None
        if isinstance(adapter, TrainingForm):
            adapter = adapter.as_lora()
        if not self.training:
            return adapter
        if isinstance(adapter, Glora) and config.rank_dropout:
            return _without_ranks(adapter, config.rank_dropout)
        if not isinstance(adapter, Lora):
            return adapter
        if config.method == "DyLoRA":
            adapter = self._truncated(adapter)
        if used is None and not config.dropout and not config.rank_dropout:
            return adapter
        return DroppedLora(
            adapter.up,
            adapter.down,
            adapter.alpha,
            dropout=config.dropout,
            rank_dropout=config.rank_dropout,
            used=used,
            copies=copies,
        )

    def _truncated(self, adapter: Lora) -> Lora:
        """Returns the ranks that DyLoRA uses in this step, at the scale of the whole.

        Departs from sd-scripts, which uses all ranks in training, and from LyCORIS, whose scale
        differs from that of the file.
        """
        assert self._drawn is not None, "a step of training begins with begin_step"
        unit = self.config.unit
        rank = unit * (int(self._drawn * (adapter.rank // unit)) + 1)
        cut, old = adapter.sliced(rank), rank - unit
        if self.config.dylora_gradient == "full":
            return cut
        up = torch.cat([cut.up[:, :old].detach(), cut.up[:, old:]], 1)
        return replace(cut, up=up, down=torch.cat([cut.down[:old].detach(), cut.down[old:]]))

    def _used_ranks(self, x: Tensor) -> Float[Tensor, "B R"] | None:
        """Returns 1 for the ranks that each sample of `x` uses, None for all."""
        used = self._used
        if used is None:
            return None
        if x.shape[0] % len(used):
            raise TrainingError(
                f"T-LoRA chooses ranks by the noise of each of {len(used)} samples, and a layer "
                f"gets {x.shape[0]} at once: set the batch size to 1, or leave the layer out."
            )
        return used.repeat_interleave(x.shape[0] // len(used), 0)

    def _is_left_out(self) -> bool:
        """Draws whether this call goes without the adapter."""
        share = self.config.module_dropout
        return share > 0 and float(torch.rand(())) < share

    def _nothing(self, y: Tensor) -> Tensor:
        """Returns 0, from which gradients of 0 reach all parameters: something to step with."""
        none = [parameter.flatten()[:0].sum() for parameter in self.parameters()]
        return torch.stack(none).sum().to(y.device, y.dtype)


class TrainableNetwork(nn.Module):
    """All adapters that learn, by key, in order."""

    def __init__(self, adapters: Mapping[str, TrainableAdapter]) -> None:
        """Takes adapters by any key: the target's, or a module name of a file."""
        super().__init__()
        self.keys: Sequence[str] = tuple(adapters)
        self.trainables = nn.ModuleDict(
            {_module_name(key): adapter for key, adapter in adapters.items()}
        )

    def __getitem__(self, key: str) -> TrainableAdapter:
        """Returns the adapter of a key."""
        found = self.trainables[_module_name(key)]
        assert isinstance(found, TrainableAdapter)
        return found

    def items(self) -> Iterator[tuple[str, TrainableAdapter]]:
        """Yields key and adapter, in order."""
        for key in self.keys:
            yield key, self[key]

    def begin_step(self, noise_levels: Float[Tensor, " B"] | None, generator: Generator) -> None:
        """Tells all adapters of a new step, or of a new batch of one.

        Args:
            noise_levels: For each sample, 0 without noise to 1 for noise alone, on the CPU; None is
                unknown.
            generator: DyLoRA's, on the CPU: one number for all adapters, or one for each.
        """
        masks = None if noise_levels is None else RankMasks(noise_levels)
        drawn = float(torch.rand((), generator=generator))
        for _, adapter in self.items():
            if adapter.config.dylora_per_module:
                drawn = float(torch.rand((), generator=generator))
            adapter.begin_step(masks, drawn)

    def adapters(self) -> dict[str, Adapter]:
        """Returns what a file stores, by key."""
        return {key: adapter.adapter() for key, adapter in self.items()}


def _attribute(name: str) -> str:
    """Returns the name of a field as a module can have it."""
    return name.replace(".", "_")


def _module_name(key: str) -> str:
    return key.replace(".", "/")


def _stored(adapter: Adapter, config: MethodConfig) -> Adapter:
    """Returns a form that files have."""
    if isinstance(adapter, Dora):
        return replace(adapter, inner=_stored(adapter.inner, config))
    if isinstance(adapter, TrainedTlora) and config.tlora_format == "LyCORIS":
        return adapter.as_tlora()
    return adapter.as_lora() if isinstance(adapter, TrainingForm) else adapter


def _drops_rows(adapter: Adapter) -> bool:
    """Whether rank dropout means output rows: there are no ranks, or none to put a mask on."""
    inner = adapter.inner if isinstance(adapter, Dora) else adapter
    return not isinstance(inner, Lora | Glora)


def _without_ranks(adapter: Glora, share: float) -> Glora:
    """Returns a GLoRA without some of its ranks, drawn apart for both products, as LyCORIS does.

    LyCORIS 4.1.3 keeps that share instead of leaving it out.
    """
    masks = {
        name: (torch.rand(len(factor), device=factor.device) > share).to(factor.dtype)
        for name, factor in (("a2", adapter.a2), ("b2", adapter.b2))
    }
    factors = adapter.tensors()
    return adapter.with_tensors(
        {
            name: factors[name] * mask.reshape(-1, *[1] * (factors[name].ndim - 1))
            for name, mask in masks.items()
        }
    )
