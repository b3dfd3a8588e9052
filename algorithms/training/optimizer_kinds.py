"""The optimisers that can be chosen: which package each comes from, and how it wants to be treated.

Only torch's are always there. The others are imported when they are chosen, and an error names the
package that is missing. Nothing else is imported by name, since names come from workflows of strangers.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch.optim import Optimizer

from ..errors import TrainingError, listed


@dataclass(frozen=True)
class OptimizerKind:
    """One optimiser: where it is found and what it needs of whoever steps it."""

    name: str
    module: str = "torch.optim"
    package: str = "torch"
    """What pip installs."""
    class_name: str = ""
    """In the module; empty where it is the name."""
    single_rate: bool = False
    """It has one learning rate for all groups. LoRA+ then needs the parameter `u = up / ratio` in
    place of `up`: a step of an Adam on `u` moves `up` by the ratio times the rate."""
    automatic: bool = False
    """It finds its rate itself, on which the learning rate is a factor, best 1."""
    schedule_free: bool = False
    """It averages its parameters, which replaces a schedule: what it trains is not what is saved."""
    own_clipping: bool = False
    """It limits its steps itself, and a clipped gradient would mislead it."""
    matrices_only: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments that make it what its name says."""


BITSANDBYTES = ("bitsandbytes.optim", "bitsandbytes")
PRODIGY_PLUS = ("prodigyplus", "prodigy-plus-schedule-free")
SCHEDULE_FREE = ("schedulefree", "schedulefree")
PYTORCH_OPTIMIZER = ("pytorch_optimizer", "pytorch-optimizer")

KINDS = (
    OptimizerKind("AdamW"),
    OptimizerKind("Adam"),
    OptimizerKind("SGD"),
    OptimizerKind("SGDNesterov", class_name="SGD", arguments={"momentum": 0.9, "nesterov": True}),
    OptimizerKind("RMSprop"),
    OptimizerKind("Adagrad"),
    OptimizerKind("Adadelta"),
    OptimizerKind("Adamax"),
    OptimizerKind("RAdam"),
    OptimizerKind("NAdam"),
    OptimizerKind("Adafactor"),
    OptimizerKind("Muon", matrices_only=True),
    OptimizerKind("AdamW8bit", *BITSANDBYTES),
    OptimizerKind("PagedAdamW8bit", *BITSANDBYTES),
    OptimizerKind("Lion8bit", *BITSANDBYTES),
    OptimizerKind("AdEMAMix8bit", *BITSANDBYTES),
    OptimizerKind("Prodigy", "prodigyopt", "prodigyopt", single_rate=True, automatic=True),
    OptimizerKind(
        "ProdigyPlusScheduleFree",
        *PRODIGY_PLUS,
        automatic=True,
        schedule_free=True,
        own_clipping=True,
    ),
    OptimizerKind("AdamWScheduleFree", *SCHEDULE_FREE, schedule_free=True),
    OptimizerKind("RAdamScheduleFree", *SCHEDULE_FREE, schedule_free=True),
    OptimizerKind("SGDScheduleFree", *SCHEDULE_FREE, schedule_free=True),
    OptimizerKind("Lion", *PYTORCH_OPTIMIZER),
    OptimizerKind("CAME", *PYTORCH_OPTIMIZER),
)
OPTIMIZERS: Mapping[str, OptimizerKind] = MappingProxyType({kind.name: kind for kind in KINDS})
"""By name. Those of pytorch-optimizer are there besides, as `pytorch_optimizer.NAME`."""

PREFIX = "pytorch_optimizer."
UNFIT = frozenset(
    {
        *("AdaGO", "AdaHessian", "AdaLOMO", "AdaMuon", "AdamMini", "AliG", "DeMo"),
        *("DistributedMuon", "LBFGS", "LOMO", "LoRARite", "Muon", "MuonClip", "NorMuon"),
        *("SophiaH", "SpectralSphere", "SPlus"),
    }
)
"""Of pytorch-optimizer: these need a closure, second derivatives, the whole model, several processes,
marked or paired parameters, or a switch of their own before saving."""
UNSAVABLE = frozenset(
    {
        *("AdaShift", "AggMo", "Conda", "Kron", "ROSE", "SCION", "SCIONLight"),
        "ScalableShampoo",
    }
)
"""Of pytorch-optimizer: these keep objects that no safetensors file holds."""


