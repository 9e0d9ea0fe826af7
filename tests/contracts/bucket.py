"""A real server that speaks S3's API, in a process of its own, with one bucket."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Generator
from contextlib import contextmanager
from copy import copy
from itertools import count

import msgspec
import obstore
from obstore.store import S3Store

from corral.config_sections import BlobSettings

NAME = "corral-tests"
STOP_SECONDS_MAX = 30
SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Bucket:
    """What is in the bucket, seen without our client."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._process, self._url = process, url
        self._prefixes = count(1)
        self.settings = BlobSettings(
            backend="s3", bucket=NAME, endpoint_url=url, region="us-east-1", part_bytes=5 * 1024 * 1024
        )

    def empty(self) -> Bucket:
        """The same with settings for a prefix that nothing has."""
        found = copy(self)
        found.settings = msgspec.structs.replace(self.settings, prefix=f"some/where{next(self._prefixes)}")
        return found

    def names(self) -> list[str]:
        """Of all objects, and uploads that were begun and not ended."""
        found = ElementTree.fromstring(self._request("GET", "?list-type=2"))
        begun = ElementTree.fromstring(self._request("GET", "?uploads"))
        keys = [node.text or "" for tree in (found, begun) for node in tree.iter() if node.tag.endswith("}Key")]
        return [key.rpartition("/")[2] for key in keys if key.startswith(self.settings.prefix + "/")]

    def replace(self, name: str, data: bytes) -> None:
        """Put something else where a blob was."""
        prefix, endpoint = self.settings.prefix, self._url
        store = S3Store(NAME, prefix=prefix, endpoint=endpoint, client_options={"allow_http": True})
        obstore.put(store, f"{name[:2]}/{name}", data)

    def make(self) -> None:
        """Create the bucket."""
        self._request("PUT", "", b"")

    def close(self) -> None:
        """End the server. Idempotent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(STOP_SECONDS_MAX)

    def _request(self, method: str, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self._url}/{NAME}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=STOP_SECONDS_MAX) as answer:
            return answer.read()


@contextmanager
def serving_bucket() -> Generator[Bucket]:
    """A server with an empty bucket."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        bucket = Bucket(process, f"http://127.0.0.1:{process.stdout.readline().strip()}")
        try:
            bucket.make()
            yield bucket
        finally:
            bucket.close()
