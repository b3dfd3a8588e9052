"""The types of sockets that are not the host's."""

from comfy_api.latest import io

ScheduleSocket = io.Custom("ANYADAPTER_SCHEDULE")
"""Carries a `Schedule`."""

LoraStackSocket = io.Custom("LORA_STACK")
"""What packs of other authors exchange: a list of name, strength of the model, strength of CLIP."""

DatasetSocket = io.Custom("ANYADAPTER_DATASET")
"""Carries a `Dataset`."""
