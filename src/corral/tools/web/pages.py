"""An answer of a web server as blocks for a model: text, Markdown, a picture or a PDF.

What a server says about its answer is checked where a mistake would hurt: a picture that is none would be refused by
models, in this request and in every one after it.
"""

from __future__ import annotations

import base64
import codecs
import re
from typing import Literal, TypeAlias

from corral.config_sections import WebSettings
from corral.domain.content import Base64Source, DocumentBlock, ImageBlock, ResultBlock, TextBlock
from corral.domain.media import IMAGES, PDF, media_type_of
from corral.tools.web.converting import Converter
from corral.tools.web.failure import WebFailure
from corral.tools.web.fetching import Page

Kind: TypeAlias = Literal["html", "text", "image", "pdf"]

HTML = frozenset({"text/html", "application/xhtml+xml"})
TEXT = re.compile(
    r"text/.+|application/(?:[\w.+-]+\+)?(?:json|xml|yaml)|"
    r"application/(?:x-ndjson|jsonl|javascript|ecmascript|x-javascript|x-yaml|toml|sql|x-sh|rtf|x-tex|x-latex)|image/svg\+xml"
)

CHARACTERS_PER_TOKEN = 4
"""For `max_content_tokens`, an estimate: which model counts how is not known here."""
CHARSETS = frozenset(
    "utf-8 utf-16 utf-16-le utf-16-be ascii cp1252 iso8859-1 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 "
    "iso8859-7 iso8859-8 iso8859-9 iso8859-10 iso8859-11 iso8859-13 iso8859-14 iso8859-15 iso8859-16 cp1250 cp1251 "
    "cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp866 cp874 koi8-r koi8-u mac-roman gb2312 gbk gb18030 big5 big5hkscs "
    "euc_jp shift_jis cp932 iso2022_jp euc_kr cp949".split()
)
"""As Python names them. It knows others that are no charsets of pages, and some take quadratic time."""
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
DECLARED = re.compile(rb"charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
DECLARED_WITHIN_BYTES = 2_048


def kind_of(content_type: str) -> Kind:
    """What a content type is for us. Raises `WebFailure` for what no model reads."""
    essence = content_type.partition(";")[0].strip().lower()
    if essence in HTML:
        return "html"
    if essence in IMAGES or essence == "image/jpg":
        return "image"
    if essence == PDF:
        return "pdf"
    if not essence or TEXT.fullmatch(essence):
        return "text"
    raise WebFailure(
        "unsupported_content_type",
        f"The page is {essence[:100]}; only HTML, text, JSON, PDF and PNG, JPEG, GIF or WebP pictures can be shown.",
    )


def bytes_max(content_type: str, settings: WebSettings) -> int:
    """How much of such a body is read. Raises `WebFailure` like `kind_of`."""
    match kind_of(content_type):
        case "image":
            return settings.image_base64_bytes_max // 4 * 3
        case "pdf":
            return settings.pdf_bytes_max
        case _:
            return settings.page_bytes_max


async def shown(page: Page, converter: Converter, characters_max: int | None) -> tuple[ResultBlock, ...]:
    """The page as blocks. Raises `WebFailure`."""
    match kind_of(page.content_type):
        case "image" | "pdf" as kind:
            if page.is_cut:
                raise WebFailure("content_too_large", f"The {'PDF' if kind == 'pdf' else 'picture'} is too large.")
            return (_picture(page.body) if kind == "image" else _document(page.body),)
        case kind:
            return (TextBlock(text=await _text(page, kind, converter, characters_max)),)


async def _text(page: Page, kind: Kind, converter: Converter, characters_max: int | None) -> str:
    if kind == "text" and not page.content_type and page.body.lstrip()[:1] == b"<":
        kind = "html"
    charset = _charset(page)
    if kind == "html":
        text = await converter.markdown(page.body, charset, str(page.url))
    else:
        if b"\0" in page.body[:DECLARED_WITHIN_BYTES] and not charset.startswith("utf-16"):
            raise WebFailure("unsupported_content_type", "The page says that it is text, and is not.")
        text = page.body.decode(charset, "replace")
    notes = ["the rest of the page is too long to read"] if page.is_cut else []
    if characters_max is not None and len(text) > characters_max:
        text = text[:characters_max]
        notes = ["cut at the limit of tokens for one page"]
    return (text or "(The page has no text.)") + "".join(f"\n\n[… {note}]" for note in notes)


def _picture(data: bytes) -> ImageBlock:
    media_type = media_type_of(data)
    if media_type not in IMAGES:
        raise WebFailure("unsupported_content_type", "The page says that it is a picture, and is not.")
    return ImageBlock(source=Base64Source(media_type=media_type, data=base64.b64encode(data).decode("ascii")))


def _document(data: bytes) -> DocumentBlock:
    if media_type_of(data) != PDF:
        raise WebFailure("unsupported_content_type", "The page says that it is a PDF, and is not.")
    return DocumentBlock(source=Base64Source(media_type=PDF, data=base64.b64encode(data).decode("ascii")))


def _charset(page: Page) -> str:
    """What the page's bytes are read as: its mark, what its header or itself says, else UTF-8 or what old pages are."""
    for mark, charset in MARKS:
        if page.body.startswith(mark):
            return charset
    declared = [DECLARED.search(page.content_type.encode("ascii", "ignore"))]
    declared.append(DECLARED.search(page.body[:DECLARED_WITHIN_BYTES]))
    for found in declared:
        charset = _known(found[1].decode("ascii", "ignore")) if found else None
        if charset is not None:
            return charset
    try:
        page.body[: -4 if page.is_cut else None].decode("utf-8")
    except UnicodeDecodeError as error:
        # A cut may fall into a character; anything else is not UTF-8.
        return "utf-8" if page.is_cut and error.start >= len(page.body) - 8 else "cp1252"
    return "utf-8"


def _known(name: str) -> str | None:
    try:
        found = codecs.lookup(name).name
    except LookupError:
        return None
    # Browsers read both of these as Windows does, and so pages are written.
    found = "cp1252" if found in ("iso8859-1", "ascii") else found
    return found if found in CHARSETS else None
