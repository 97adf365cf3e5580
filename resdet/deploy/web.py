"""A web page and ``/detect`` in one process (extra ``web``: gradio on FastAPI). No request leaves the machine."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from contextlib import suppress
from functools import partial

# Read when gradio is imported: it reports its use otherwise, and keeps what was asked in the browser.
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", HF_HUB_DISABLE_TELEMETRY="1")

import anyio
import gradio
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import QueryParams, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Receive

from resdet.deploy.page import STYLE, THEME, build_page
from resdet.deploy.serving import CHOICES, Answer, Service
from resdet.errors import InputError, nearest
from resdet.inference.settings import TestSettings
from resdet.settings import value_of_text

MEGABYTE = 2**20
PATIENCE = 4
"""An upload is read up to so many times its bound, and thrown away, so that its sender hears why it is refused."""


def serve(service: Service, *, host: str = "127.0.0.1", port: int = 7860, max_upload: int = 20) -> None:
    """Answer until Ctrl+C.

    Args:
        service: the detectors.
        host: address to listen at; ``"0.0.0.0"``: all of this machine's.
        port: 0: any that is free.
        max_upload: megabytes of a file.

    Raises:
        InputError: the address is not this machine's, or the port is taken.
    """
    with _listening(host, port) as listening, tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads and answers go with the process
        shown = "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        print(f"{', '.join(service.detectors)} at {address}; programs: curl -F file=@photo.jpg {address}/detect")
        print("Ctrl+C ends it", flush=True)

        async def answer() -> None:
            app = build_app(service, max_upload=max_upload)  # gradio leaves loops open unless one runs
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
            await uvicorn.Server(config).serve(sockets=[listening])

        with suppress(KeyboardInterrupt):
            asyncio.run(answer())


def build_app(service: Service, *, max_upload: int = 20) -> FastAPI:
    """The page at ``/``, and for programs ``GET /models`` and ``POST /detect``.

    ``/detect`` takes an image as the body, or as a file of a form. In the query: ``model=NAME`` (the first one),
    ``class=NAME``, once for each class that is wanted (all), and settings of section ``test``
    (``score_threshold=0.3&flip=true&sizes=640,960``). It answers with :meth:`Answer.record` as JSON; a mistake is
    400 and too large an upload is 413, each with a line in ``detail``.

    Args:
        service: the detectors.
        max_upload: megabytes of a file.
    """
    one = anyio.CapacityLimiter(1)  # those that wait hold no thread, which the page needs too

    async def models(_: Request) -> JSONResponse:
        facts = {name: (each.classes, each.category_ids) for name, each in service.detectors.items()}
        return JSONResponse([{"model": n, "classes": list(c), "category_ids": list(i)} for n, (c, i) in facts.items()])

    async def detect(request: Request) -> JSONResponse:
        content, name = await _upload(request, max_upload * MEGABYTE)
        answer = await anyio.to_thread.run_sync(
            partial(_answer, service, content, name, request.query_params), limiter=one
        )
        return JSONResponse(answer.record())

    async def refused(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": one_line(error)}, status_code=400)

    routes = [Route("/models", models), Route("/detect", detect, methods=["POST"])]
    # The pages of FastAPI's documentation come from elsewhere.
    plain = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(routes=routes, exception_handlers={InputError: refused}, **plain)
    page = build_page(service, one_line=one_line)
    limits = {"max_file_size": max_upload * MEGABYTE, "ssr_mode": False, "mcp_server": False, "pwa": False}
    return gradio.mount_gradio_app(app, page, path="/", theme=THEME, css=STYLE, footer_links=[], **limits)


def one_line(error: Exception) -> str:
    """The message of an error in a line."""
    return " ".join(str(error).replace("\n  found:", ": found").replace("\n  needed:", "; needed").split())


def _answer(service: Service, content: bytes, name: str, query: QueryParams) -> Answer:
    """What a request asks for."""
    test: dict[str, object] = {}
    for key in (key for key in query if key not in ("model", "class")):
        if key not in CHOICES:
            raise InputError("query", found=repr(key), needed=nearest(key, ("model", "class", *CHOICES)))
        several = "," if key in ("scales", "sizes") else ""  # of one it makes a tuple too
        test[key] = value_of_text(TestSettings, key, ",".join(query.getlist(key)) + several)
    pixels = service.read(content, name=name)
    return service.detect(pixels, model=query.get("model"), test=test, only=query.getlist("class"))


async def _upload(request: Request, most: int) -> tuple[bytes, str]:
    """The file of a request, and its name.

    Raises:
        HTTPException: 413, more than ``most`` bytes.
        InputError: there is none.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > PATIENCE * most:
        raise _too_large(most)
    bounded = Request(request.scope, _bounded(request.receive, most))
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        content, name = await bounded.body(), "image"
    else:
        async with bounded.form() as form:
            files = [each for each in form.values() if isinstance(each, UploadFile)]
            content, name = (await files[0].read(), files[0].filename or "image") if files else (b"", "image")
    if not content:
        raise InputError("upload", found="no file", needed="an image as the body, or as a file of a form")
    return content, name


def _bounded(receive: Receive, most: int) -> Receive:
    """The same, which ends with 413 beyond so many bytes."""
    size = 0

    async def read() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        while size > most:
            if not message.get("more_body") or size > PATIENCE * most:
                raise _too_large(most)
            message = await receive()
            size += len(message.get("body", b""))
        return message

    return read


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"upload: found more than {most // MEGABYTE} MB; needed a smaller file (--max-upload)")


def _listening(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        InputError: there is no such address here, or it is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)  # from here on a request waits and is not refused
    except (OSError, OverflowError) as error:
        needed = "an address of this machine and a port that is free: --host, --port"
        raise InputError(
            f"{host}:{port}", found=getattr(error, "strerror", None) or str(error), needed=needed
        ) from error
