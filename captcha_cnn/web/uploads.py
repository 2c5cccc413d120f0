"""The images of a request, in memory alone: as the body, as parts of a form, or in base64."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from captcha_cnn.web.limits import RequestError, media_type

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_IMAGE = 2**20  # bytes of an image
MAX_IMAGES = 64  # of a request
MAX_FIELDS = 16  # of a form beside its images
FORM, FIELDS, JSON = "multipart/form-data", "application/x-www-form-urlencoded", "application/json"
MAX_BYTES = {  # of a body, by its media type; beside the images there is room for what is around them
    "": MAX_IMAGE,
    FIELDS: 2 * MAX_IMAGE,
    JSON: MAX_IMAGE * 4 // 3 + 2**16,
    FORM: MAX_IMAGES * MAX_IMAGE + 2**18,
}
RAW_NAME = "-"  # of an image that has none, as predict.py calls that of standard input
URL = re.compile(rb"\s*[A-Za-z][A-Za-z0-9+.-]*://")


class Part(NamedTuple):
    """A field of a form."""

    name: str
    filename: str  # empty where it is no file
    content: bytes


class Upload(NamedTuple):
    """An image as it came."""

    name: str
    content: bytes


def bad_request(message: str) -> RequestError:
    """The error for a request that nothing can be made of."""
    return RequestError(400, "bad request", message)


async def read_uploads(request: Request) -> list[Upload]:
    """The images of POST /read: one or more.

    Raises:
        RequestError: there is none, too many, one too large, an address, or the body is damaged.
    """
    kind = media_type(request.headers)
    if kind == FORM:
        parts = [part for part in await read_form(request) if part.name == "file"]
        uploads = [Upload(part.filename or RAW_NAME, part.content) for part in parts]
    elif kind == JSON:
        uploads = [Upload(RAW_NAME, from_base64(_image_of_json(await request.body())))]
    elif kind in ("", "application/octet-stream", FIELDS) or kind.startswith("image/"):  # FIELDS: curl's own
        body = await request.body()
        uploads = [Upload(RAW_NAME, body)] if body else []
    else:
        raise RequestError(
            415, "media type", f"the Content-Type must be an image's, {FORM} or {JSON}, but is another"
        )
    if not uploads:
        raise bad_request(
            "the request must hold an image, as the body or as the file of a form, but has none"
        )
    return [check_upload(upload) for upload in uploads]


def check_upload(upload: Upload) -> Upload:
    """The same upload.

    Raises:
        RequestError: it is too large, or an address.
    """
    if URL.match(upload.content[:64]):
        raise bad_request(
            "an image must be sent itself, but there is an address: nothing is fetched from one"
        )
    if len(upload.content) > MAX_IMAGE:
        raise RequestError(
            413, "too large", f"an image must have at most {MAX_IMAGE:,} bytes, but one has more"
        )
    return upload


def _image_of_json(body: bytes) -> str:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("the body must be JSON, as its Content-Type says, but is damaged") from None
    image = values.get("image") if isinstance(values, dict) else None
    if not isinstance(image, str):
        raise bad_request('the JSON must be {"image": "..."} with the image in base64, but is another')
    return image


def from_base64(text: str) -> bytes:
    """The bytes of base64 or of a data URL.

    Raises:
        RequestError: it is neither.
    """
    if URL.match(text[:64].encode("utf-8", "replace")):
        return text.encode("utf-8", "replace")  # check_upload() refuses it
    encoded = text.partition(",")[2] if text[:5].lower() == "data:" else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:
        raise bad_request(
            "the image must be base64 or a data URL with it, but is damaged or another"
        ) from None


async def read_form(request: Request) -> list[Part]:
    """All fields of a form, multipart or urlencoded.

    Raises:
        RequestError: too many, one too large, or the form is damaged.
    """
    if media_type(request.headers) != FORM:
        try:
            fields = parse_qsl((await request.body()).decode("ascii"), max_num_fields=MAX_FIELDS)
        except ValueError:
            raise bad_request("the body must be fields of a form, but is damaged") from None
        return [Part(name, "", value.encode("utf-8", "replace")) for name, value in fields]
    _, options = parse_options_header(request.headers["content-type"])
    form = _Form()
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
    except (FormParserError, KeyError):
        raise bad_request("the form must be as RFC 7578 has it, but is damaged") from None
    if not form.complete:
        raise bad_request("the form must end with its boundary, but is cut off: send it again")
    return form.parts


class _Form:
    """The parts of a form as its bytes arrive."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.complete = False

    def callbacks(self) -> MultipartCallbacks:
        """What MultipartParser calls."""
        return {
            "on_part_begin": self.part_begin,
            "on_header_field": self.header_field,
            "on_header_value": self.header_value,
            "on_header_end": self.header_end,
            "on_part_data": self.part_data,
            "on_part_end": self.part_end,
            "on_end": self.end,
        }

    def part_begin(self) -> None:
        self._content, self._options = bytearray(), dict[bytes, bytes]()
        self._field, self._value = bytearray(), bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, self._options = parse_options_header(bytes(self._value))
        self._field, self._value = bytearray(), bytearray()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]
        if len(self._content) > 2 * MAX_IMAGE:  # base64 is longer than the image
            check_upload(Upload("", bytes(self._content)))

    def part_end(self) -> None:
        name, filename = (self._text(key) for key in (b"name", b"filename"))
        self.parts.append(Part(name, filename, bytes(self._content)))
        files = sum(part.name == "file" for part in self.parts)
        if files > MAX_IMAGES:
            raise RequestError(
                413, "too large", f"a request must have at most {MAX_IMAGES} images, but has more"
            )
        if len(self.parts) - files > MAX_FIELDS:
            raise RequestError(
                413, "too large", f"a form must have at most {MAX_FIELDS} fields, but has more"
            )

    def end(self) -> None:
        self.complete = True

    def _text(self, key: bytes) -> str:
        return self._options.get(key, b"").decode("utf-8", "replace")


def image_of_form(parts: Iterable[Part]) -> Upload:
    """The one image of POST /ocr: the field `file`, or `image` in base64.

    Raises:
        RequestError: there is none, it is too large, or an address.
    """
    by_name = {part.name: part for part in parts}
    if "file" in by_name:
        return check_upload(Upload(RAW_NAME, by_name["file"].content))
    if "image" in by_name:
        text = by_name["image"].content.decode("utf-8", "replace")
        return check_upload(Upload(RAW_NAME, from_base64(text)))
    raise bad_request("the form must have the field file, or image with base64, but has neither")
