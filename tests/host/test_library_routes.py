"""What the page is told of adapter files, and what a request cannot make the server do."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from base_directory import CHECKPOINT_NAME
from comfy_server import ComfyServer, PromptRejectedError
from described_files import data_address, png, write_described
from workflows import text_to_latent

OFF = {"strength_model": 0.0, "strength_clip": 0.0, "mode": "hook", "rank": 0}
ODD_NAMES = [
    "with blank.safetensors",
    "Ünïcödé ß.safetensors",
    "100% #1 & more?.safetensors",
    "'quoted' \"twice\".safetensors",
    "日本語/猫.safetensors",
    "deep/er/a+b=c;d.safetensors",
    "..dots...safetensors",
]
OUTSIDE = [
    "../checkpoints/small_sd15.safetensors",
    "sub/../../checkpoints/small_sd15.safetensors",
    "..\\checkpoints\\small_sd15.safetensors",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "a\0.safetensors",
    "a.safetensors\0",
    "",
    ".",
    "..",
    "/",
    "//server/share/a.safetensors",
    "no such file.safetensors",
]


def adapters(server: ComfyServer) -> dict[str, Any]:
    """Returns the list once all of it is read, by name."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status, answer = server.get("/anyadapter/adapters")
        assert status == 200
        if answer["pending"] == 0:
            return {one["name"].replace("\\", "/"): one for one in answer["adapters"]}
        time.sleep(0.05)
    raise TimeoutError("the files are never read")


