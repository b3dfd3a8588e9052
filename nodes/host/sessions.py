"""Runs a training on models of the host: from a dataset to a file, and what shows in between.

Nothing of a model is written to: what learns stands beside its modules (`training_hooks.py`), and
comes off at the end, whatever happened.
"""

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.utils import ProgressBar
from torch import Tensor

from ...algorithms.errors import DatasetError, TrainingError, counted, listed
from ...algorithms.formats.parse import AdapterSet
from ...algorithms.training.config import TrainingConfig, steps_of
from ...algorithms.training.dataset import Dataset, Draw, LatentSource, SizeCondition
from ...algorithms.training.loop import Batch, Data, LoopConfig, Run, Step
from ...algorithms.training.model_sampling import ModelSampling
from ...algorithms.training.objective import Noised, Objective
from ...algorithms.training.optimizers import make_optimizer
from ...algorithms.training.run_facts import Begun
from .caption_encoding import CaptionEncoder, Conditioning, detached
from .latents import Encoded, LatentCache, latent_cache
from .precision import DTYPES, compute_in, computed_in, precision_of
from .prediction import Predictor, end_in_pure_noise, sampling_of
from .sample_pictures import draw
from .training_hooks import for_training, gradients, host_in_training, train_on
from .training_network import Network, build_network
from .training_output import Output
from .training_view import TrainingView

Draws = tuple[Draw, ...]
MOST_LEFT_OUT = 50
"""Steps without finite gradients that a run puts up with in a row: fp16 finds its scale in fewer."""


