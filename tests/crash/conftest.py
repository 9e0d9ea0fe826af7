"""The crash tests kill the same real server that the end-to-end tests run against."""

from tests.e2e.conftest import server

__all__ = ["server"]
