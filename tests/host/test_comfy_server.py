"""The server that other tests rely on tells truthfully how a prompt ended."""

import pytest
import torch

from base_directory import CHECKPOINT_NAME
from comfy_server import (
    ComfyServer,
    PromptFailedError,
    PromptInterruptedError,
    PromptRejectedError,
)
from workflows import read_latent, text_to_latent


def test_a_workflow_gives_a_finite_latent(server: ComfyServer):
    latent = read_latent(server, server.run(text_to_latent(CHECKPOINT_NAME, size_px=64, batch=2)))
    assert latent.shape == (2, 4, 8, 8)
    assert latent.dtype == torch.float32
    assert latent.isfinite().all()


def test_a_result_is_the_same_after_the_model_was_unloaded(server: ComfyServer):
    before = read_latent(server, server.run(text_to_latent(CHECKPOINT_NAME)))
    server.free()
    after = read_latent(server, server.run(text_to_latent(CHECKPOINT_NAME, save_prefix="again")))
    assert torch.equal(after, before)


def test_a_prompt_with_an_unknown_checkpoint_is_rejected(server: ComfyServer):
    with pytest.raises(PromptRejectedError) as rejection:
        server.queue(text_to_latent("missing.safetensors"))
    assert rejection.value.node_errors["checkpoint"]["class_type"] == "CheckpointLoaderSimple"


def test_an_error_in_a_node_is_told(server: ComfyServer):
    (server.base_directory / "models" / "checkpoints" / "empty.safetensors").touch()
    with pytest.raises(PromptFailedError) as failure:
        server.run(text_to_latent("empty.safetensors"))
    assert failure.value.node_id == "checkpoint"
    assert failure.value.node_type == "CheckpointLoaderSimple"


def test_an_interrupted_prompt_is_told(server: ComfyServer):
    prompt_id = server.queue(text_to_latent(CHECKPOINT_NAME, steps=10_000, seed=2))
    server.wait_until_step()
    server.interrupt()
    with pytest.raises(PromptInterruptedError):
        server.wait(prompt_id)
