"""Compares training with that of ComfyUI's own node, and methods of training with each other.

Both train on the same model, examples, rank, learning rate and number of steps; each run is a process of
its own, and they take turns. Two things differ besides the trainers: the host's alpha is always 1, and it
trains all norms and biases too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import pack  # noqa: F401
from anyadapter.algorithms.training.methods import METHODS, MethodConfig
from anyadapter.algorithms.training.trainable import TrainableAdapter
from figures import Claim, Result
from kept_bytes import kept_bytes
from layer_cases import layer_of
from settings import Settings
from toy_regression import half_at, regression
from train_once import Job, Trained, run

HOST = "ComfyUI's node"
SAME, USUAL = "ours, the same layers", "ours, LoRA-LierLa"
SAME_ALPHA = "ours, alpha 1 too"
AGAIN = "checkpointing"
LORA, FIXED = "LoRA-LierLa", "LoRA-FA"

LONGEST_SIDE_ON_CPU = 32
"""In latent pixels: the model of real size then trains in 14 GB, and a step takes seconds."""
SPEED_STEPS, MEMORY_STEPS, METHOD_STEPS = 6, 2, 4
LOSS_STEPS, LOSS_LATENT = 60, 16
TOKENS, WIDTH = 4096, 1024
"""Of the layer whose kept bytes are counted: about those of SD 1.5 at 512 x 512."""
RANK = 16
"""Of methods beside each other: BOFT has no blocks of 8 in layers of 320."""


def jobs_of(settings: Settings, steps: int) -> dict[str, Job]:
    """Returns what is compared with the host's node, each with and without checkpointing."""
    on_gpu = torch.accelerator.is_available()
    latent = settings.latent if on_gpu else min(settings.latent, LONGEST_SIDE_ON_CPU)
    ours = Job("ours", settings.size, latent, steps, settings.batch)
    plain = {
        HOST: replace(ours, trainer="host"),
        SAME: ours,
        USUAL: replace(ours, method=LORA, layers="LierLa"),
    }
    again = {f"{who}, {AGAIN}": replace(job, checkpointing=True) for who, job in plain.items()}
    return plain | again


def speed(settings: Settings) -> Result:
    """Compares the time of a step."""
    jobs = jobs_of(settings, SPEED_STEPS)
    title = _title("a step of training", jobs[SAME])
    result = Result("training-speed", title, _claims(jobs))
    for _, who, trained in _rounds(jobs, settings.runs):
        result.samples.setdefault(who, []).append(trained.seconds)
        print(f"  {who}: {trained.seconds:.3f} s a step", flush=True)
    result.notes.append(f"median of {SPEED_STEPS - 1} steps in each run, after the first.")
    return result


def peak_memory(settings: Settings) -> Result:
    """Compares the peak of the process, or of the device."""
    jobs = jobs_of(settings, MEMORY_STEPS)
    title = _title("peak memory of training", jobs[SAME])
    result = Result("training-memory", title, _claims(jobs), unit="bytes")
    for _, who, trained in _rounds(jobs, _few(settings), exact=True):
        result.samples.setdefault(who, []).append(trained.peak)
        print(f"  {who}: {trained.peak / 1e6:.0f} MB", flush=True)
    result.notes.append("of all that the process has, with the model, but for mapped files.")
    return result


def loss(settings: Settings) -> Result:
    """Compares what was learned after as many steps."""
    ours = Job("ours", settings.size, LOSS_LATENT, LOSS_STEPS, settings.batch, measure_loss=True)
    jobs = {
        HOST: replace(ours, trainer="host"),
        SAME: ours,
        SAME_ALPHA: replace(ours, alpha=1.0),
    }
    claims = (Claim(SAME, HOST, 1.0), Claim(SAME_ALPHA, HOST))
    result = Result("training-loss", f"native loss after {ours.steps} steps", claims, unit="loss")
    before = 0.0
    for number, who, trained in _rounds(jobs, _few(settings), seeded=True):
        assert trained.losses is not None
        before, after = trained.losses
        result.samples.setdefault(who, []).append(after)
        print(f"  seed {number}, {who}: {after:.4f}", flush=True)
    result.notes.append(
        f"mean squared error of the predicted noise at fixed noise and levels, {before:.4f} without "
        f"an adapter, another seed in each round. Alpha is {ours.alpha:g} where nothing is said, "
        "which the host's node does not let one choose; it learns biases and norms besides."
    )
    return result


