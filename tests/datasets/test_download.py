"""Downloads from a server of this machine that breaks off, forgets, errs and lies."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torchvision

from resdet import cli
from resdet.cli.downloading import NAMES
from resdet.datasets import download as downloads
from resdet.datasets.download import SETS, Part, download, in_words
from resdet.errors import InputError

FILES = {
    "VOCdevkit/VOC2007/ImageSets/Main/test.txt": b"000001\n",
    "VOCdevkit/VOC2007/JPEGImages/000001.jpg": b"x" * 9000,
}
SIGN = next(iter(FILES))


class Server(ThreadingHTTPServer):
    """Serves ``content``; ``requests`` has the path and the Range of each call."""

    content = b""
    knows_range = True
    breaks_after = ()
    """Bytes after which the first, the second ... answer ends."""
    codes = ()
    """Statuses of the first, the second ... answer."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.sent = [], 0

    def url(self, name):
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        number = len(server.requests)
        server.requests.append(asked)
        code = server.codes[number] if number < len(server.codes) else 200
        if code != 200:
            self.send_error(code)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.knows_range else 0
        body = server.content[start:]
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        body = body[: server.breaks_after[number]] if number < len(server.breaks_after) else body
        server.sent += len(body)
        self.wfile.write(body)  # and the connection ends, short of what was declared

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.setattr(downloads, "BLOCK", 1000)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def tar(files=FILES) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zipped(files=FILES) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def part(server, content, name="a.tar", **changes) -> Part:
    server.content = content
    return Part(server.url(name), len(content), hashlib.md5(content).hexdigest(), SIGN)._replace(**changes)


def get(root, *parts):
    said, seen = [], []
    download(parts, root, watch=lambda *step: seen.append(step), say=said.append)
    return "\n".join(said), seen


def check(root, files=FILES):
    for name, content in files.items():
        assert (root / name).read_bytes() == content


@pytest.mark.parametrize(("make", "name"), [(tar, "a.tar"), (zipped, "a.zip")])
def test_it_arrives_and_is_unpacked_once(server, tmp_path, make, name):
    wanted = part(server, make(), name)
    said, seen = get(tmp_path, wanted)
    check(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VOCdevkit"]  # no archive is left
    assert said.startswith(f"{name} ") and in_words(wanted.size) in said and "free" in said
    steps = [done for what, done, total in seen if what == name]
    assert steps == sorted(steps) and steps[-1] == wanted.size
    again, _ = get(tmp_path, wanted)
    assert "passed over" in again and len(server.requests) == 1


def test_a_broken_connection_goes_on_where_it_broke(server, tmp_path):
    server.breaks_after = (4000, 3000)
    get(tmp_path, part(server, tar()))
    check(tmp_path)
    assert server.requests == [None, "bytes=4000-", "bytes=7000-"]
    assert server.sent == len(server.content)  # no byte twice


def test_the_next_call_goes_on(server, tmp_path):
    server.breaks_after = (4000, *[0] * downloads.TRIES)
    wanted = part(server, tar())
    with pytest.raises(InputError, match=rf"(?s){downloads.TRIES} times at 4\.0 kB of .*same command again"):
        get(tmp_path, wanted)
    assert len(server.requests) == 1 + downloads.TRIES
    server.breaks_after = ()
    said, _ = get(tmp_path, wanted)
    assert "goes on from 4.0 kB" in said and server.requests[-1] == "bytes=4000-"
    check(tmp_path)


def test_a_server_that_ignores_range(server, tmp_path):
    server.knows_range, server.breaks_after = False, (4000,)
    said, _ = get(tmp_path, part(server, tar()))
    assert "cannot go on from 4.0 kB, so it starts anew" in said
    check(tmp_path)


def test_errors_that_pass_and_that_stay(server, tmp_path):
    server.codes = (503, 429)
    get(tmp_path, part(server, tar()))
    check(tmp_path)
    server.requests, server.codes = [], (404,)
    with pytest.raises(InputError, match=r"(?s)/b\.tar\n.*HTTP 404 Not Found.*data/README\.md"):
        get(tmp_path, part(server, tar(), "b.tar", sign="other"))
    assert len(server.requests) == 1


def test_nobody_answers(server, tmp_path):
    wanted = part(server, tar())._replace(url="http://127.0.0.1:9/a.tar")
    with pytest.raises(InputError, match=r"(?s)refused, 5 times at 0 bytes.*a network"):
        get(tmp_path, wanted)


def test_a_wrong_file(server, tmp_path):
    wanted = part(server, tar())
    server.content = b"<html>please log in</html>"
    with pytest.raises(InputError, match=rf"(?s)a file of 26 bytes.*{wanted.size:,}, as it was published"):
        get(tmp_path, wanted)
    server.content = bytes(wanted.size)
    with pytest.raises(InputError, match=rf"(?s)of MD5 .*{wanted.md5}"):
        get(tmp_path, wanted)
    server.content = tar()
    get(tmp_path, wanted)  # nothing of the wrong ones is left
    check(tmp_path)


def test_a_partial_file_that_is_too_long(server, tmp_path):
    wanted = part(server, tar())
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "a.tar.part").write_bytes(bytes(wanted.size + 1))
    get(tmp_path, wanted)
    check(tmp_path)


