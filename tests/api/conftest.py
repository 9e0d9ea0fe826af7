"""Fixtures: servers and what sessions need."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from corral.config_sections import ServerSettings
from tests.api.live_server import Host, Serve, Server, World


@pytest.fixture(scope="session")
def hosts() -> Iterator[list[Host]]:
    """Running servers that no test uses just now."""
    made: list[Host] = []
    yield made
    for host in made:
        host.stop()


@pytest.fixture
def serve(hosts: list[Host]) -> Iterator[Serve]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    servers: list[Server] = []

    def start(**settings: Any) -> Server:
        server = Server(hosts.pop() if hosts else Host(), ServerSettings(**settings))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()
        hosts.append(server.host)
    structlog.reset_defaults()


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve()


@pytest.fixture
def world(server: Server) -> World:
    return World(server)
