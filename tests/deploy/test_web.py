"""The server: what it answers equals what detectors find, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

import resdet
from resdet import cli
from resdet.deploy.serving import Service
from resdet.errors import InputError

gradio = pytest.importorskip("gradio", reason='the web page needs pip install "resdet[web]"')
from starlette.testclient import TestClient  # noqa: E402

from resdet.deploy import web  # noqa: E402

TOOL = Path(__file__).parents[2] / "tools" / "serve.py"


@pytest.fixture(scope="module")
def client(trained, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        service = Service([trained / "last.pth"], device="cpu")

        async def build():
            return web.build_app(service, max_upload=1)

        yield TestClient(asyncio.run(build()))


@pytest.fixture
def image(tiny):
    return sorted(tiny.images.iterdir())[0]


def detail(answer, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["detail"]
    return answer.json()["detail"]


def test_numbers_are_those_of_the_detector(client, trained, image):
    asked = "/detect?score_threshold=0.01&flip=true&sizes=80&refine=1"
    by_form = client.post(asked, files={"file": ("a.png", image.read_bytes())})
    by_body = client.post(asked, content=image.read_bytes())
    test = {"score_threshold": 0.01, "flip": True, "sizes": (80,), "refine": 1}
    wanted = resdet.Detector(trained / "last.pth", device="cpu", test=test)
    found = wanted(image)
    assert len(found.boxes) > 3
    for answer in (by_form, by_body):
        assert answer.status_code == 200
        record = answer.json()
        assert record["boxes"] == found.boxes.tolist() and record["scores"] == found.scores.tolist()
        assert record["labels"] == found.labels.tolist() and record["model"] == "last"
        assert record["names"] == [wanted.classes[label] for label in found.labels]
    some = client.post(f"{asked}&class=red&class=blue", content=image.read_bytes()).json()
    assert set(some["names"]) <= {"red", "blue"} and 0 < len(some["names"]) <= len(found.boxes)
    assert client.get("/models").json() == [
        {"model": "last", "classes": list(wanted.classes), "category_ids": list(wanted.category_ids)}
    ]


def test_sides_are_said_in_two_ways(client, image):
    query = "/detect?score_threshold=0.01&scales="
    answers = [client.post(query + end, content=image.read_bytes()).json() for end in ("48,64", "48&scales=64")]
    assert answers[0]["boxes"] == answers[1]["boxes"] and answers[0]["boxes"]


@pytest.mark.parametrize("size", [2**20 + 1, 10 * 2**20])
def test_too_large(client, size):
    content = bytes(size)
    parts = (content[start : start + 2**16] for start in range(0, size, 2**16))  # no length is declared
    for given in ({"content": content}, {"files": {"file": ("a.png", content)}}, {"content": parts}):
        assert "more than 1 MB" in detail(client.post("/detect", **given), 413)


@pytest.mark.parametrize(
    ("query", "content", "words"),
    [
        ("", b"not an image", ["image: found does not decode (12 bytes", "needed a complete image"]),
        ("", b"", ["no file"]),
        ("?flop=1", None, ["'flop'", "'flip'"]),
        ("?ensemble=x.pth", None, ["'ensemble'"]),
        ("?score_threshold=2", None, ["test.score_threshold", "2"]),
        ("?score_threshold=much", None, ["test.score_threshold", "much"]),
        ("?model=best", None, ["'best'", "last"]),
        ("?class=pink", None, ["'pink'"]),
    ],
)
def test_mistakes_are_one_line(client, image, query, content, words):
    content = image.read_bytes() if content is None else content
    told = detail(client.post(f"/detect{query}", content=content), 400)
    assert all(word in told for word in words), told


def test_a_form_without_a_file(client):
    assert "no file" in detail(client.post("/detect", data={"a": "b"}, files={"x": ("", b"")}), 400)
    broken = {"content-type": "multipart/form-data"}  # no boundary
    assert client.post("/detect", content=b"x", headers=broken).status_code == 400


def test_the_page_asks_nothing_of_others(client):
    text = client.get("/").text
    assert "googleapis" not in text and "gstatic" not in text
    settings = client.get("/config").json()
    assert settings["analytics_enabled"] is False
    assert client.get("/docs").status_code == 404


def test_a_tool_from_start_to_end(trained, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(TOOL), str(trained / "last.pth"), "--port", "0", "--device", "cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as server:
        try:
            address = server.stdout.readline().split(" at ")[1].split(";")[0]
            assert address.startswith("http://127.0.0.1:")
            with urlopen(f"{address}/models", timeout=60) as answer:
                assert json.load(answer)[0]["model"] == "last"
        finally:
            server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=60)
    assert (server.returncode, said) == (0, "")
    assert list(tmp_path.iterdir()) == []  # uploads are gone


def test_an_address_that_is_taken(trained):
    service = Service([trained / "last.pth"], device="cpu")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"(?s)127\.0\.0\.1:{port}\n.*in use.*--port"):
            web.serve(service, port=port)


def test_a_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("web", "page"):
        monkeypatch.delitem(sys.modules, f"resdet.deploy.{name}", raising=False)
        monkeypatch.delattr(f"resdet.deploy.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.serve(["best.pth"])
    assert ended.value.code == 'error: the web page\n  found:  no gradio\n  needed: pip install "resdet[web]"'
