"""Trainings that are cut, by a wish or by an accident, and go on as if they had not been."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
from comfy.model_management import InterruptProcessingException
from torch import Tensor

import training_prompts as prompts
from anyadapter.algorithms.errors import TrainingError
from anyadapter.algorithms.formats.write import to_tensors
from anyadapter.algorithms.training.captions import CaptionConfig
from anyadapter.algorithms.training.methods import MethodConfig
from anyadapter.algorithms.training.optimizers import OptimizerConfig
from anyadapter.algorithms.training.schedules import ScheduleConfig
from anyadapter.nodes.host.training_view import TrainingView
from anyadapter.nodes.training import RESUME
from base_directory import make_base_directory
from comfy_server import ComfyServer, PromptInterruptedError
from training_prompts import listed, loading, sampling, stop, training, wait_until_step, write_scene
from training_world import (
    Trial,
    dataset,
    item,
    names_below,
    same,
    settings,
    tensors,
    with_moment,
)

CHANGEABLE = settings(
    method=MethodConfig("LoRA-LierLa", rank=4, alpha=4.0, dropout=0.1, rank_dropout=0.1),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, schedule=ScheduleConfig("cosine", warmup=2.0), ema_decay=0.5
    ),
    steps=4,
    accumulation=2,
)
"""Settings under which much depends on where a run is: random numbers, rates and an average."""
DATA = replace(
    dataset(*(item(number, "tall, white, old") for number in range(3)), flip=True),
    captions=CaptionConfig(shuffle=True, tag_dropout=0.2),
)
IN_STEP_3 = 6
"""The call of the model for the second batch of the third step."""


def in_step_3(act: Callable[[], None]) -> Any:
    def moment(number: int) -> None:
        if number == IN_STEP_3:
            act()

    return with_moment(moment)


def test_a_run_that_is_cancelled_in_a_step_goes_on_before_that_step(loras: Path):
    cut = Trial(
        CHANGEABLE, DATA, model=in_step_3(comfy.model_management.interrupt_current_processing)
    )
    view = TrainingView("1", 4)
    with pytest.raises(InterruptProcessingException):
        cut.run(view=view)
    assert names_below(loras) == ["cat-state/resume.state", "cat-step00000002.safetensors"]
    assert view.state()["saved"] == "cat-step00000002.safetensors"
    resumed = replace(cut, model=None).run(resume=True)
    assert [step for step, _ in resumed.losses] == [3, 4]
    whole = replace(cut, name="whole", model=None).run()
    assert resumed.losses == whole.losses[2:]
    assert same(tensors(resumed.name), tensors(whole.name))


def test_a_run_that_is_told_to_stop_keeps_the_step_it_is_at(loras: Path):
    view = TrainingView("1", 4)
    trial = Trial(CHANGEABLE, DATA)
    stopped = replace(trial, model=in_step_3(view.want_stop)).run(view=view)
    assert [step for step, _ in stopped.losses] == [1, 2, 3]
    assert names_below(loras) == ["cat-state/resume.state", "cat.safetensors"]
    resumed = trial.run(resume=True)
    assert resumed.name == "cat_2.safetensors"
    whole = replace(trial, name="whole").run()
    assert stopped.losses + resumed.losses == whole.losses
    assert same(tensors(resumed.name), tensors(whole.name))


def test_a_run_that_is_at_its_end_gives_what_it_had(loras: Path):
    trial = Trial(settings(steps=1))
    trial.run()
    longer = replace(trial, config=settings(steps=2)).run(resume=True)
    before = names_below(loras)
    again = replace(trial, config=settings(steps=2)).run(resume=True)
    assert again.name == longer.name == "cat_2.safetensors"
    assert names_below(loras) == before
    assert same(to_tensors(again.adapter_set)[0], tensors(longer.name))
    assert "It was at step 2 already: raise steps to train it further." in again.report


@pytest.mark.usefixtures("loras")
def test_a_state_of_other_settings_is_refused_by_their_names():
    Trial(settings(steps=1)).run()
    other = settings(
        rate=2e-3, method=MethodConfig("LoRA-LierLa", rank=8, alpha=4.0), batch_size=2, steps=2
    )
    with pytest.raises(TrainingError) as caught:
        Trial(other).run(resume=True)
    for difference in (
        "batch_size was 1 and is 2",
        "method.rank was 4 and is 8",
        "optimizer.learning_rate was 0.001 and is 0.002",
        "Set them as they were, or begin a new run",
    ):
        assert difference in str(caught.value)


def test_there_must_be_a_state_to_go_on_from(loras: Path):
    with pytest.raises(TrainingError, match="There is nothing to go on from"):
        Trial().run(resume=True)
    assert names_below(loras) == []


def test_only_as_many_files_of_moments_stay_as_are_wanted(loras: Path):
    Trial(settings(steps=4, save_every=1, keep_checkpoints=2)).run()
    assert names_below(loras) == [
        "cat-state/resume.state",
        "cat-step00000002.safetensors",
        "cat-step00000003.safetensors",
        "cat.safetensors",
    ]


@pytest.fixture(scope="module")
def scene(server: ComfyServer) -> str:
    """The name of a folder with a picture."""
    return write_scene(server, "stops")


def uncut(server: ComfyServer, folder: str, steps: int, **inputs: Any) -> dict[str, Tensor]:
    """What is in the file of a run of so many steps that nothing has disturbed."""
    prompt = training(folder, steps=steps, output_name=f"uncut_{steps}", **inputs)
    return prompts.tensors(server, prompts.saved(server.run(prompt)))


def resumed(server: ComfyServer, folder: str, name: str, steps: int, **inputs: Any) -> str:
    """Goes on with a run over HTTP, and returns the name of its file."""
    prompt = training(folder, steps=steps, output_name=name, resume=RESUME, **inputs)
    return prompts.saved(server.run(prompt))


def test_cancel_ends_a_training_within_a_step_and_loses_nothing(server: ComfyServer, scene: str):
    running = server.queue(training(scene, steps=500, output_name="cancelled"))
    wait_until_step(server, 2)
    server.interrupt()
    reached = prompts.state(server)["step"]
    with pytest.raises(PromptInterruptedError, match="interrupted in train"):
        server.wait(running)
    shown = prompts.state(server)
    assert not shown["running"]
    assert reached <= shown["step"] <= reached + 1
    step = shown["step"]
    assert shown["saved"] == f"cancelled-step{step:08d}.safetensors"
    assert shown["saved"] in listed(server)
    name = resumed(server, scene, "cancelled", step + 2)
    assert name == "cancelled.safetensors"
    assert same(prompts.tensors(server, name), uncut(server, scene, step + 2))


def test_stop_and_keep_ends_a_training_and_the_graph_goes_on(server: ComfyServer, scene: str):
    prompt = training(scene, steps=500, output_name="stopped") | {"load": loading()}
    running = server.queue(prompt | sampling("stopped", "load"))
    stop(server, wait_until_step(server, 2)["run"])
    reached = prompts.state(server)["step"]
    history = server.wait(running)
    assert "stopped_latent" in history["outputs"]
    step = prompts.state(server)["step"]
    assert reached <= step <= reached + 1
    assert prompts.saved(history) == "stopped.safetensors"
    name = resumed(server, scene, "stopped", step + 2)
    assert name == "stopped_2.safetensors"
    assert same(prompts.tensors(server, name), uncut(server, scene, step + 2))


def test_a_server_that_dies_leaves_a_state_to_go_on_from(
    server: ComfyServer, scene: str, comfyui: Path, tmp_path: Path
):
    make_base_directory(tmp_path)
    own = {"save_every": 2, "method": "LoKr", "learning_rate": 3e-3}
    with ComfyServer(comfyui, tmp_path) as dying:
        write_scene(dying, scene)
        dying.queue(training(scene, steps=500, output_name="killed", **own))
        wait_until_step(dying, 5)
        dying.kill()
    for left in prompts.loras(dying).iterdir():
        shutil.move(left, prompts.loras(server))
    step = max(int(one.stem[-8:]) for one in prompts.loras(server).glob("killed-step*.safetensors"))
    name = resumed(server, scene, "killed", step + 3, **own)
    assert name == "killed.safetensors"
    assert same(prompts.tensors(server, name), uncut(server, scene, step + 3, **own))


@pytest.mark.usefixtures("loras")
def test_other_pictures_are_told_where_a_run_goes_on():
    trial = Trial(settings(steps=1))
    trial.run()
    longer = replace(trial, config=settings(steps=2))
    assert "pictures are others" not in longer.run(resume=True).report
    more = replace(trial, data=dataset(item(0), item(1)), config=settings(steps=3))
    assert "The pictures are others than those" in more.run(resume=True).report
