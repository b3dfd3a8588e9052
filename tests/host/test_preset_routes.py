"""Presets over HTTP: what is answered, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from base_directory import make_example_adapters
from comfy_server import ComfyServer

PRESETS = "/anyadapter/presets"


@pytest.fixture(scope="module", autouse=True)
def adapters(server: ComfyServer) -> None:
    make_example_adapters(server.base_directory)


@pytest.fixture
def file(server: ComfyServer) -> Iterator[Path]:
    """The file of the user's presets, which is not there before and after."""
    path = server.base_directory / "user" / "anyadapter" / "block_presets.json"
    yield path
    path.unlink(missing_ok=True)


def post(server: ComfyServer, route: str, content: Any) -> tuple[int, Any]:
    status, answer, _ = server.send("POST", route, json.dumps(content).encode())
    return status, json.loads(answer)


def delete(server: ComfyServer, name: str) -> tuple[int, Any]:
    status, answer, _ = server.send("DELETE", f"{PRESETS}?name={quote(name)}")
    return status, json.loads(answer)


def own(server: ComfyServer) -> list[dict[str, Any]]:
    return [one for one in server.get(PRESETS)[1]["presets"] if one["own"]]


def test_presets_are_those_of_a_file(server: ComfyServer):
    status, answer = server.get(f"{PRESETS}?adapter=locon.safetensors")
    names = [one["name"] for one in answer["presets"]]
    assert status == 200
    assert {"ALL", "INALL", "MIDD", "TE-OFF"} <= {*names}
    assert not {"SDXL-MIDD", "DBL-ALL", "EARLY-ONLY"} & {*names}
    assert answer["presets"][0] == {"name": "ALL", "text": "ALL:1", "own": False}


def test_without_a_file_all_presets_are_answered(server: ComfyServer):
    names = {one["name"] for one in server.get(PRESETS)[1]["presets"]}
    assert {"MIDD", "SDXL-MIDD", "DBL-ALL", "EARLY-ONLY"} <= names


def test_presets_of_a_file_that_is_not_there_are_not_found(server: ComfyServer):
    status, answer = server.get(f"{PRESETS}?adapter=../small.safetensors")
    assert status == 404
    assert "is not in the LoRA folders" in answer["error"]


def test_a_preset_is_saved_replaced_and_deleted(server: ComfyServer, file: Path):
    saved = {"name": " 柔らかい顔 ", "text": "OUT:0.5"}
    assert post(server, PRESETS, saved) == (200, {"name": "柔らかい顔"})
    assert own(server) == [{"name": "柔らかい顔", "text": "OUT:0.5", "own": True}]
    status, answer = post(server, PRESETS, {**saved, "text": "OUT:0"})
    assert (status, "already" in answer["error"]) == (409, True)
    assert post(server, PRESETS, {**saved, "text": "OUT:0", "replace": True})[0] == 200
    assert own(server)[0]["text"] == "OUT:0"
    assert file.exists()
    assert delete(server, "柔らかい顔") == (200, {})
    assert own(server) == []
    assert delete(server, "柔らかい顔")[0] == 404
    assert delete(server, "MIDD")[0] == 400
    assert server.send("DELETE", PRESETS)[0] == 400


