"""Both trainers that are measured beside each other, at the smallest size."""

from dataclasses import replace

import pytest

import training
import world
from settings import Settings
from train_once import run

SMALLEST = Settings("small", runs=1, latent=8, batch=1)


@pytest.fixture(scope="module", autouse=True)
def base() -> None:
    world.make_base("small")


def test_they_learn_from_the_same_model_at_the_same_noise() -> None:
    jobs = training.jobs_of(SMALLEST, steps=8)
    compared = (training.SAME, training.HOST)
    ours, host = run([replace(jobs[who], measure_loss=True) for who in compared])
    assert ours.losses is not None
    assert host.losses is not None
    assert ours.losses[0] == host.losses[0]
    assert ours.losses[1] < ours.losses[0]
    assert host.losses[1] < host.losses[0]
    assert min(ours.seconds, host.seconds) > 0
