"""Prompts in the API's form that know only the inputs of an earlier version run as they did."""

import pytest
import torch

from base_directory import CHECKPOINT_NAME, make_example_adapters
from comfy_server import ComfyServer
from workflows import ADDED_TO_LOAD, read_latent, text_to_latent

FIRST = {"strength_model": 0.8, "strength_clip": 0.6, "mode": "hook", "rank": 0}


@pytest.fixture(scope="module", autouse=True)
def adapters(server: ComfyServer) -> None:
    make_example_adapters(server.base_directory)


def test_a_prompt_without_the_inputs_that_were_added_gives_the_same(server: ComfyServer):
    first = {"adapter": "locon.safetensors", **FIRST}
    old, new, none = (
        read_latent(server, server.run(text_to_latent(CHECKPOINT_NAME, loaders)))
        for loaders in ([first], [{**first, **ADDED_TO_LOAD}], [])
    )
    assert torch.equal(old, new)
    assert not torch.equal(old, none)
