"""Control characters that strangers sent are shown, never obeyed."""

from __future__ import annotations

import io

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from corral.commands.terminal import Terminal
from corral.domain.visible import visible

HOSTILE = "a\x1b]52;c;cHduZWQ=\x07b\x1b[2J\x9bc\rd\x85\u2028\u202e\x00\ue000"
SHOWN = r"a\x1b]52;c;cHduZWQ=\x07b\x1b[2J\x9bc\rd\x85\u2028\u202e\x00\ue000"


def test_what_cannot_be_seen_is_written_out() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("ünïcode 漢字 🎉 a\nb\tc") == "ünïcode 漢字 🎉 a\nb\tc"


def test_a_terminal_is_sent_no_control_characters_but_its_own() -> None:
    out = Terminal(file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False, soft_wrap=True)
    table = Table("name", box=None)
    table.add_row(escape(HOSTILE))
    for each in (HOSTILE, Text(HOSTILE), Text(HOSTILE, style="red"), f"[red]corral:[/] {escape(HOSTILE)}", table):
        out.print(each)
    assert isinstance(out.file, io.StringIO)
    written = out.file.getvalue()
    assert "\x1b]" not in written and "\x1b[2J" not in written and "\x1b[31m" in written
    assert not set(HOSTILE) - {"\x1b"} & set(written) - set(SHOWN)
