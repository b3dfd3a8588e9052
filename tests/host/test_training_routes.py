"""What the page is told of a training while it runs, and how it is asked to end it."""

import base64
import io
import json
import math
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image
from server import PromptServer

from anyadapter.nodes.host.training_view import MOST_POINTS, MOST_SAMPLES, TrainingView
from anyadapter.nodes.routes import training
from own_loop import in_own_loop

STOP = "/anyadapter/training/stop"


class Server:
    """What the pack asks of the host's server: routes, and messages to the page."""

    def __init__(self) -> None:
        self.routes = web.RouteTableDef()
        self.messages: list[dict[str, Any]] = []

    def send_sync(self, event: str, data: dict[str, Any]) -> None:
        assert event == "anyadapter.training"
        self.messages.append(json.loads(json.dumps(data, allow_nan=False)))

    def ask(self, method: str, route: str, content: Any = None) -> tuple[int, Any]:
        """Returns the status and the JSON that a route answers with."""

        async def answer() -> tuple[int, Any]:
            app = web.Application()
            app.add_routes(self.routes)
            async with (
                TestClient(TestServer(app)) as client,
                client.request(method, route, json=content) as response,
            ):
                return response.status, await response.json()

        return in_own_loop(answer())

    def state(self, node: str) -> Any:
        status, answer = self.ask("GET", f"/anyadapter/training?node={node}")
        assert status == 200
        return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(PromptServer, "instance", made, raising=False)
    training.register()
    return made


@pytest.fixture
def node() -> str:
    """A node that no other test has."""
    return f"5:{uuid4().int % 10**9}"


@pytest.fixture
def view(server: Server, node: str) -> Iterator[TrainingView]:
    del server
    made = TrainingView(node, 500)
    yield made
    made.close()


def told(server: Server, name: str) -> list[Any]:
    return [one for message in server.messages for one in message[name]]


def test_a_run_is_told_from_its_beginning(server: Server, view: TrainingView, node: str):
    assert server.messages == [
        {
            "node": node,
            "run": view.run,
            "message": 1,
            "total": 500,
            "step": 0,
            "rate": 0.0,
            "seconds_per_step": 0.0,
            "phase": "",
            "running": True,
            "stopping": False,
            "finished": "",
            "saved": "",
            "points": [],
            "validation": [],
        }
    ]


def test_many_steps_make_few_messages_and_none_is_lost(server: Server, view: TrainingView):
    for step in range(1, 1001):
        view.step(step, 1 / step, 1e-4, 0.01)
    view.validation(1000, 0.25)
    view.finished("Trained 1000 steps.", "cat.safetensors")
    assert [point[0] for point in told(server, "points")] == [*range(1, 1001)]
    assert told(server, "points")[2] == [3, 0.33333, 1e-4]
    assert told(server, "validation") == [[1000, 0.25]]
    assert len(server.messages) < 100
    numbers = [message["message"] for message in server.messages]
    assert numbers == [*range(1, len(numbers) + 1)]
    last = server.messages[-1]
    assert (last["running"], last["finished"], last["saved"]) == (
        False,
        "Trained 1000 steps.",
        "cat.safetensors",
    )


def test_what_was_held_back_is_sent_though_nothing_follows(server: Server, view: TrainingView):
    view.phase("Encoding 39 of 40 pictures")
    view.phase("Encoding 40 of 40 pictures")
    while server.messages[-1]["phase"] != "Encoding 40 of 40 pictures":
        time.sleep(0.01)
    assert len(server.messages) == 2


def test_a_step_ends_a_phase(server: Server, view: TrainingView, node: str):
    view.phase("Sampling")
    view.step(1, 0.5, 1e-4, 0.5)
    view.close()
    assert server.state(node)["phase"] == ""


def test_a_page_that_comes_later_gets_the_whole_run(server: Server, view: TrainingView, node: str):
    for step in range(1, 5000):
        view.step(step, 0.5 + (step % 2), 1e-4, 0.01)
    view.validation(4999, 0.25)
    view.sample(4999, Image.new("RGB", (64, 32)), "a cat")
    view.close()
    state = server.state(node)
    assert state["message"] == server.messages[-1]["message"]
    assert len(state["points"]) <= MOST_POINTS
    assert state["points"][-1] == [4999, 1.0, 1e-4, 0.5, 1.5, 8]
    assert sum(point[5] for point in state["points"]) == 4999
    assert state["validation"] == [[4999, 0.25]]
    assert (state["samples"][0]["step"], state["samples"][0]["label"]) == (4999, "a cat")
    assert (state["step"], state["total"], state["running"]) == (4999, 500, False)


