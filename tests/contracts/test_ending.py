"""A bwrap that is ended while it sets a sandbox up leaves nothing behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess

import pytest

from corral.sandboxes import programs
from corral.sandboxes.child import end

SECONDS_MAX = 60


@pytest.mark.requirement("F035")
def test_a_bwrap_that_is_ended_in_mid_setup_takes_the_first_process_along() -> None:
    news, news_inside = os.pipe()
    # What bwrap waits for before it goes on with its child: nobody ever writes.
    blocked, hold = os.pipe()
    options = ["--unshare-user", "--unshare-pid", "--info-fd", str(news_inside), "--userns-block-fd", str(blocked)]
    process = subprocess.Popen(
        [str(programs.bubblewrap()), *options, "--ro-bind", "/", "/", "/bin/true"],
        pass_fds=(news_inside, blocked),
        start_new_session=True,
    )
    inner = -1
    try:
        os.close(news_inside)
        said = b""
        while not said.endswith(b"}\n") and (piece := os.read(news, 4_096)):
            said += piece
        inner = os.pidfd_open(json.loads(said)["child-pid"])
        end(process)
        assert process.wait(SECONDS_MAX) == -signal.SIGKILL
        assert select.select([inner], [], [], SECONDS_MAX)[0], "the sandbox's first process waits without end"
        end(process)  # of one that is gone: harmless
    finally:
        for descriptor in (news, blocked, hold, inner):
            if descriptor >= 0:
                os.close(descriptor)