def kind_of(name: str) -> OptimizerKind:
    """Returns the optimiser of a name, without importing it.

    Raises:
        TrainingError: There is none of that name.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    class_name = name.removeprefix(PREFIX)
    if class_name == name or not class_name.isidentifier():
        raise TrainingError(
            f'There is no optimiser "{name}". Choose one of {", ".join(OPTIMIZERS)}, or '
            f"{PREFIX}NAME for any of the package pytorch-optimizer."
        )
    if class_name in UNFIT:
        raise TrainingError(
            f"{name} cannot train adapters here: it needs more than gradients. Choose another one."
        )
    if class_name in UNSAVABLE:
        raise TrainingError(
            f"{name} cannot train adapters here: its state cannot be saved. Choose another one."
        )
    return OptimizerKind(
        name,
        *PYTORCH_OPTIMIZER,
        class_name,
        single_rate=class_name.startswith("DAdapt"),
        automatic=class_name.startswith(("DAdapt", "Prodigy")),
        schedule_free=class_name.startswith("ScheduleFree"),
    )


def single_rate(name: str) -> bool:
    """Whether the optimiser of a name has one learning rate for all groups."""
    return kind_of(name).single_rate


def load_class(kind: OptimizerKind) -> type[Optimizer]:
    """Imports an optimiser.

    Raises:
        TrainingError: Its package is not installed, or has no such optimiser.
    """
    class_name = kind.class_name or kind.name
    try:
        module = importlib.import_module(kind.module)
    except ImportError as error:
        raise TrainingError(
            f"{kind.name} needs the package {kind.package}: pip install {kind.package} in ComfyUI's "
            f"Python. ({error})"
        ) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise TrainingError(
            f"The installed version of the package {kind.package} has no optimiser {class_name}. "
            "Update the package, or choose another optimiser."
        )
    return found


def read_arguments(text: str) -> dict[str, Any]:
    """Returns arguments written as in sd-scripts: `betas=.9,.99 eps=1e-8 nesterov=True`.

    Raises:
        TrainingError: A piece is no `key=value`, or its value is no number, truth value, None, text in
            quotes or list of such.
    """
    arguments: dict[str, Any] = {}
    # A space parts arguments only before the next key, so that tuples may have some.
    for piece in re.split(r"\s+(?=[^\W\d]\w*\s*=)", text.strip()) if text.strip() else ():
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not equals or not key.isidentifier():
            raise TrainingError(
                f'"{piece}" is no argument of an optimiser: write key=value, with spaces between, '
                "such as betas=0.9,0.99 eps=1e-8."
            )
        if key in arguments:
            raise TrainingError(f"The argument {key} of the optimiser is given twice.")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise TrainingError(
                f'The value of "{piece}" is not understood: write a number, True, False, None, '
                'several with commas between, or a text in quotes, such as name="text".'
            ) from error
    return arguments


def check_arguments(kind: OptimizerKind, found: type[Optimizer], keys: set[str]) -> None:
    """Checks that an optimiser takes a learning rate and the given arguments, and needs no others.

    Raises:
        TrainingError: It does not; the message says what it takes.
    """
    parameters = dict(inspect.signature(found).parameters)
    parameters.pop("params", None)
    # A `**kwargs` would swallow what is misspelled.
    named = {
        name: one
        for name, one in parameters.items()
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    }
    required = [name for name, one in named.items() if one.default is one.empty and name != "lr"]
    if "lr" not in named or required:
        lacking = f"asks for {listed(required)}" if required else "has no learning rate"
        raise TrainingError(
            f"{kind.name} cannot train adapters here: it {lacking}. Choose another one."
        )
    if "lr" in keys:
        raise TrainingError("The learning rate is no argument here: set it by its own input.")
    if unknown := sorted(keys - set(named)):
        known = [name for name in named if name != "lr"]
        raise TrainingError(
            f"{kind.name} has no argument {listed(unknown)}. It has {', '.join(known)}."
        )
