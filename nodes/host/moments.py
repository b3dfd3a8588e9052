"""The strengths of adapters at each call of the model: by its noise level, and by conditioning.

ComfyUI runs several conditionings in one batch. Which element belongs to which, it says by ids; what
a conditioning asks for lies in it under `REQUESTS`.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from ...algorithms.strength import Dial, Levels, Moment, Request

REQUESTS = "anyadapter"
"""Key of a conditioning, and of the options that reach the model."""
PROGRESS = "anyadapter_progress"
"""Attribute of a model: its measure of progress, for the `model_sampling` that it had last."""
ENDS = 1e-9
"""How near to 0 and 1 the host is asked: at the ends themselves it answers infinite and no noise."""
GRID = (ENDS, *(step / 1000 for step in range(1, 1000)), 1 - ENDS)


class HasMoment(Protocol):
    """What is asked for strengths at every call of a module: the bank of a patcher."""

    dials: tuple[Dial, ...]
    moment: Moment

    def at(self, levels: Levels) -> Moment:
        """Returns the moment with these strengths, the last one if it has them."""
        ...


class Progress:
    """How far sampling has come at a noise level, in the host's own measure.

    The host turns progress into noise (`percent_to_sigma`), as for the range of a ControlNet; this
    is the inverse, by interpolation.
    """

    def __init__(self, sampling: Any) -> None:
        """Takes the `model_sampling` of a model."""
        self.sampling = sampling
        # Noise falls with progress; a search needs it to rise.
        self._sigmas = [float(sampling.percent_to_sigma(percent)) for percent in reversed(GRID)]
        self._percents = [0.0 if p == ENDS else 1.0 if p == 1 - ENDS else p for p in reversed(GRID)]

    def at(self, sigma: float) -> float:
        """Returns the progress, from 0 to 1."""
        above = bisect_left(self._sigmas, sigma)
        if above == 0:
            return 1.0
        if above == len(self._sigmas):
            return 0.0
        low, high = self._sigmas[above - 1], self._sigmas[above]
        share = (sigma - low) / (high - low)
        return self._percents[above - 1] + share * (
            self._percents[above] - self._percents[above - 1]
        )


def with_request(conditioning: Iterable[Sequence[Any]], request: Request) -> list[list[Any]]:
    """Returns a conditioning that asks for a strength, beside what it asked for before."""
    return [
        [tensor, {**options, REQUESTS: (*options.get(REQUESTS, ()), request)}]
        for tensor, options in conditioning
    ]


def note_requests(
    executor: Any, model: Any, conds: Any, x_in: Tensor, timestep: Tensor, model_options: Any
) -> Any:
    """Tells the calls of the model what each conditioning asks for; a wrapper that the host calls."""
    asked = {
        cond["uuid"]: cond[REQUESTS]
        for several in conds
        for cond in several or ()
        if REQUESTS in cond
    }
    if asked:
        options = {**model_options.get("transformer_options", {}), REQUESTS: asked}
        model_options = {**model_options, "transformer_options": options}
    return executor(model, conds, x_in, timestep, model_options)


def set_strengths(
    bank: HasMoment,
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Calls the model while the strengths of its noise level and conditionings are set."""
    options = dict(transformer_options or {})
    # Taken out, since compiled code would depend on it.
    asked: Mapping[Any, tuple[Request, ...]] = options.pop(REQUESTS, {})
    requests = [asked.get(uuid, ()) for uuid in options.get("uuids", ())]
    before = bank.moment
    levels = _levels(executor.class_obj, bank.dials, x.shape[0], t, requests)
    if levels is not None:
        bank.moment = bank.at(levels)
    try:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    finally:
        bank.moment = before


def _levels(
    model: Any,
    dials: Sequence[Dial],
    elements: int,
    t: Tensor,
    requests: Sequence[Sequence[Request]],
) -> Levels | None:
    """Returns the strengths of every dial for every element, or None where nothing moves them.

    Args:
        model: The host's model, which knows the progress of a noise level.
        dials: What sets the strengths.
        elements: Size of the batch.
        t: The noise level, of each element or of all.
        requests: Of each conditioning in the batch; all have the same number of elements.
    """
    asked = [request for several in requests for request in several]
    schedules = [one.schedule for one in (*dials, *asked) if one.schedule is not None]
    if not schedules and not asked:
        return None
    progress = [0.0]
    if schedules:
        known = _progress_of(model)
        progress = [known.at(sigma) for sigma in t.detach().flatten().tolist()]
    progress = progress if len(progress) == elements else progress[:1] * elements
    of_each: list[Sequence[Request]] = [()] * elements
    if asked:
        chunk = max(elements // len(requests), 1)
        of_each = [requests[min(index // chunk, len(requests) - 1)] for index in range(elements)]
    return tuple(
        tuple(dial.at(*moment) for moment in zip(progress, of_each, strict=True)) for dial in dials
    )


def _progress_of(model: Any) -> Progress:
    """Returns the measure of a model, made when it is first asked for."""
    known: Progress | None = getattr(model, PROGRESS, None)
    if known is None or known.sampling is not model.model_sampling:
        known = Progress(model.model_sampling)
        setattr(model, PROGRESS, known)
    return known
