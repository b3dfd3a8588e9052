"""What a trained file says of its making, and that our own reader and others understand it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from anyadapter.algorithms.families import FAMILIES
from anyadapter.algorithms.formats.description import Sidecar, describe
from anyadapter.algorithms.formats.metadata import AdapterMetadata
from anyadapter.algorithms.training.methods import METHODS
from anyadapter.algorithms.training.network_args import network_args
from anyadapter.algorithms.training.run_metadata import (
    FAMILY_NAMES,
    DataFacts,
    OptimizationFacts,
    RunFacts,
    metadata_of,
    without_folders,
)

BY_NAME = {family.name: family for family in FAMILIES}
FINISHED = 1_760_000_000.5
RUN = RunFacts(
    family=BY_NAME["SDXL"],
    prediction="eps",
    network_module="networks.lora",
    network_dim=16,
    network_alpha=8.0,
    optimization=OptimizationFacts(
        learning_rate=1e-4,
        text_encoder_lr=5e-5,
        optimizer="torch.optim.AdamW(weight_decay=0.01)",
        lr_scheduler="cosine",
        min_snr_gamma=5.0,
        gradient_checkpointing=True,
    ),
    output_name="styles/cat",
    session_id=7,
    training_started_at=FINISHED - 60,
    training_finished_at=FINISHED,
    steps=1200,
    epoch=3,
    network_args={"conv_dim": 4},
    data=DataFacts(
        num_train_images=40,
        total_batch_size=2,
        resolution=(1024, 768),
        tag_frequency={"/home/me/pictures/10_cat": {"cat": 3, "</3": 1}, "5_dog": {"cat": 2}},
        dataset_dirs={"C:\\Users\\me\\10_cat": {"n_repeats": 10, "img_count": 4}},
    ),
    trigger_phrase="fluffy",
    configuration={"steps": 1200, "folder": "/home/me/pictures/10_cat", "rules": "*attn2*: off"},
)


def test_numbers_and_truth_values_are_written_as_python_does():
    found = metadata_of(RUN)
    expected = {
        "ss_network_dim": "16",
        "ss_network_alpha": "8.0",
        "ss_learning_rate": "0.0001",
        "ss_gradient_checkpointing": "True",
        "ss_min_snr_gamma": "5.0",
        "ss_resolution": "(1024, 768)",
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_args": '{"conv_dim": 4}',
        "ss_output_name": "cat",
        "ss_dataset_dirs": '{"10_cat": {"n_repeats": 10, "img_count": 4}}',
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "cat",
        "modelspec.resolution": "1024x768",
        "modelspec.prediction_type": "epsilon",
        "modelspec.date": "2025-10-09T08:53:20+00:00",
    }
    assert {key: found[key] for key in expected} == expected
    assert "ss_noise_offset" not in found
    assert "None" not in found.values()
    assert all(isinstance(value, str) for value in found.values())


def test_our_own_reader_understands_all_of_it():
    found = describe(metadata_of(RUN), Sidecar())
    assert (found.base_model, found.title) == ("sdxl_base_v1-0", "cat")
    assert (found.resolution, found.date) == ("1024 x 768", "2025-10-09T08:53:20+00:00")
    assert found.training == {
        "steps": "1200",
        "epochs": "3",
        "images": "40",
        "batch_size": "2",
        "rank": "16",
        "alpha": "8.0",
        "learning_rate": "0.0001",
        "learning_rate_text_encoder": "5e-05",
        "optimizer": "torch.optim.AdamW(weight_decay=0.01)",
        "scheduler": "cosine",
        "min_snr_gamma": "5.0",
        "network": "networks.lora",
        "software": "Any Adapter",
    }
    assert [(word.text, word.source) for word in found.trigger_words] == [
        ("fluffy", "metadata"),
        ("cat", "folder"),
        ("dog", "folder"),
    ]
    assert dict(found.tags) == {"cat": 5, "</3": 1}


def test_the_minimum_tells_how_to_load_the_file_and_no_more():
    assert set(metadata_of(RUN, minimal=True)) == {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_args",
    }


def test_the_configuration_comes_back_without_folders():
    read = json.loads(metadata_of(RUN)["anyadapter.training"])
    assert read == {"steps": 1200, "folder": "10_cat", "rules": "*attn2*: off"}


PATHS = ("/home/me/data/10_cat", "C:\\Users\\me\\10_cat", "C:/Users/me/10_cat", "~/me/10_cat")


@pytest.mark.parametrize("path", [*PATHS, "\\\\server\\me\\10_cat", "file:///home/me/10_cat"])
def test_no_folder_of_a_path_is_written_anywhere(path: str):
    run = replace(
        RUN,
        output_name=path,
        network_args={"preset": path},
        data=DataFacts(
            tag_frequency={path: {"cat": 1}},
            dataset_dirs={path: {"img_count": 1}},
            reg_dataset_dirs={path: {"img_count": 1}},
        ),
        configuration={path: [{"text": f"from {path} and '{path}'"}], "more": (path,)},
    )
    written = "\n".join(metadata_of(run).values())
    assert "10_cat" in written
    assert not any(part in written for part in ("home", "Users", "me/", "me\\", "server", "~"))


@pytest.mark.parametrize(
    "text",
    [
        "re:\\.attn\\.to_q$: rank=4",
        "re:(a|b)\\.x\\.y",
        "https://example.com/a/b",
        "cat and/or dog",
        "1 / 2",
        "torch.optim.AdamW(betas=(0.9, 0.99))",
    ],
)
def test_what_is_no_path_is_left_alone(text: str):
    assert without_folders(text) == text


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_a_name_elsewhere(family: Any):
    found = metadata_of(replace(RUN, family=family, prediction="flow"))
    assert found["ss_base_model_version"] == FAMILY_NAMES[family.name].base_model_version
    assert found["modelspec.architecture"].endswith("/lora")
    assert "modelspec.prediction_type" not in found


def test_prediction_and_family_tell_the_variant():
    sd2 = replace(RUN, family=BY_NAME["SD 2.x"])
    assert metadata_of(sd2)["modelspec.architecture"] == "stable-diffusion-v2-512/lora"
    found = metadata_of(replace(sd2, prediction="v", data=DataFacts()))
    assert found["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert found["modelspec.resolution"] == "768x768"
    assert (found["ss_v2"], found["ss_base_model_version"]) == ("True", "sd_v2_v")
    assert found["modelspec.prediction_type"] == "v"
    flow = metadata_of(replace(RUN, family=BY_NAME["Chroma"], prediction="flow"))
    assert flow["ss_model_type"] == "chroma"
    assert metadata_of(replace(RUN, family=None))["ss_base_model_version"] == "unknown"


def metadata_of_method(name: str) -> AdapterMetadata:
    network = network_args(METHODS[name].recommended())
    run = replace(RUN, network_module=network.module, network_args=network.arguments)
    return AdapterMetadata(metadata_of(run))


@pytest.mark.parametrize("name", METHODS)
def test_modules_and_arguments_of_methods_are_read_back(name: str):
    network = network_args(METHODS[name].recommended())
    read = metadata_of_method(name)
    assert (read.network_module, read.network_args) == (network.module, network.arguments)
    assert read.is_lycoris_dylora is False


def test_training_methods_without_a_mark_in_the_tensors_are_known_again():
    told = {name: metadata_of_method(name).training for name in METHODS}
    assert {name: training for name, training in told.items() if training} == {
        "LoRA+": "LoRA+",
        "LoRA-FA": "LoRA-FA",
        "DyLoRA": "DyLoRA",
    }


def test_a_file_without_a_name_has_a_title_all_the_same():
    assert metadata_of(replace(RUN, output_name=""))["modelspec.title"] == f"Any Adapter@{FINISHED}"