def test_a_damaged_zip(server, tmp_path):
    content = bytearray(zipped())
    content[content.index(b"x" * 100) + 50] = 0
    wanted = part(server, bytes(content), "a.zip", md5=None)
    with pytest.raises(InputError, match=r"(?s)a\.zip\n.*damaged: Bad CRC-32.*fetched anew"):
        get(tmp_path, wanted)
    server.content = zipped()
    get(tmp_path, wanted)
    check(tmp_path)


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt"])
@pytest.mark.parametrize("make", [tar, zipped])
def test_nothing_is_written_elsewhere(server, tmp_path, make, name):
    root = tmp_path / "data"
    wanted = part(server, make({**FILES, name: b"!"}), f"a.{'zip' if make is zipped else 'tar'}", into="in")
    with pytest.raises(InputError, match="leads out of"):
        get(root, wanted)
    assert not list(tmp_path.rglob("*out.txt"))


def test_links_are_refused(server, tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("VOCdevkit")
        link.type, link.linkname = tarfile.SYMTYPE, "/tmp"
        archive.addfile(link)
    with pytest.raises(InputError, match=r"'VOCdevkit', which is no file"):
        get(tmp_path, part(server, out.getvalue()))
    assert not (tmp_path / "VOCdevkit").exists()


def test_an_archive_that_is_read_as_it_is(server, tmp_path):
    content = struct.pack("8000B", *(number % 251 for number in range(8000)))
    wanted = part(server, content, "c.tar.gz", sign="c.tar.gz", into=None)
    get(tmp_path, wanted)
    assert (tmp_path / "c.tar.gz").read_bytes() == content
    assert "passed over" in get(tmp_path, wanted)[0]


def test_room(server, tmp_path, monkeypatch):
    first, second = part(server, tar())._replace(unpacked=50_000), part(server, tar(), "b.tar", sign="other")
    needed = 50_000 + 2 * second.size  # the first unpacked, the second packed and unpacked
    assert needed > first.size + 50_000
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage(0, 0, needed - 1))
    with pytest.raises(InputError, match=r"(?s)free\n.*another --root"):
        get(tmp_path, first, second)
    assert server.requests == []
    assert downloads.check_room([], tmp_path) == (0, needed - 1)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage(0, 0, needed))
    assert downloads.check_room([first, second], tmp_path) == (needed, needed)
    (tmp_path / "downloads" / "b.tar.part").write_bytes(bytes(1000))  # lies here already
    assert downloads.check_room([first, second], tmp_path) == (needed - 1000, needed)


def test_one_at_a_time(server, tmp_path):
    with downloads.held(tmp_path / "downloads"), pytest.raises(InputError, match="another download"):
        get(tmp_path, part(server, tar()))


def test_what_is_published():
    assert tuple(SETS) == NAMES
    parts = [part for parts in SETS.values() for part in parts]
    assert [part.md5 is None for part in parts] == [part.name.endswith(".zip") for part in parts]
    assert SETS["voc2007"][1].url.endswith("/VOCtest_06-Nov-2007.tar")
    assert SETS["cifar10"][0].md5 == torchvision.datasets.CIFAR10.tgz_md5
    assert SETS["voc2012"][0].sign == "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt"


def test_the_tool(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "SETS", {"voc2007": (part(server, tar()),)})
    cli.download(["voc2007", "--root", str(tmp_path / "data")])
    check(tmp_path / "data")
    assert "a.tar" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.download(["imagenet", "--root", str(tmp_path / "data")])
    assert "login" in ended.value.code and "https://image-net.org" in ended.value.code
    with pytest.raises(SystemExit, match="2"):
        cli.download(["voc2008"])
