"""Latents of the small checkpoint: plain, with adapters loaded by nodes, and with them baked in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from base_directory import CHECKPOINT_NAME, cached_checkpoint
from comfy_server import ComfyServer
from made_adapters import Applied, bake_sum, write_adapter
from workflows import Prompt, read_latent, text_to_latent

Mode = Literal["hook", "patch"]
MODES: tuple[Mode, ...] = ("hook", "patch")


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
        for node in prompt.values():
            if node["class_type"] == "SaveLatent":
                node["inputs"]["filename_prefix"] = f"run_{self._runs}"
        return self.server.run(prompt)

    def latent(self, prompt: Prompt) -> Tensor:
        """Runs a prompt and returns the latent that it saves."""
        return read_latent(self.server, self.run(prompt))

    def adapter(self, method: str) -> str:
        """Returns the name of a method's file, which it writes at first."""
        name = f"{method}.safetensors"
        path = self.server.base_directory / "models" / "loras" / name
        if not path.exists():
            write_adapter(method, cached_checkpoint(), path)
        return name

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
            path = self._checkpoints / f"baked_{len(self._baked)}.safetensors"
            bake_sum(applied, cached_checkpoint(), path)
            try:
                self._baked[applied] = self.latent(text_to_latent(path.name))
            finally:
                path.unlink()
        return self._baked[applied]

    def error(self, latent: Tensor, *applied: Applied) -> float:
        """Returns how far a latent is from the baked one, relative to the effect."""
        expected = self.baked(*applied)
        return ((latent - expected).norm() / (expected - self.plain).norm()).item()

    @property
    def _checkpoints(self) -> Path:
        return self.server.base_directory / "models" / "checkpoints"