def methods(settings: Settings) -> Result:
    """Compares the time of a step of each method with that of LoRA."""
    runs, ours = settings.runs, replace(jobs_of(settings, METHOD_STEPS)[USUAL], rank=RANK)
    claims = tuple(Claim(method, LORA) for method in METHODS if method != LORA)
    result = Result("training-methods", _title("a step of each method", ours), claims)
    result.samples = {method: [] for method in METHODS}
    # `method` are the layers that the method's own tool trains.
    jobs = [replace(ours, method=method, layers="method") for method in METHODS]
    for number in range(runs):
        for method, trained in zip(METHODS, run(jobs), strict=True):
            result.samples[method].append(trained.seconds)
            print(f"  {number + 1}/{runs} {method}: {trained.seconds:.3f} s a step", flush=True)
    result.notes.append("each on the layers that its own tool trains; more layers take longer.")
    return result


@torch.inference_mode(False)
def bytes_for_backward(_: Settings) -> Result:
    """Compares what methods keep of a layer from forward to backward, its input included."""
    lora_built, loha_built = "LoRA in the weight", "LoHa in the weight"
    title = f"kept for backward, linear {WIDTH} to {WIDTH}, {TOKENS} tokens, rank {RANK}"
    claims = (
        Claim(lora_built, LORA),
        Claim(FIXED, LORA, 0.02),
        Claim("LoHa", loha_built, 1.0),
        Claim("LoKr", LORA),
    )
    result = Result("training-kept", title, claims, unit="bytes")
    base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    layer = layer_of(base)
    x = torch.zeros(1, TOKENS, WIDTH, requires_grad=True)
    y = base(x)

    def adapter(method: str) -> TrainableAdapter:
        config = MethodConfig(method, RANK, float(RANK))
        start = METHODS[method].start(layer, config, Generator().manual_seed(0))
        assert start is not None
        return TrainableAdapter(start, config)

    def kept(parameters: Iterable[Tensor], run: Callable[[], Tensor]) -> list[float]:
        return [kept_bytes(run, [y, *parameters, *base.parameters()])]

    for method in (LORA, FIXED, "LoHa", "LoKr"):
        one = adapter(method)
        tensors = one.tensors()
        result.samples[method] = kept(tensors.values(), partial(one.change, x, y, layer))
    up, down = (adapter(LORA).tensors()[name] for name in ("up", "down"))
    result.samples[lora_built] = kept((up, down), lambda: F.linear(x, base.weight + up @ down))
    halves = adapter("LoHa").tensors()
    a1, b1, a2, b2 = (halves[name] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    result.samples[loha_built] = kept(
        halves.values(), lambda: F.linear(x, base.weight + (a1 @ b1) * (a2 @ b2))
    )
    result.notes.append("in the weight is how ComfyUI's node trains: the sum is made at each call.")
    return result


@torch.inference_mode(False)
def steps_to_half(_: Settings) -> Result:
    """Compares how soon LoRA and LoRA+ have half of the loss of a toy."""
    ratios = {"LoRA+, ratio 4": 4.0, "LoRA+, ratio 16": 16.0}
    claims = tuple(Claim(who, LORA, limit) for who, limit in zip(ratios, (0.65, 0.45), strict=True))
    result = Result("training-plus", "steps to half of the loss", claims, unit="steps")
    result.samples = {LORA: [half_at(regression(LORA, 1.0, 400))]}
    for who, ratio in ratios.items():
        result.samples[who] = [half_at(regression("LoRA+", ratio, 400))]
    result.notes.append("of a linear map that learns a change of rank 4; see toy_regression.py.")
    return result


COMPARISONS: Mapping[str, Callable[[Settings], Result]] = {
    "training-speed": speed,
    "training-memory": peak_memory,
    "training-loss": loss,
    "training-methods": methods,
    "training-kept": bytes_for_backward,
    "training-plus": steps_to_half,
}


def _claims(jobs: Mapping[str, Job]) -> tuple[Claim, ...]:
    """Returns that ours is no more than the host's, under the same conditions."""
    pairs = [(HOST, SAME, USUAL), tuple(f"{who}, {AGAIN}" for who in (HOST, SAME, USUAL))]
    found = [
        claim
        for host, same, usual in pairs
        for claim in (Claim(same, host, 1.0), Claim(usual, host))
    ]
    assert {claim.who for claim in found} < jobs.keys()
    return tuple(found)


def _rounds(
    jobs: Mapping[str, Job], runs: int, *, exact: bool = False, seeded: bool = False
) -> Iterator[tuple[int, str, Trained]]:
    """Yields the number of the round, who it was, and what came of it."""
    for number in range(runs):
        for who, job in jobs.items():
            own = replace(job, seed=number) if seeded else job
            (trained,) = run([own], exact_memory=exact)
            yield number, who, trained


def _few(settings: Settings) -> int:
    """Returns the number of rounds of what differs little between them."""
    return max(1, settings.runs // 3)


def _title(what: str, job: Job) -> str:
    return f"{what}, rank {job.rank}, {8 * job.latent} px, batch {job.batch}"
