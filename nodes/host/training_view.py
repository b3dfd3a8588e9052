"""Trainings as the page shows them: told as they go on, and kept for a page that is opened later."""

from __future__ import annotations

import base64
import io
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from ...algorithms.analysis.series import Stretch, thinned
from ...algorithms.errors import NoRunError
from .images import as_bytes, pictures
from .web import send

EVENT = "anyadapter.training"
PAUSE_SECONDS = 0.25
"""Between two messages."""
MOST_POINTS = 1000
MOST_SAMPLES = 24
"""The newest ones."""
MOST_RUNS = 8
"""Of which one can be asked for, each of another node."""
SAMPLE_PX, SMALL_PX = 512, 192
"""The longer side of a sample in the page, and of one that is stored with the results of a prompt."""

_runs: dict[str, TrainingView] = {}
"""By node, the one that began last at the end."""
_runs_lock = threading.Lock()


@dataclass(frozen=True)
class _Sample:
    step: int
    label: str
    large: str
    small: str

    def as_json(self, image: str) -> dict[str, Any]:
        return {"step": self.step, "label": self.label, "image": image}


class TrainingView:
    """One run of a training node; its methods may be called from any thread."""

    def __init__(self, node_id: str, total_steps: int) -> None:
        """Tells the page that a training has begun.

        Args:
            node_id: As the host numbers it, `5:3` inside of a subgraph.
            total_steps: At which it will end.
        """
        self.run = uuid.uuid4().hex
        self._node = node_id
        self._total = total_steps
        self._lock = threading.RLock()
        self._messages = 0
        self._sent_at = -math.inf
        self._timer: threading.Timer | None = None
        self._sent: list[Stretch] = []
        self._fresh: list[Stretch] = []
        self._validation: list[tuple[int, float]] = []
        self._fresh_validation: list[tuple[int, float]] = []
        self._samples: deque[_Sample] = deque(maxlen=MOST_SAMPLES)
        self._step = 0
        self._rate = 0.0
        self._seconds_per_step = 0.0
        self._phase = ""
        self._running = True
        self._stop_wanted = False
        self._finished = ""
        self._saved = ""
        with _runs_lock:
            _runs.pop(node_id, None)
            _runs[node_id] = self
            while len(_runs) > MOST_RUNS:
                del _runs[next(iter(_runs))]
        with self._lock:
            self._send()

    def expect(self, total_steps: int) -> None:
        """Tells at which step it will end, once that is known."""
        with self._lock:
            self._total = total_steps
            self._send_soon()

    def phase(self, text: str) -> None:
        """Shows what is done besides steps, until the next step."""
        with self._lock:
            self._phase = text
            self._send_soon()

    def step(self, step: int, loss: float, rate: float, seconds_per_step: float) -> None:
        """Adds a step to the curve.

        Args:
            step: Counted from 1, ascending.
            loss: Of its batch.
            rate: The learning rate.
            seconds_per_step: As it is now, from which the time left is told.
        """
        with self._lock:
            self._fresh.append(Stretch.of(step, float(loss), float(rate)))
            self._step, self._rate = step, float(rate)
            self._seconds_per_step = float(seconds_per_step)
            self._phase = ""
            self._send_soon()

    def validation(self, step: int, loss: float) -> None:
        """Adds a loss on pictures that are not trained on."""
        with self._lock:
            self._fresh_validation.append((step, float(loss)))
            self._send_soon()

    def sample(self, step: int, image: Image.Image | Tensor, label: str) -> None:
        """Shows a picture that was made with what is trained so far.

        Args:
            step: After which it was made.
            image: A picture, or an IMAGE whose first one is shown.
            label: Its prompt, say.
        """
        picture = image if isinstance(image, Image.Image) else _first(image)
        made = _Sample(step, label, _data_url(picture, SAMPLE_PX), _data_url(picture, SMALL_PX))
        with self._lock:
            self._samples.append(made)
            self._send(made)

    def finished(self, text: str, saved: str) -> None:
        """Tells how it ended.

        Args:
            text: A sentence.
            saved: Name of the file, empty where there is none.
        """
        with self._lock:
            self._finished, self._saved = text, saved
            self.close()

    def wants_stop(self) -> bool:
        """Returns whether the user wants it to end now and to keep what it has."""
        return self._stop_wanted

    def close(self) -> None:
        """Tells that it goes on no more, however it ended; does nothing the second time."""
        with self._lock:
            if self._running:
                self._running, self._phase = False, ""
                self._send()

    def output(self) -> dict[str, list[Any]]:
        """Returns what the node gives as its `ui`: all of it, with small pictures."""
        with self._lock:
            samples = [one.as_json(one.small) for one in self._samples]
            return {"anyadapter_training": [self._state() | {"samples": samples}]}

    def want_stop(self) -> None:
        """Makes it end after the step it is at.

        Raises:
            NoRunError: It is over.
        """
        with self._lock:
            if not self._running:
                raise NoRunError("The training is over already.")
            self._stop_wanted = True
            self._send()

    def state(self) -> dict[str, Any]:
        """Returns all that the page was told so far."""
        with self._lock:
            return self._state() | {"samples": [one.as_json(one.large) for one in self._samples]}

    def _state(self) -> dict[str, Any]:
        return self._now() | {
            "points": _points(thinned(self._sent, MOST_POINTS)),
            "validation": _pairs(self._validation),
        }

    def _now(self) -> dict[str, Any]:
        return {
            "node": self._node,
            "run": self.run,
            "message": self._messages,
            "total": self._total,
            "step": self._step,
            "rate": _short(self._rate),
            "seconds_per_step": _short(self._seconds_per_step),
            "phase": self._phase,
            "running": self._running,
            "stopping": self._stop_wanted,
            "finished": self._finished,
            "saved": self._saved,
        }

    def _send_soon(self) -> None:
        """Sends what is new unless something was sent just now: then a moment later."""
        wait = self._sent_at + PAUSE_SECONDS - time.monotonic()
        if wait <= 0:
            self._send()
        elif self._timer is None:
            self._timer = threading.Timer(wait, self._send_late)
            self._timer.daemon = True
            self._timer.start()

    def _send_late(self) -> None:
        with self._lock:
            if self._timer is not None:  # else all was sent while this waited for the lock
                self._send()

    def _send(self, sample: _Sample | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._messages += 1
        self._sent_at = time.monotonic()
        message = self._now() | {
            "points": _points(self._fresh),
            "validation": _pairs(self._fresh_validation),
        }
        if sample is not None:
            message["sample"] = sample.as_json(sample.large)
        self._sent += self._fresh
        if len(self._sent) > 2 * MOST_POINTS:
            self._sent = thinned(self._sent, MOST_POINTS)
        self._validation += self._fresh_validation
        self._fresh, self._fresh_validation = [], []
        send(EVENT, message)


def training_of(node_id: str) -> dict[str, Any] | None:
    """Returns all about the newest run of a node, or None where none is known."""
    with _runs_lock:
        view = _runs.get(node_id)
    return None if view is None else view.state()


def stop_training(node_id: str, run: str) -> None:
    """Makes a run end after the step it is at and keep what it has.

    Raises:
        NoRunError: There is no such run, or it is over.
    """
    with _runs_lock:
        view = _runs.get(node_id)
    if view is None or view.run != run:
        raise NoRunError(
            "There is no such training any more: reload the page to see what there is."
        )
    view.want_stop()


def _points(stretches: Sequence[Stretch]) -> list[list[float | None]]:
    """Returns `[step, loss, rate]` of one step, and `[..., lowest, highest, count]` of several."""
    return [
        [one.step, _short(one.loss), _short(one.rate)]
        + ([_short(one.low), _short(one.high), one.count] if one.count > 1 else [])
        for one in stretches
    ]


def _pairs(losses: Sequence[tuple[int, float]]) -> list[list[float | None]]:
    return [[step, _short(loss)] for step, loss in losses]


def _short(number: float) -> float | None:
    """Returns a number in five figures, which is all that can be seen of it; None for no number."""
    return float(f"{number:.5g}") if math.isfinite(number) else None


def _first(images: Tensor) -> Image.Image:
    pixels = pictures(images if images.ndim == 4 else images[None])[0]
    return Image.fromarray(as_bytes(pixels))


def _data_url(picture: Image.Image, longest_px: int) -> str:
    small = picture.convert("RGB")
    small.thumbnail((longest_px, longest_px))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
