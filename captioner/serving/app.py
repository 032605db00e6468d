"""The HTTP interface: captions, traces, the model, health and metrics."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, File, Query, Request, UploadFile
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, JSONResponse, Response

import captioner
from captioner.errors import ImageError
from captioner.records import trace_record
from captioner.serving.folder import Folder, folder_routes
from captioner.serving.guard import PAGE, Guard
from captioner.serving.options import MAX_FILES, CaptionQuery, InspectQuery
from captioner.serving.page import render_page
from captioner.serving.problems import HANDLERS, described
from captioner.serving.service import Service, Upload

if TYPE_CHECKING:
    from captioner.inspection.trace import AttentionTrace

MAX_NAME = 200
"""Characters of a file's name in responses."""
REFUSALS = described(400, 401, 403, 503)
UPLOAD_REFUSALS = REFUSALS | described(408, 413, 415, 422, 429)
REPORT: dict[str, Any] = {"content": {"text/html": {"schema": {"type": "string"}}}}
REPORT_POLICY = "sandbox allow-scripts; frame-ancestors 'none'"
"""Content security policy of a report besides its own: its scripts cannot use the server."""
RECORDS: list[Any] = [
    {"path": "dog.jpg", "caption": "a dog runs", "log_prob": -2.1, "confidence": 0.59, "width": 640, "height": 480},
    {"path": "notes.txt", "error": {"code": "not_an_image", "message": "notes.txt: not an image"}},
]
"""An example, shortened."""


class Captions(BaseModel):
    """A record for each file, as `captioner caption --format jsonl` writes it."""

    results: Annotated[list[dict[str, Any]], Field(examples=[RECORDS])]


def create_app(service: Service) -> Guard:
    """The ASGI application of a service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="captioner",
        version=captioner.__version__,
        description="Captions of photos, and where each word looked. Errors are problem JSON with a stable `code`.",
        lifespan=lifespan,
        exception_handlers=HANDLERS,
        docs_url=None,  # this page and the next load scripts from elsewhere
        redoc_url=None,
    )

    page = render_page()

    @app.get(PAGE, include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})

    @app.post("/v1/caption", response_model=Captions, responses=UPLOAD_REFUSALS)
    async def caption(
        files: Annotated[list[UploadFile], File(min_length=1, max_length=MAX_FILES)],
        query: Annotated[CaptionQuery, Query()],
    ) -> Response:
        """Caption photos. An unusable file has an error in its record; if all are, the response is a problem."""
        with service.accept(len(files) - 1):  # one was accepted with the request
            uploads = [await _read(each) for each in files]
            tasks = [asyncio.ensure_future(service.caption(each, query)) for each in uploads]
            try:
                records = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        if all("error" in record for record in records):
            raise ImageError(records[0]["error"]["message"], records[0]["error"]["code"])
        return JSONResponse({"results": records})

    @app.post("/v1/inspect", response_model=dict[str, Any], responses=UPLOAD_REFUSALS | {200: REPORT})
    async def inspect(request: Request, file: UploadFile, query: Annotated[InspectQuery, Query()]) -> Response:
        """Caption a photo and show where each word looked, as `captioner inspect --json` or, for `Accept: text/html`,
        `--html` writes it."""
        upload = await _read(file)

        def render_page(trace: "AttentionTrace") -> str:
            from captioner.inspection.report import render_report

            return render_report(trace, name=upload.name, model=service.name)

        if "text/html" in request.headers.get("accept", ""):
            page = await service.inspect(upload, query, render_page)
            return HTMLResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})
        record = await service.inspect(upload, query, partial(trace_record, layer=query.layer, head=query.head))
        return JSONResponse({"path": upload.name, "model": service.name, **record})

    @app.get("/v1/model", responses=REFUSALS)
    async def model() -> dict[str, Any]:
        """The model's configuration, and the limits of requests."""
        config = asdict(service.loaded()[0].model.config)
        limits = {"max_files": MAX_FILES, "max_bytes": service.options.max_bytes}
        about = {"name": service.name, "version": captioner.__version__, "has_folder": service.options.root is not None}
        return {**about, "config": config, "limits": limits}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server responds."""
        return {"status": "ok"}

    @app.get("/readyz", responses=described(503))
    async def readyz() -> dict[str, str]:
        """Whether the model is loaded."""
        service.loaded()
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses=REFUSALS)
    async def metrics() -> Response:
        """Metrics in the Prometheus text format."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    if service.options.root is not None:
        app.include_router(folder_routes(Folder(service.options.root), service))

    return Guard(app, service, frozenset(app.openapi()["paths"]))


async def _read(file: UploadFile) -> Upload:
    return Upload((file.filename or "")[:MAX_NAME], await file.read())
