"""Load Adapter: puts the adapters of one file on a model and its text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..algorithms.binding import Binding, causes, families, require_match
from ..algorithms.errors import AdapterError, listed
from ..algorithms.families import in_text_encoder
from ..algorithms.formats.parse import AdapterSet
from ..algorithms.keymap import KeyMap
from ..algorithms.report import Coverage, report
from ..algorithms.schedule import Schedule
from ..algorithms.strength import Dial
from .host.applying import Applied, Mode, apply
from .host.bindings import binding_of
from .host.embeddings import offer
from .host.files import adapter_names, adapter_state, load_adapter
from .host.keymaps import diffusion_model_key_map, text_encoder_key_map
from .host.memory import AUTOMATIC
from .host.messages import show_text
from .schema import advanced
from .sockets import ScheduleSocket

MODEL = "diffusion model"
CLIP = "text encoder"
KEY_MAPS = {MODEL: diffusion_model_key_map, CLIP: text_encoder_key_map}
AS_TRAINED = "as trained"
AS_OTHERS = "as other loaders do"
EVERY_CONDITIONING = "every conditioning"
ASKING_CONDITIONINGS = "conditionings that ask for it"
STRENGTH = {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.01}


class LoadAdapter(io.ComfyNode):
    """Loads any adapter file and applies it, by hooks or by weight patches."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Returns inputs and outputs; widgets are only ever appended."""
        return io.Schema(
            node_id="AnyAdapterLoad",
            display_name="Load Adapter",
            category="Any Adapter",
            description=(
                "Applies a LoRA-like adapter of any kind to a model and its text encoders. "
                "Several of these nodes in a row add up, in any order."
            ),
            inputs=[
                io.Model.Input("model", optional=True, tooltip="The diffusion model to adapt."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoders to adapt."),
                io.Combo.Input(
                    "adapter", options=adapter_names(), tooltip="A file of the LoRA folders."
                ),
                io.Float.Input(
                    "strength_model",
                    **STRENGTH,
                    tooltip="How strongly the diffusion model is changed: 1 is as trained, "
                    "0 is not at all, negative is the opposite.",
                ),
                io.Float.Input(
                    "strength_clip",
                    **STRENGTH,
                    tooltip="How strongly the text encoders are changed.",
                ),
                advanced(
                    io.Combo.Input(
                        "mode",
                        options=["hook", "patch"],
                        default="hook",
                        tooltip="hook computes the change beside each layer and leaves the weights "
                        "alone, so another strength costs nothing. patch changes the weights as "
                        "ComfyUI's own loader does, for saving or compiling the model.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "rank",
                        default=0,
                        min=0,
                        max=4096,
                        tooltip="For DyLoRA files: use only the first ranks. 0 uses all.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "scale",
                        options=[AS_TRAINED, AS_OTHERS],
                        default=AS_TRAINED,
                        optional=True,  # workflows of before it in the API's form have none
                        tooltip="Some tools save files that act weaker in every loader than in "
                        "training. Where the metadata prove it, this is corrected and the report "
                        "says so; the second choice leaves it as it is elsewhere.",
                    )
                ),
                ScheduleSocket.Input(
                    "schedule",
                    optional=True,
                    tooltip="A curve that strength_model follows during sampling: connect Adapter "
                    "Schedule. Only in mode hook.",
                ),
                advanced(
                    io.Combo.Input(
                        "acts_on",
                        options=[EVERY_CONDITIONING, ASKING_CONDITIONINGS],
                        default=EVERY_CONDITIONING,
                        optional=True,
                        tooltip="Which conditionings the adapter acts on in the diffusion model: all, "
                        "or those that passed through Adapter for Conditioning. Only in mode hook.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "memory_mb",
                        default=AUTOMATIC,
                        min=AUTOMATIC,
                        max=1 << 20,
                        optional=True,
                        tooltip="Memory in MB for weights that hooks have built and would build again "
                        "at each step. -1 takes a twentieth of what is free; 0 keeps none.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.String.Output(
                    display_name="report",
                    tooltip="What the file is, what of it was applied, and what was not.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls, adapter: str, strength_model: float, strength_clip: float, **_: Any
    ) -> str:
        """Returns what changes when the file does, so that a new file is taken up."""
        if strength_model == 0 and strength_clip == 0:
            return ""
        return str(adapter_state(adapter))

    @classmethod
    def execute(
        cls,
        adapter: str,
        strength_model: float,
        strength_clip: float,
        mode: Mode = "hook",
        rank: int = 0,
        scale: str = AS_TRAINED,
        model: Any = None,
        clip: Any = None,
        schedule: Schedule | None = None,
        acts_on: str = EVERY_CONDITIONING,
        memory_mb: int = AUTOMATIC,
    ) -> io.NodeOutput:
        """Returns the adapted model and text encoders, with a report on the node."""
        parts: dict[str, Any] = {MODEL: model, CLIP: clip}
        strengths = {MODEL: strength_model, CLIP: strength_clip}
        on_request = acts_on == ASKING_CONDITIONINGS
        if mode == "patch" and (schedule is not None or on_request):
            raise AdapterError(
                "A patched weight is the same at every step and for every conditioning: for a "
                "schedule, or an adapter of some conditionings, choose mode hook."
            )
        dials = {
            MODEL: Dial(strength_model, adapter, schedule, on_request),
            CLIP: Dial(strength_clip, adapter),
        }
        connected = [name for name, part in parts.items() if part is not None]
        if not connected:
            raise AdapterError("Load Adapter has nothing to adapt: connect a model or a CLIP.")
        if all(strengths[name] == 0 for name in connected):
            return io.NodeOutput(model, clip, f"Strength 0: {adapter} was not read.")
        adapter_set = load_adapter(adapter, rank, corrections=scale == AS_TRAINED)
        notes: list[str] = []
        key_maps = {name: KEY_MAPS[name](parts[name]) for name in connected}
        bindings: dict[str, Binding] = {}
        for name, key_map in key_maps.items():
            try:
                bindings[name] = binding_of(adapter_set, key_map)
            except AdapterError as error:
                if strengths[name] != 0:
                    raise
                bindings[name] = Binding(())
                notes.append(f"At strength 0 the {name} is left alone; it would not fit: {error}")
        homeless = require_match(adapter_set, [*bindings.values()], [*key_maps.values()])
        if homeless:
            notes += _other_family(adapter_set, [*key_maps.values()])
        coverage: list[Coverage] = []
        for name, binding in bindings.items():
            parts[name], applied = _adapted(parts[name], binding, dials[name], mode, memory_mb)
            coverage.append(_coverage(name, binding, applied, homeless))
            notes += _limits(applied, dials[name])
            if strengths[name] == 0:
                notes.append(f"The {name} is left alone: its strength is 0.")
        if adapter_set.embeddings:
            parts[CLIP], sentences = _embeddings(adapter_set, parts[CLIP])
            notes += sentences
        causes_found = causes(adapter_set, homeless, key_maps.get(MODEL), key_maps.get(CLIP))
        text = report(adapter_set, coverage, causes_found, notes)
        show_text(cls.hidden.unique_id, text)
        return io.NodeOutput(*parts.values(), text, ui={"text": [text]})


def _adapted(
    part: Any, binding: Binding, dial: Dial, mode: Mode, memory_mb: int
) -> tuple[Any, Applied]:
    """Returns a clone of a MODEL or CLIP with the adapters, or itself where there is none."""
    if dial.strength == 0 or not binding.bound:
        return part, Applied()
    adapted = part.clone()
    patcher = getattr(adapted, "patcher", adapted)
    return adapted, apply(patcher, binding.bound, dial, mode, memory_mb)


def _coverage(part: str, binding: Binding, applied: Applied, homeless: Sequence[str]) -> Coverage:
    """Returns what became of a file in one part of the model."""
    missing = [module for module in homeless if in_text_encoder(module) == (part == CLIP)]
    fitting = {item.module for item in binding.bound}
    total = len(fitting) + len(binding.misfits) + len(missing)
    return Coverage(part, applied.layers, total, applied.unhooked, binding.misfits)


def _other_family(adapter_set: AdapterSet, key_maps: list[KeyMap]) -> list[str]:
    """Returns a warning if parts of a file fit although it was made for another family."""
    made_for, model = families(adapter_set, key_maps)
    if made_for is None or model is None or made_for == model:
        return []
    return [
        f"The file was made for {made_for.name}, the model is {model.name}: "
        "only what fits is applied."
    ]


def _embeddings(adapter_set: AdapterSet, clip: Any) -> tuple[Any, list[str]]:
    """Returns the CLIP with the embeddings of the file, and what was done with them."""
    names = list(adapter_set.embeddings)
    if clip is None:
        return clip, [f"Embeddings of the file not offered, no CLIP connected: {listed(names)}."]
    clip, offered, refused = offer(clip, adapter_set.embeddings)
    notes: list[str] = []
    if offered:
        words = [f"embedding:{name}" for name in offered]
        notes.append(f"Embeddings of the file, to use in a prompt: {listed(words)}.")
    if refused:
        notes.append(f"Embeddings of the file that this CLIP does not take: {listed(refused)}.")
    return clip, notes


def _limits(applied: Applied, dial: Dial) -> list[str]:
    """Returns what neither hooks nor patches could do, and which of the user's wishes it breaks."""
    notes: list[str] = []
    if applied.homeless_biases:
        notes.append(
            f"No bias in the model for {listed(applied.homeless_biases)}: mode patch cannot add "
            "one, mode hook can."
        )
    if applied.unhooked and (dial.schedule is not None or dial.on_request):
        notes.append(
            "What is patched follows no schedule and acts on every conditioning: "
            f"{listed(applied.unhooked)}."
        )
    return notes
