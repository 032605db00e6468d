"""Errors as problem JSON (RFC 9457) with the project's stable codes."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from captioner.errors import CaptionerError, ConfigError, ImageError, ResourceError
from captioner.text import printable

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = "1"
"""Retry-After of 429 and 503."""
STATUS_OF_IMAGE = {"too_many_pixels": 413, "out_of_view": 422}
"""Code of an unusable image -> status; 415 for the others."""
CODE_OF_STATUS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
"""Status of the framework's errors -> code."""


class ProblemDetails(BaseModel):
    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str


class Problem(HTTPException):
    """A refused request."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, {"Retry-After": RETRY_SECONDS} if status in (429, 503) else headers)
        self.code = code

    def response(self) -> Response:
        status, title = self.status_code, HTTPStatus(self.status_code).phrase
        details = ProblemDetails(title=title, status=status, detail=printable(self.detail), code=self.code)
        return JSONResponse(details.model_dump(), status, self.headers, MEDIA_TYPE)


def respond(request: Request, error: Exception) -> Response:
    """The response to an error; a handler of exceptions."""
    if isinstance(error, Problem):
        problem = error
    elif isinstance(error, HTTPException):
        code = CODE_OF_STATUS.get(error.status_code, "error")
        problem = Problem(error.status_code, code, error.detail, error.headers)
    elif isinstance(error, RequestValidationError):
        found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        problem = Problem(422, "invalid", found[:1000])
    elif isinstance(error, ImageError):
        problem = Problem(STATUS_OF_IMAGE.get(error.code, 415), error.code, str(error))
    elif isinstance(error, ConfigError | ResourceError):
        problem = Problem(422 if isinstance(error, ConfigError) else 503, error.code, str(error))
    else:
        problem = Problem(500, "internal", "this is a bug; the server's log has its traceback")
    return problem.response()


HANDLERS: dict[Any, Any] = dict.fromkeys((HTTPException, RequestValidationError, CaptionerError, Exception), respond)


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of an operation, for the OpenAPI document."""
    content = {MEDIA_TYPE: {"schema": ProblemDetails.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
