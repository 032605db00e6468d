"""Running the service until a signal ends it."""

import signal
import socket

import uvicorn

from captioner.serving.app import create_app
from captioner.serving.options import ServingOptions
from captioner.serving.service import Service

GRACE = 5
"""Seconds beyond the timeout of requests after which a server that is stopping gives up on them."""


def create_server(service: Service) -> uvicorn.Server:
    """An HTTP server whose `should_exit` ends it once accepted requests have been answered."""
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(service.options.timeout) + GRACE,
        ws="none",
    )
    return uvicorn.Server(config)


def serve(options: ServingOptions, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then until accepted requests have been answered.

    Raises KeyboardInterrupt after SIGINT, and the error of a model that cannot be loaded.
    """
    service = Service(options, on_failure=lambda: setattr(server, "should_exit", True))
    server = create_server(service)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again after it has stopped
    server.run(sockets=[listening])
    if service.failure is not None:
        raise service.failure
