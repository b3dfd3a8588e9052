"""What is known of a run, in the words in which files say it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..families import Family
from .config import Precision, TrainingConfig
from .dataset import Dataset, LatentSource
from .methods import ROTATIONS
from .model_sampling import Kind
from .network_args import network_args
from .run_metadata import DataFacts, OptimizationFacts, RunFacts
from .schedules import length_in_steps


@dataclass(frozen=True, eq=False)
class Begun:
    """What a run knows of itself once it has begun."""

    config: TrainingConfig
    dataset: Dataset
    """What is trained on, without what is held out."""
    held_out: int
    """Pictures that the loss is validated on."""
    family: Family | None
    prediction: Kind
    total_steps: int
    batches_per_epoch: int
    precision: Precision
    """What the model computes in."""
    session_id: int
    started_at: float
    """Unix time."""


def facts_of(begun: Begun, name: str, steps: int, epoch: int, now: float) -> RunFacts:
    """Returns what a file of a run says of it.

    Args:
        begun: The run.
        name: Of the file, without its ending.
        steps: Done so far.
        epoch: That it is in, from 0.
        now: Unix time.
    """
    config = begun.config
    method = config.method
    network = network_args(method)
    turns = method.method in ROTATIONS
    return RunFacts(
        family=begun.family,
        prediction=begun.prediction,
        network_module=network.module,
        network_dim=method.rank,
        network_alpha=method.constraint if turns else method.alpha,
        optimization=_optimization(begun),
        output_name=name,
        session_id=begun.session_id,
        training_started_at=begun.started_at,
        training_finished_at=now,
        steps=steps,
        epoch=epoch,
        network_dropout=method.dropout or None,
        network_args=network.arguments,
        data=_data(begun),
        trigger_phrase=begun.dataset.captions.trigger,
        configuration=_written(config),
    )


def _optimization(begun: Begun) -> OptimizationFacts:
    config = begun.config
    optimizer, noise, loss = config.optimizer, config.noise, config.loss
    flow = begun.prediction == "flow"
    text_rate = optimizer.text_encoder_rate
    text_rate = optimizer.learning_rate if text_rate is None else text_rate
    return OptimizationFacts(
        learning_rate=optimizer.learning_rate,
        unet_lr=optimizer.learning_rate,
        text_encoder_lr=text_rate if config.layers.text_encoders else 0.0,
        optimizer=f"{optimizer.name}({', '.join(optimizer.arguments.split())})",
        lr_scheduler=optimizer.schedule.name,
        lr_warmup_steps=length_in_steps(optimizer.schedule.warmup, begun.total_steps),
        max_grad_norm=optimizer.clip_norm,
        max_train_steps=begun.total_steps,
        num_epochs=math.ceil(begun.total_steps * config.accumulation / begun.batches_per_epoch),
        gradient_accumulation_steps=config.accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        mixed_precision="no" if begun.precision == "fp32" else begun.precision,
        seed=config.seed,
        loss_type=loss.loss_type,
        huber_schedule=loss.huber_schedule if loss.has_threshold else None,
        huber_c=loss.huber_c if loss.has_threshold else None,
        huber_scale=loss.huber_scale if loss.has_threshold else None,
        min_snr_gamma=loss.min_snr_gamma or None,
        debiased_estimation=None if flow else loss.debiased_estimation_loss,
        noise_offset=noise.noise_offset or None,
        noise_offset_random_strength=noise.noise_offset_random_strength or None,
        adaptive_noise_scale=noise.adaptive_noise_scale or None,
        multires_noise_iterations=noise.multires_noise_iterations or None,
        multires_noise_discount=noise.multires_noise_discount
        if noise.multires_noise_iterations
        else None,
        ip_noise_gamma=noise.ip_noise_gamma or None,
        ip_noise_gamma_random_strength=noise.ip_noise_gamma_random_strength or None,
        zero_terminal_snr=None if flow else noise.zero_terminal_snr,
        prior_loss_weight=loss.prior_loss_weight,
        scale_weight_norms=config.max_norm or None,
        weighting_scheme=loss.weighting if flow else None,
        timestep_sampling=noise.timestep_sampling if flow else None,
        sigmoid_scale=noise.sigmoid_scale if flow else None,
        discrete_flow_shift=noise.discrete_flow_shift if noise.shift == "constant" else None,
        logit_mean=noise.logit_mean if noise.timestep_sampling == "logit_normal" else None,
        logit_std=noise.logit_std if noise.timestep_sampling == "logit_normal" else None,
        mode_scale=noise.mode_scale if noise.timestep_sampling == "mode" else None,
        model_prediction_type="raw" if flow else None,
    )


def _data(begun: Begun) -> DataFacts:
    config, dataset = begun.config, begun.dataset
    side = dataset.resolution_px
    buckets_used = dataset.buckets.enabled and not dataset.buckets.no_upscale
    shortest, longest = dataset.buckets.limits_px(side) if buckets_used else (None, None)
    folders = dataset.folders()
    buckets = dataset.bucket_counts()
    return DataFacts(
        num_train_images=dataset.count(),
        num_reg_images=dataset.count(regularization=True),
        num_validation_images=begun.held_out,
        num_batches_per_epoch=begun.batches_per_epoch,
        batch_size_per_device=config.batch_size,
        total_batch_size=config.batch_size * config.accumulation,
        resolution=_resolution(dataset),
        enable_bucket=dataset.buckets.enabled,
        bucket_no_upscale=dataset.buckets.no_upscale,
        min_bucket_reso=shortest,
        max_bucket_reso=longest,
        bucket_info={
            "buckets": {
                str(number): {"resolution": list(size), "count": count}
                for number, (size, count) in enumerate(buckets.items())
            },
            "mean_img_ar_error": dataset.mean_aspect_error(),
        },
        tag_frequency=dataset.tag_frequency(),
        dataset_dirs={
            name: {"n_repeats": one.repeats, "img_count": one.pictures}
            for name, one in folders.items()
            if not one.regularization
        },
        reg_dataset_dirs={
            name: {"n_repeats": one.repeats, "img_count": one.pictures}
            for name, one in folders.items()
            if one.regularization
        },
        cache_latents=not dataset.random_crop,
        color_aug=False,
        flip_aug=dataset.flip,
        random_crop=dataset.random_crop,
        shuffle_caption=dataset.captions.shuffle,
        keep_tokens=dataset.captions.keep_tags,
        caption_dropout_rate=dataset.captions.dropout,
        caption_dropout_every_n_epochs=dataset.captions.dropout_every_epochs,
        caption_tag_dropout_rate=dataset.captions.tag_dropout,
        validation_split=config.validation_share or None,
        validation_seed=config.seed if config.validation_share else None,
        validate_every_n_steps=config.validation_every if config.validation_share else None,
    )


def _resolution(dataset: Dataset) -> tuple[int, int]:
    """Returns width and height of the square bucket, or of the first latent where there are such."""
    first = dataset.items[0]
    if isinstance(first.source, LatentSource):
        return first.size_px
    return dataset.resolution_px, dataset.resolution_px


def _written(config: TrainingConfig) -> Mapping[str, Any]:
    return json.loads(config.to_json())