def raw(
    server: ComfyServer, route: str, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    request = urllib.request.Request(server.url + route, headers=dict(headers or {}))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def preview(name: str) -> str:
    return f"/anyadapter/preview?{urlencode({'name': name})}"


def loras(server: ComfyServer) -> Any:
    return server.base_directory / "models" / "loras"


def test_the_list_names_every_file(server: ComfyServer):
    path = loras(server) / "listed" / "cats.safetensors"
    write_described(path, {"ss_sd_model_name": "pony.safetensors"}, rank=16)
    path.with_suffix(".png").write_bytes(png())
    assert adapters(server)["listed/cats.safetensors"] == {
        "name": "listed/cats.safetensors",
        "size": path.stat().st_size,
        "modified": pytest.approx(path.stat().st_mtime),
        "method": "LoRA-LierLa",
        "rank": "16",
        "family": "SDXL",
        "base_model": "pony",
        "preview": True,
        "error": "",
        "read": True,
    }


def test_the_list_is_kept_in_the_users_folder(server: ComfyServer):
    write_described(loras(server) / "kept.safetensors")
    adapters(server)
    index = server.base_directory / "user" / "anyadapter" / "library.json"
    deadline = time.monotonic() + 60
    while not index.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert str(loras(server) / "kept.safetensors") in json.loads(index.read_text())["files"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_files_of_odd_names_are_listed_told_and_shown(server: ComfyServer, name: str):
    path = loras(server) / name
    write_described(path, {"modelspec.title": name})
    path.with_name(path.name.removesuffix(".safetensors") + ".png").write_bytes(png())
    assert adapters(server)[name]["preview"]
    status, told = server.get(f"/anyadapter/adapter?name={quote(name, safe='')}")
    assert status == 200
    assert told["description"]["title"] == name
    status, headers, data = raw(server, preview(name))
    assert (status, headers["Content-Type"], data) == (200, "image/png", png())


def test_a_name_from_windows_is_found(server: ComfyServer):
    write_described(loras(server) / "windows" / "a.safetensors")
    status, told = server.get(
        f"/anyadapter/adapter?{urlencode({'name': 'windows' + chr(92) + 'a.safetensors'})}"
    )
    assert status == 200
    assert told["method"] == "LoRA-LierLa"


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("route", ["adapter", "preview"])
def test_what_is_not_in_the_lora_folders_is_not_found(server: ComfyServer, route: str, name: str):
    status, headers, data = raw(server, f"/anyadapter/{route}?name={quote(name, safe='')}")
    assert status == 404
    assert headers["Content-Type"].startswith("application/json")
    assert "not in the LoRA folders" in json.loads(data)["error"]


@pytest.mark.parametrize("route", ["adapter", "preview"])
def test_a_request_without_a_name_is_refused(server: ComfyServer, route: str):
    assert server.get(f"/anyadapter/{route}") == (400, {"error": "The request lacks name."})


def test_all_about_one_file_is_told(server: ComfyServer):
    path = loras(server) / "told.safetensors"
    metadata = {
        "modelspec.title": "Cats",
        "modelspec.trigger_phrase": "a cat of x",
        "ss_tag_frequency": json.dumps({"10_sks cat": {"cat": 3, "fur": 5}}),
        "ss_steps": "100",
    }
    write_described(path, metadata)
    status, told = server.get("/anyadapter/adapter?name=told.safetensors")
    assert status == 200
    assert told["metadata"] == metadata
    assert (told["layers_model"], told["layers_text_encoders"]) == (1, 0)
    description = told["description"]
    assert description["title"] == "Cats"
    assert description["tags"] == [["fur", 5], ["cat", 3]]
    assert description["training"] == {"steps": "100"}
    assert description["trigger_words"] == [
        {"text": "a cat of x", "source": "metadata"},
        {"text": "sks cat", "source": "folder"},
    ]


def test_a_file_that_is_no_adapter_is_told_with_the_reason(server: ComfyServer):
    (loras(server) / "page.safetensors").write_text("<html>")
    status, told = server.get("/anyadapter/adapter?name=page.safetensors")
    assert status == 200
    assert told["method"] is None
    assert "not a safetensors file" in told["error"]


def test_a_picture_in_the_header_is_shown(server: ComfyServer):
    write_described(
        loras(server) / "thumbnail.safetensors", {"modelspec.thumbnail": data_address(png())}
    )
    status, headers, data = raw(server, preview("thumbnail.safetensors"))
    assert (status, headers["Content-Type"], data) == (200, "image/png", png())


@pytest.mark.parametrize("beside", [True, False])
def test_a_picture_that_has_not_changed_is_not_sent_again(server: ComfyServer, beside: bool):
    path = loras(server) / f"unchanged {beside}.safetensors"
    write_described(path, {} if beside else {"modelspec.thumbnail": data_address(png())})
    if beside:
        path.with_suffix(".png").write_bytes(png())
    _, headers, _ = raw(server, preview(path.name))
    since = {"If-Modified-Since": headers["Last-Modified"]}
    status, _, data = raw(server, preview(path.name), since)
    assert (status, data) == (304, b"")


@pytest.mark.parametrize("content", [b"<svg onload='alert(1)'/>", b"<script>", b""])
def test_what_only_has_the_name_of_a_picture_is_not_shown(server: ComfyServer, content: bytes):
    path = loras(server) / "no picture.safetensors"
    write_described(path)
    path.with_suffix(".png").write_bytes(content)
    status, headers, data = raw(server, preview(path.name))
    assert status == 404
    assert headers["Content-Type"].startswith("application/json")
    assert "no picture" in json.loads(data)["error"]


def test_a_prompt_with_a_missing_file_is_refused_before_it_runs(server: ComfyServer):
    loader = OFF | {"adapter": "gone.safetensors"}
    with pytest.raises(PromptRejectedError) as rejection:
        server.queue(text_to_latent(CHECKPOINT_NAME, [loader]))
    (error,) = rejection.value.node_errors["adapter_1"]["errors"]
    assert error["extra_info"]["input_name"] == "adapter"
    assert "gone.safetensors is not in the LoRA folders (any more)" in error["details"]


def test_a_prompt_with_a_file_that_was_just_made_runs(server: ComfyServer):
    server.object_info("AnyAdapterLoad")
    write_described(loras(server) / "new.safetensors")
    loader = OFF | {"adapter": "new.safetensors"}
    server.run(text_to_latent(CHECKPOINT_NAME, [loader], seed=31))
