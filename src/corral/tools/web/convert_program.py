"""The program that turns HTML into Markdown; started by `converting.py`, and never imported by the server.

HTML comes on stdin, Markdown goes to stdout. Arguments: bytes of memory, bytes of output, the HTML's
charset, the page's URL.
"""

from __future__ import annotations

import resource
import sys

CPU_SECONDS_MAX = 120
SHORT_CHARACTERS = 200
"""A page that gives less text than this may be nothing but navigation."""


def main() -> None:
    """Convert, and say nothing but the result."""
    memory, output, charset, url = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS_MAX, CPU_SECONDS_MAX))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    html = sys.stdin.buffer.read().decode(charset, "replace")
    sys.stdout.buffer.write(convert(html, url).encode("utf-8", "replace"))


def convert(html: str, url: str) -> str:
    """The page as Markdown: its title, then what it says."""
    title, text = _converted(html, url, navigation=False)
    if len(text) < SHORT_CHARACTERS:
        _, more = _converted(html, url, navigation=True)
        text = more if len(more) > len(text) else text
    first = text.partition("\n")[0].lstrip("# ").strip()
    return text if not title or title == first else f"# {title}\n\n{text}"


def _converted(html: str, url: str, *, navigation: bool) -> tuple[str, str]:
    from html_to_markdown import ConversionOptions, PreprocessingOptions
    from html_to_markdown import convert as to_markdown

    options = ConversionOptions(
        base_url=url,
        compact_tables=True,
        inline_data_media="alt_text_only",
        # Some servers' frameworks make a form of every whole page.
        preprocessing=PreprocessingOptions(remove_navigation=not navigation, remove_forms=False),
    )
    result = to_markdown(html, options)
    text = result.content or ""
    if text.startswith("---\n"):
        # Values are quoted, so the first such line ends what stands before the page.
        text = text.partition("\n---\n")[2]
    return " ".join((result.metadata.document.title or "").split()), text.strip()


if __name__ == "__main__":
    main()