@dataclass(frozen=True, eq=False)
class Models:
    """What a run uses of the host."""

    model: ModelPatcher
    clip: CLIP | None = None
    vae: VAE | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a run."""

    adapter_set: AdapterSet
    name: str
    """Of the file, as the host lists it."""
    losses: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    report: str


class Session:
    """One run, from its settings to its file."""

    def __init__(
        self,
        models: Models,
        dataset: Dataset,
        config: TrainingConfig,
        name: str,
        view: TrainingView,
        *,
        resume: bool,
    ) -> None:
        """Takes what is to be trained on what.

        Args:
            models: Of the host.
            dataset: The examples.
            config: Everything else that decides what comes out.
            name: Of the file, without ending.
            view: Where the run is shown.
            resume: Whether to go on from the last state of this name.

        Raises:
            TrainingError: Something that the run needs is not connected, or the name is none.
        """
        self._config = config
        self._view = view
        self._dataset = dataset.at(config.resolution_px)
        _require_parts(models, self._dataset, config)
        self._output = Output(name, config, resume=resume)
        self._vae = models.vae
        self._model = for_training(models.model)
        compute_in(self._model, config.precision)
        if config.noise.zero_terminal_snr:
            end_in_pure_noise(self._model)
        self._trains_clip = config.layers.text_encoders
        self._clip = models.clip
        if models.clip is not None and self._trains_clip:
            self._clip = _clip_for_training(models.clip)
        self._losses: list[tuple[int, float]] = []
        self._validated: list[tuple[int, float]] = []
        self._left_out = self._in_a_row = 0

    def run(self) -> Outcome:
        """Trains, and returns the adapter with the name of its file.

        Raises:
            TrainingError: It cannot start, or came apart; what was learned is saved.
            DatasetError: There is nothing to train on.
        """
        device = self._model.load_device
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            self._models_lent(),
        ):
            torch.manual_seed(self._config.seed)
            return self._trained()

    @contextmanager
    def _models_lent(self) -> Generator[None]:
        """Leaves the host's models as they were, and says what a full device means."""
        with ExitStack() as stack:
            stack.callback(self._output.close)
            stack.enter_context(host_in_training())
            for patcher in self._patchers():
                stack.enter_context(gradients(patcher.model))
                stack.callback(patcher.detach)
            try:
                yield
            except torch.OutOfMemoryError as error:
                gc.collect()
                comfy.model_management.soft_empty_cache()
                raise TrainingError(
                    "The device has no memory left. Lower the batch size or the resolution, turn on "
                    "gradient_checkpointing, or train fewer layers. If a step was done, what was "
                    "learned is kept: resume goes on from it."
                ) from error

    def _trained(self) -> Outcome:
        """Prepares everything, what needs other models first, then runs."""
        config = self._config
        latents = latent_cache(self._vae, config.cache)
        examples, held_out = self._encoded(latents)
        texts = self._encoder(examples)
        self._view.phase("Loading the model")
        self._load()
        network = build_network(
            self._model,
            self._clip if self._trains_clip else None,
            config,
            DTYPES[config.adapter_precision],
            self._counting("Starting layer"),
        )
        self._put_on(network)
        sampling, per_epoch = sampling_of(self._model), len(self._epoch(examples))
        work = _Work(self._model, latents, texts, config.loss.prior_loss_weight, self._load)
        run = self._run_of(network, examples, work, sampling, per_epoch)
        validation = [] if held_out is None else held_out.epoch(0, config.batch_size, config.seed)
        begun = Begun(
            config,
            examples,
            0 if held_out is None else len(held_out.items),
            network.targets.family,
            sampling.kind,
            run.total,
            per_epoch,
            precision_of(self._model),
            *self._output.session,
        )
        self._output.begin(network, begun)
        self._output.load_into(run)
        self._go(run, texts, validation)
        return self._ended(run, network, examples)

    def _encoder(self, examples: Dataset) -> CaptionEncoder | None:
        """Returns what makes conditionings of captions, those of the first epoch ahead."""
        if self._clip is None:
            return None
        on_disk = self._config.cache == "disk" and not examples.captions.vary
        texts = CaptionEncoder(self._clip, trained=self._trains_clip, on_disk=on_disk)
        draws = self._epoch(examples, self._output.epoch)
        captions = [one.caption for several in draws for one in several]
        texts.fill(captions, self._counting("Encoding caption"))
        samples = self._config.samples
        if samples.prompts:  # while the text encoders are on the device
            prompts = [*samples.prompts, samples.negative]
            texts.fill(prompts, self._counting("Encoding prompt"), as_prompt=True)
        return texts

    def _epoch(self, examples: Dataset, number: int = 0) -> list[Draws]:
        return examples.epoch(number, self._config.batch_size, self._config.seed)

    def _run_of(
        self,
        network: Network,
        examples: Dataset,
        work: "_Work",
        sampling: ModelSampling,
        per_epoch: int,
    ) -> Run[Draws]:
        """Returns the run at its start."""
        config = self._config
        total = steps_of(config, per_epoch)
        self._view.expect(total)
        scaled = computed_in(self._model) == torch.float16
        stepper = make_optimizer(
            replace(config.optimizer, loss_scaling=scaled),
            network.groups,
            total,
            torch.Generator().manual_seed(config.seed),
        )
        return Run(
            network.trainable,
            Data(partial(self._epoch, examples), work.load),
            work.predict,
            Objective(sampling, config.noise, config.loss),
            stepper,
            LoopConfig(total, config.accumulation, config.max_norm),
            config.seed,
        )

    def _go(
        self,
        run: Run[Draws],
        texts: CaptionEncoder | None,
        validation: Sequence[Draws],
    ) -> None:
        """Trains to the end, or until somebody stops it; whatever happens, what was learned is kept."""
        config, began = self._config, run.done
        bar = ProgressBar(run.total)
        if run.done >= run.total:
            return
        if config.samples.at_first and run.done == 0:
            self._draw_samples(run, texts, 0)
        try:
            for step in run.steps():
                self._show(step)
                bar.update_absolute(step.number)
                last = step.number == run.total or self._view.wants_stop()
                if validation and (last or step.number % config.validation_every == 0):
                    loss = run.validate(validation, config.seed)
                    self._validated.append((step.number, loss))
                    self._view.validation(step.number, loss)
                if config.save_every and not last and step.number % config.save_every == 0:
                    self._output.checkpoint(run)
                if last or step.number % config.samples.every_steps == 0:
                    self._draw_samples(run, texts, step.number)
                if last:
                    return
                comfy.model_management.throw_exception_if_processing_interrupted()
        except BaseException:
            if run.done > began and run.is_whole:
                name = self._output.checkpoint(run)
                self._view.finished(f"It ended early, at step {run.done}.", name)
            raise

    def _ended(self, run: Run[Draws], network: Network, examples: Dataset) -> Outcome:
        """Saves what came out, and says so."""
        adapter_set, name = self._output.finish(run)
        report = self._report(run, network, examples, name)
        self._view.finished(f"{run.done} steps, loss {_mean_of_last(self._losses):.4g}.", name)
        return Outcome(adapter_set, name, tuple(self._losses), tuple(self._validated), report)

    def _show(self, step: Step) -> None:
        self._left_out += step.skipped
        self._in_a_row = self._in_a_row + 1 if step.skipped else 0
        if self._in_a_row >= MOST_LEFT_OUT:
            raise TrainingError(
                f"The gradients of {MOST_LEFT_OUT} steps in a row were not finite, so that nothing "
                "was learned in them. Train in fp32 or bf16, or at a lower learning rate."
            )
        self._losses.append((step.number, step.loss))
        rate = next(iter(step.rates.values()))
        self._view.step(step.number, step.loss, rate, step.seconds)

    def _draw_samples(self, run: Run[Draws], texts: CaptionEncoder | None, step: int) -> None:
        """Draws the sample pictures with what is learned so far."""
        samples = self._config.samples
        if not samples.prompts or texts is None or self._vae is None:
            return
        self._view.phase("Drawing samples")
        with run.as_used() as network:
            network.begin_step(None, torch.Generator().manual_seed(samples.seed))
            whole = (samples.width_px, samples.height_px)
            size = SizeCondition(whole, (0, 0), whole)
            negative = texts.conditioning(samples.negative, size, as_prompt=True)
            for prompt in samples.prompts:
                positive = texts.conditioning(prompt, size, as_prompt=True)
                picture = draw(self._model, self._vae, positive, negative, samples)
                self._view.sample(step, picture, prompt)
        self._load()

    def _encoded(self, latents: LatentCache) -> tuple[Dataset, Dataset | None]:
        """Encodes all pictures ahead, and leaves out those that prove bad.

        Returns:
            What is trained on, and what is held out for validation.
        """
        dataset, share = self._dataset, self._config.validation_share
        faults = latents.fill(dataset.views(), self._counting("Encoding picture"))
        if faults:
            dataset = dataset.without(faults)
        if share == 0:
            return dataset, None
        trained, held_out = dataset.split(share, self._config.seed)
        if not held_out.items:
            raise TrainingError(
                f"A validation_share of {share:g} holds out none of {len(trained.items)} pictures: "
                "raise it, or set it to 0."
            )
        return trained, held_out

    def _load(self) -> None:
        """Lets the host bring what is trained to the device; nothing is done where it is there."""
        comfy.model_management.load_models_gpu(self._patchers(), self._memory_bytes())
        self._model.pre_run()

    def _put_on(self, network: Network) -> None:
        checkpointing = self._config.gradient_checkpointing
        model = self._model.model
        train_on(self._model, network.on("model", model, checkpointing=checkpointing))
        if self._clip is not None and self._trains_clip:
            patcher = self._clip.patcher
            train_on(patcher, network.on("clip", patcher.model, checkpointing=checkpointing))

    def _patchers(self) -> list[ModelPatcher]:
        """Returns what is trained."""
        clip = self._clip if self._trains_clip else None
        return [self._model, *([] if clip is None else [clip.patcher])]

    def _memory_bytes(self) -> float:
        """Returns about how much a step needs beside the weights, so that the host makes room for it.

        The host knows it of a call without gradients, and the activations of all blocks are kept.
        """
        side = self._config.resolution_px // 8
        shape = [self._config.batch_size, 4, side, side]
        kept = 1.5 if self._config.gradient_checkpointing else 6.0
        return kept * self._model.memory_required(shape)

    def _counting(self, what: str) -> Callable[[int, int], None]:
        """Returns what shows how many are done, and ends where the user cancels."""

        def progress(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            self._view.phase(f"{what} {done} of {total}")

        return progress

    def _report(self, run: Run[Draws], network: Network, examples: Dataset, name: str) -> str:
        """Returns what was done, for people."""
        config, count = self._config, len(examples.items)
        pictures = counted(count, "picture")
        first = self._losses[0][1] if self._losses else float("nan")
        lines = [
            f"{config.method.method} of {len(network.sites)} layers, {network.parameters:,} numbers, "
            f"{run.done} steps over {pictures}, learning rate "
            f"{config.optimizer.learning_rate:g}.",
            f"Loss {first:.4g} at first, {_mean_of_last(self._losses):.4g} over the last steps."
            if self._losses
            else f"It was at step {run.done} already: raise steps to train it further.",
            f"Saved as {name}.",
            *_without_effect(config, examples),
            *self._output.notes(),
            *network.notes,
            *config.warnings(),
            *examples.notes,
        ]
        if self._left_out:
            lines.append(
                f"{self._left_out} steps were left out, since their gradients were not finite."
            )
        if examples.skipped:
            lines.append(f"Left out: {listed(examples.skipped, 10, '; ')}.")
        return "\n".join(lines)


class _Work:
    """Makes batches of draws, and estimates of batches."""

    def __init__(
        self,
        model: ModelPatcher,
        latents: LatentCache,
        texts: CaptionEncoder | None,
        prior_weight: float,
        load: Callable[[], None],
    ) -> None:
        self._model = model
        self._latents = latents
        self._texts = texts
        self._prior_weight = prior_weight
        self._load = load
        self._predictor = Predictor(model)
        self._given: dict[LatentSource, Conditioning] = {}

    def load(self, draws: Draws) -> Batch:
        """Returns the latents as the model takes them in, on its device, with their masks."""
        made = self._latents.made
        encoded = [self._encoded(one) for one in draws]
        latent = torch.stack([one.latent for one in encoded])
        if self._latents.made != made:
            self._load()  # the VAE may have taken the model's place
        device = self._model.load_device
        model: Any = self._model.model
        latent = model.process_latent_in(latent.to(device, torch.float32))
        width, height = draws[0].placement.bucket_px
        return Batch(
            latent,
            (height, width),
            draws,
            _stacked([one.mask for one in encoded], latent),
            torch.tensor([self._weight(one) for one in draws], device=device),
        )

    def predict(self, batch: Batch, noised: Noised) -> Tensor:
        """Returns the model's estimates, with gradients."""
        draws: Draws = batch.conditions
        made = 0 if self._texts is None else self._texts.made
        conditionings = [self._conditioning(one) for one in draws]
        if self._texts is not None and self._texts.made != made:
            self._load()  # the text encoders may have taken its place
        return self._predictor(conditionings, noised)

    def _conditioning(self, draw: Draw) -> Conditioning:
        source = draw.item.source
        if isinstance(source, LatentSource):
            if source not in self._given:
                self._given[source] = detached(source.conditioning)
            return self._given[source]
        assert self._texts is not None, "sessions ask for a CLIP where there are captions"
        return self._texts.conditioning(draw.caption, draw.size_condition)

    def _encoded(self, draw: Draw) -> Encoded:
        """Returns a draw as the model sees it.

        Raises:
            DatasetError: Its file is damaged or gone; the message tells which.
        """
        try:
            return self._latents.encoded(draw)
        except DatasetError as error:
            raise DatasetError(
                f"{draw.item.name}: {error}. Put it back, or take it out of the folder."
            ) from error

    def _weight(self, draw: Draw) -> float:
        return self._prior_weight if draw.item.regularization else 1.0


def _clip_for_training(clip: CLIP) -> CLIP:
    clone = clip.clone()
    clone.patcher = for_training(clip.patcher)
    clone.cond_stage_model = clone.patcher.model  # newer hosts load another one to train on
    return clone


def _require_parts(models: Models, dataset: Dataset, config: TrainingConfig) -> None:
    """Checks that everything is connected that a run will need.

    Raises:
        TrainingError: Something is not.
    """
    sources = [item.source for item in dataset.items]
    pictures = any(not isinstance(source, LatentSource) for source in sources)
    needs: list[tuple[bool, Any, str, str]] = [
        (pictures, models.vae, "VAE", "the pictures of the dataset"),
        (pictures, models.clip, "CLIP", "the captions of the dataset"),
        (config.layers.text_encoders, models.clip, "CLIP", "training of text encoders"),
        (bool(config.samples.prompts), models.clip, "CLIP", "sample pictures"),
        (bool(config.samples.prompts), models.vae, "VAE", "sample pictures"),
    ]
    for needed, part, name, what in needs:
        if needed and part is None:
            raise TrainingError(f"No {name} is connected, which {what} need: connect one.")
    if config.layers.text_encoders and not pictures:
        raise TrainingError(
            "Conditionings are made already, so the text encoders cannot learn from them: turn "
            "text_encoders off, or train on pictures with captions."
        )


def _without_effect(config: TrainingConfig, examples: Dataset) -> list[str]:
    """Returns sentences on what was asked for and has no effect."""
    latents = all(isinstance(item.source, LatentSource) for item in examples.items)
    if latents and any(item.size_px != (config.resolution_px,) * 2 for item in examples.items):
        return ["Latents are trained in the size that they have: resolution had no effect."]
    return []


def _stacked(masks: Sequence[Tensor | None], latent: Tensor) -> Tensor | None:
    """Returns the masks of a batch, of ones where a picture has none; None where no one has."""
    if all(mask is None for mask in masks):
        return None
    ones = torch.ones_like(latent[0, :1], device="cpu")
    return torch.stack([ones if one is None else one for one in masks]).to(latent.device)


def _mean_of_last(losses: Sequence[tuple[int, float]]) -> float:
    """Returns the mean over the last 50 steps, or the last half of fewer than 100."""
    last = [loss for _, loss in losses[-min(50, -(-len(losses) // 2)) :]]
    return sum(last) / len(last) if last else float("nan")