def test_a_saved_preset_has_a_meaning_in_block_weights(server: ComfyServer, file: Path):
    post(server, PRESETS, {"name": "soft face", "text": "MIDD, OUT05:0.25"})
    # A file that was on no model: of one that was, the blocks are those of the small checkpoint.
    folder = server.base_directory / "models" / "loras"
    shutil.copyfile(folder / "locon.safetensors", folder / "unused.safetensors")
    query = "adapter=unused.safetensors&seed=0&text="
    _, answer = server.get(f"/anyadapter/block_weights?{query}{quote('soft face, OUT06:3')}")
    found = {block: answer["values"][block] for block in ("IN04", "IN05", "OUT05", "OUT06", "BASE")}
    assert found == {"IN04": 0, "IN05": 1, "OUT05": 0.25, "OUT06": 3, "BASE": 1}
    assert file.exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"name": "IN04", "text": "OUT:0"}, "the name of blocks"),
        ({"name": "soft", "text": "OUT:x"}, "not a number"),
        ({"name": "soft"}, "needs text as a text"),
        ({"name": 3, "text": "OUT:0"}, "needs name as a text"),
        ({"name": "soft", "text": "OUT:0", "replace": "yes"}, "needs replace as true or false"),
        (["soft"], "no JSON object"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_its_reason(
    server: ComfyServer, file: Path, content: Any, why: str
):
    status, answer = post(server, PRESETS, content)
    assert status == 400
    assert why in answer["error"]
    assert not file.exists()


def test_a_request_that_is_no_json_is_refused(server: ComfyServer):
    status, answer, headers = server.send("POST", PRESETS, b"{")
    assert status == 400
    assert "no JSON" in json.loads(answer)["error"]
    assert headers.get_content_type() == "application/json"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_form_of_another_site_can_send_is_refused(
    server: ComfyServer, file: Path, kind: str
):
    content = json.dumps({"name": "soft", "text": "OUT:0"}).encode()
    for route in (PRESETS, f"{PRESETS}/import"):
        status, answer, _ = server.send("POST", route, content, Content_Type=kind)
        assert (status, "application/json" in json.loads(answer)["error"]) == (415, True)
    assert not file.exists()


def test_another_site_may_neither_change_presets_nor_ask_whether_it_may(
    server: ComfyServer, file: Path
):
    content = json.dumps({"name": "soft", "text": "OUT:0"}).encode()
    elsewhere = {"Origin": "http://elsewhere.example"}
    assert server.send("POST", PRESETS, content, **elsewhere)[0] == 403
    assert server.send("DELETE", f"{PRESETS}?name=soft", **elsewhere)[0] == 403
    status, _, headers = server.send("OPTIONS", PRESETS, **elsewhere)
    assert status == 403 or "Access-Control-Allow-Origin" not in headers
    assert not file.exists()


def test_a_request_of_any_size_is_refused_before_it_is_read(server: ComfyServer, file: Path):
    content = json.dumps({"name": "soft", "text": "OUT:0" + " " * (1 << 18)}).encode()
    status, answer, _ = server.send("POST", PRESETS, content)
    assert status == 413
    assert "bytes" in json.loads(answer)["error"]
    assert not file.exists()


def test_an_export_can_be_imported(server: ComfyServer, file: Path):
    post(server, PRESETS, {"name": "soft", "text": "OUT:0.5"})
    status, exported = server.get(f"{PRESETS}/export")
    assert (status, exported) == (200, {"version": 1, "presets": {"soft": "OUT:0.5"}})
    delete(server, "soft")
    text = json.dumps(exported)
    imported = {"taken": ["soft"], "already": [], "refused": []}
    assert post(server, f"{PRESETS}/import", {"text": text}) == (200, imported)
    assert own(server) == [{"name": "soft", "text": "OUT:0.5", "own": True}]
    other = text.replace("0.5", "0.7")
    assert post(server, f"{PRESETS}/import", {"text": other})[1]["already"] == ["soft"]
    assert post(server, f"{PRESETS}/import", {"text": "{}"})[0] == 400
    assert file.exists()


def test_damaged_presets_do_not_hide_the_others(server: ComfyServer, file: Path):
    file.parent.mkdir(exist_ok=True)
    file.write_text("{", encoding="utf-8")
    status, answer = server.get(PRESETS)
    assert status == 200
    assert answer["presets"]
    assert "is damaged" in answer["error"]
    status, answer = post(server, PRESETS, {"name": "soft", "text": "OUT:0"})
    assert (status, "is damaged" in answer["error"]) == (500, True)
    assert server.get(f"{PRESETS}/export")[0] == 500
    assert file.read_text(encoding="utf-8") == "{"
