"""The types of sockets that are not the host's."""

from comfy_api.latest import io

ScheduleSocket = io.Custom("ANYADAPTER_SCHEDULE")
"""Carries a `Schedule`."""

LoraStackSocket = io.Custom("LORA_STACK")
"""What packs of other authors exchange: a list of name, strength of the model, strength of CLIP."""

AdapterSocket = io.Custom("ANYADAPTER_ADAPTER")
"""Carries an `AdapterSet`, as it comes from training."""

DatasetSocket = io.Custom("ANYADAPTER_DATASET")
"""Carries a `Dataset` of training."""

MethodSocket = io.Custom("ANYADAPTER_METHOD")
"""Carries arguments of `MethodConfig` by name: which have a meaning, the method decides."""

OptimizerSocket = io.Custom("ANYADAPTER_OPTIMIZER")
"""Carries an `OptimizerConfig`, whose learning rate is that of the training node."""

LossSocket = io.Custom("ANYADAPTER_LOSS")
"""Carries a `NoiseConfig` and a `LossConfig`."""

LayersSocket = io.Custom("ANYADAPTER_LAYERS")
"""Carries a `LayersConfig`."""

SamplesSocket = io.Custom("ANYADAPTER_SAMPLES")
"""Carries a `SamplesConfig`."""
