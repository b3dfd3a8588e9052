"""Latents of the small checkpoint: plain, with adapters loaded by nodes, and with them baked in."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from base_directory import CHECKPOINT_NAME, cached_checkpoint
from comfy_server import ComfyServer
from made_adapters import Applied, bake_sum, put_adapter
from workflows import Prompt, node, read_latent, side_by_side, text_to_latent

Mode = Literal["hook", "patch"]
MODES: tuple[Mode, ...] = ("hook", "patch")
PAIR = (1.0, 0.6)
"""Strengths at which every method is compared."""


class Pictures:
    """Runs prompts on one server, and keeps the latents that several tests compare with."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self._runs = 0
        self._baked: dict[tuple[Applied, ...], Tensor] = {}
        self._loaded: dict[tuple[Mode, tuple[Applied, ...]], Tensor] = {}
        self.plain = self.latent(text_to_latent(CHECKPOINT_NAME))

    def run(self, prompt: Prompt) -> dict[str, Any]:
        """Runs a prompt and returns its history entry.

        Every run saves under a name of its own: a node that has already saved the same in the
        prompt before is skipped, and its file does not stand in the history.
        """
        self._runs += 1
        for one in prompt.values():
            if one["class_type"] == "SaveLatent":
                one["inputs"]["filename_prefix"] = f"run_{self._runs}"
        return self.server.run(prompt)

    def latent(self, prompt: Prompt) -> Tensor:
        """Runs a prompt and returns the latent that it saves."""
        return read_latent(self.server, self.run(prompt))

    def adapter(self, method: str) -> str:
        """Returns the name of a method's file, which it writes at first."""
        folder = self.server.base_directory / "models" / "loras"
        return put_adapter(method, cached_checkpoint(), folder)

    def loader(self, applied: Applied, mode: Mode) -> dict[str, Any]:
        """Returns the inputs of a Load Adapter node."""
        return {
            "adapter": self.adapter(applied.method),
            "strength_model": applied.strength_model,
            "strength_clip": applied.strength_clip,
            "mode": mode,
            "rank": applied.rank,
        }

    def prompt(self, applied: Sequence[Applied], modes: Sequence[Mode], **options: Any) -> Prompt:
        """Returns the prompt with a chain of Load Adapter nodes."""
        loaders = [self.loader(*one) for one in zip(applied, modes, strict=True)]
        return text_to_latent(CHECKPOINT_NAME, loaders, **options)

    def loaded(self, mode: Mode, *applied: Applied) -> Tensor:
        """Returns the latent with a chain of Load Adapter nodes, all in one mode."""
        if (mode, applied) not in self._loaded:
            prompt = self.prompt(applied, [mode] * len(applied))
            self._loaded[mode, applied] = self.latent(prompt)
        return self._loaded[mode, applied]

    def by_host(self, applied: Applied) -> Tensor:
        """Returns the latent with the host's own loader node."""
        loader = {
            "lora_name": self.adapter(applied.method),
            "strength_model": applied.strength_model,
            "strength_clip": applied.strength_clip,
        }
        return self.latent(text_to_latent(CHECKPOINT_NAME, [loader], loader_class="LoraLoader"))

    def baked(self, *applied: Applied) -> Tensor:
        """Returns the latent of a checkpoint with the effects of these adapters in its weights."""
        if applied not in self._baked:
            (one, *others) = applied
            at_full = replace(one, strength_model=1.0, strength_clip=1.0)
            if not others and one.strength_model == one.strength_clip in PAIR:
                for strength, latent in zip(PAIR, self._bake_pair(at_full), strict=True):
                    at = replace(one, strength_model=strength, strength_clip=strength)
                    self._baked[at,] = latent
            else:
                (self._baked[applied],) = self._sampled(applied, text_to_latent)
        return self._baked[applied]

    def _bake_pair(self, applied: Applied) -> list[Tensor]:
        """Returns the latents at both strengths of PAIR, of which only the first is baked.

        The host's own nodes blend that checkpoint with the plain one: W + 0.6 (W' - W).
        """

        def prompt(checkpoint: str) -> Prompt:
            full = text_to_latent(checkpoint)
            weaker = text_to_latent(CHECKPOINT_NAME)
            blended = {"ratio": PAIR[1]}
            weaker |= {
                "baked": full["checkpoint"],
                "model": node(
                    "ModelMergeSimple", model1=["baked", 0], model2=["checkpoint", 0], **blended
                ),
                "clip": node(
                    "CLIPMergeSimple", clip1=["baked", 1], clip2=["checkpoint", 1], **blended
                ),
            }
            weaker["sampler"]["inputs"]["model"] = ["model", 0]
            for text in ("positive", "negative"):
                weaker[text]["inputs"]["clip"] = ["clip", 0]
            return side_by_side(full, weaker)

        return self._sampled([applied], prompt)

    def _sampled(self, applied: Sequence[Applied], prompt: Callable[[str], Prompt]) -> list[Tensor]:
        """Bakes a checkpoint, runs a prompt on it, and returns the latents that this saves."""
        for one in applied:
            self.adapter(one.method)  # while what it is made of is at hand
        path = self._checkpoints / f"baked_{self._runs}.safetensors"
        bake_sum(applied, cached_checkpoint(), path)
        try:
            history = self.run(prompt(path.name))
            saved = ("save", "other_save")
            return [
                read_latent(self.server, history, one) for one in saved if one in history["outputs"]
            ]
        finally:
            path.unlink()

    def error(self, latent: Tensor, *applied: Applied) -> float:
        """Returns how far a latent is from the baked one, relative to the effect."""
        expected = self.baked(*applied)
        return ((latent - expected).norm() / (expected - self.plain).norm()).item()

    @property
    def _checkpoints(self) -> Path:
        return self.server.base_directory / "models" / "checkpoints"