def test_what_is_no_number_is_told_as_null(server: Server, view: TrainingView, node: str):
    view.step(1, math.nan, 1e-4, 0.5)
    view.step(2, math.inf, 1e-4, math.inf)
    view.validation(2, math.nan)
    view.close()
    assert server.state(node)["points"] == [[1, None, 1e-4], [2, None, 1e-4]]
    assert server.state(node)["validation"] == [[2, None]]
    assert server.state(node)["seconds_per_step"] is None


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (1024, 768), (255, 0, 0, 255)),
        torch.tensor([1.0, 0.0, 0.0]).expand(768, 1024, 3),
        torch.tensor([1.0, 0.0, 0.0]).expand(2, 768, 1024, 3),
    ],
    ids=["Pillow", "one", "batch"],
)
def test_a_sample_is_a_small_jpeg(server: Server, view: TrainingView, image: Any):
    view.sample(100, image, "a cat")
    sample = server.messages[-1]["sample"]
    assert (sample["step"], sample["label"]) == (100, "a cat")
    picture = opened(sample["image"])
    assert picture.size == (512, 384)
    red, green, blue = picture.getpixel((200, 200))  # type: ignore[misc]
    assert red > 250
    assert max(green, blue) < 5


def test_only_the_newest_samples_are_kept(server: Server, view: TrainingView, node: str):
    for step in range(MOST_SAMPLES + 3):
        view.sample(step, Image.new("RGB", (8, 8)), "x")
    samples = server.state(node)["samples"]
    assert [sample["step"] for sample in samples] == [*range(3, MOST_SAMPLES + 3)]


def test_the_output_of_the_node_shows_the_same_with_small_pictures(
    server: Server, view: TrainingView, node: str
):
    view.step(1, 0.5, 1e-4, 0.5)
    view.sample(1, Image.new("RGB", (1024, 1024)), "a cat")
    view.finished("Trained 1 step.", "cat.safetensors")
    output = view.output()
    assert output.keys() == {"anyadapter_training"}
    (shown,) = output["anyadapter_training"]
    assert opened(shown["samples"][0]["image"]).size == (192, 192)
    state = server.state(node)
    assert {**shown, "samples": None} == {**state, "samples": None}
    json.dumps(output, allow_nan=False)


def test_a_run_is_stopped_by_its_page(server: Server, view: TrainingView, node: str):
    assert not view.wants_stop()
    assert server.ask("POST", STOP, {"node": node, "run": view.run}) == (200, {})
    assert view.wants_stop()
    assert server.messages[-1]["stopping"]


def test_a_run_that_is_not_there_is_not_stopped(server: Server, view: TrainingView, node: str):
    for body in ({"node": node, "run": "x"}, {"node": "999:1", "run": view.run}):
        status, answer = server.ask("POST", STOP, body)
        assert (status, "no such training" in answer["error"]) == (404, True)
    assert not view.wants_stop()
    view.close()
    status, answer = server.ask("POST", STOP, {"node": node, "run": view.run})
    assert (status, answer["error"]) == (404, "The training is over already.")


@pytest.mark.parametrize(
    ("body", "why"), [({"node": "1"}, "needs run as a text"), ([], "no JSON object")]
)
def test_a_wish_that_says_nothing_is_refused(server: Server, body: Any, why: str):
    status, answer = server.ask("POST", STOP, body)
    assert (status, why in answer["error"]) == (400, True)


def test_a_node_that_has_trained_nothing_has_no_run(server: Server):
    assert server.state("999:2") is None
    status, answer = server.ask("GET", "/anyadapter/training")
    assert (status, answer["error"]) == (400, "The request lacks node.")


def test_a_new_run_of_a_node_takes_the_place_of_the_old(
    server: Server, view: TrainingView, node: str
):
    view.step(1, 0.5, 1e-4, 0.5)
    view.close()
    new = TrainingView(node, 10)
    assert server.state(node)["run"] == new.run
    assert server.state(node)["points"] == []
    new.close()


def test_nothing_is_told_after_the_end(server: Server, view: TrainingView):
    view.phase("Saving")
    view.finished("Done.", "cat.safetensors")
    view.close()
    count = len(server.messages)
    time.sleep(0.3)  # what was held back would come now
    assert len(server.messages) == count


def opened(address: str) -> Image.Image:
    start = "data:image/jpeg;base64,"
    assert address.startswith(start)
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix(start))))
