"""Gives tests the page of a real ComfyUI in Chromium, with either of its two ways to draw nodes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from comfy_page import ComfyPage, page_server
from comfy_server import ComfyServer

HERE = Path(__file__).parent
COMFYUI = os.environ.get("COMFYUI_PATH")
CHROMIUM = os.environ.get("ANYADAPTER_CHROMIUM")
# Without the last one a proxy of the machine would be asked for the machine itself.
CHROMIUM_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--no-proxy-server",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("browser")


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The folder of the ComfyUI whose page is tested."""
    if COMFYUI is None:
        pytest.skip("COMFYUI_PATH does not name a ComfyUI folder")
    return Path(COMFYUI)


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with the pack."""
    with page_server(comfyui, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        reason = "ANYADAPTER_CHROMIUM does not name a Chromium"
        pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(CHROMIUM_ARGUMENTS)
        )
        yield running
        running.close()


@pytest.fixture(scope="module", params=["LiteGraph", "Nodes 2.0"])
def page(
    browser: Browser, server: ComfyServer, request: pytest.FixtureRequest
) -> Iterator[ComfyPage]:
    """The page of ComfyUI, drawn in one way and then in the other."""
    with ComfyPage(browser, server.url, nodes_2=request.param == "Nodes 2.0") as opened:
        yield opened
        assert not opened.errors
