"""Draw the three captcha sets and load them again: `python generate_captcha.py`.

A set is a folder of pictures with their labels in their names (`1327_000042.png`), and
`captchas.json`, the record of how it was drawn. Any folder of pictures named so can be
loaded; one without the record is somebody's own and is never drawn into.

Importing this module does nothing, and it needs no TensorFlow: the processes that draw
start in a moment.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import signal
import stat
import struct
import sys
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

import captcha.image
import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from tqdm import tqdm

from config import CaptchaError, Config, ConfigError, parse, printable, run

RECORD = "captchas.json"
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
SILENT = {RECORD, "Thumbs.db", "desktop.ini"}  # passed over without a word, as hidden files are
CHUNK = 100  # pictures handed to a process at once
LOADED_ALONE = 3000  # pictures that one process loads before others have started to help
LARGEST_FILE = 2**27  # bytes: more than any picture of the largest size takes
IN_MEMORY = 2**20  # bytes of a file that is read at once
BAD_SHARE = 0.1  # of a folder that may be bad before loading stops
BAD_NAMED = 10  # bad files named one by one

library: Any = captcha.image  # takes its random numbers from library.secrets

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
Item = TypeVar("Item")
Result = TypeVar("Result")


class PictureError(CaptchaError):
    """A file that cannot be used: `kind` is what is wrong with all its like, the text with this one."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


# ---------------------------------------------------------------------- drawing


class Dice(random.Random):
    """Seeded random numbers with the three methods that the captcha library asks of `secrets`."""

    def randbelow(self, n: int) -> int:
        """A whole number from 0 to below n; randrange(n) gives the same in twice the time."""
        bits = n.bit_length()
        while (number := self.getrandbits(bits)) >= n:
            pass
        return number

    def randbits(self, k: int) -> int:
        """A whole number of k random bits."""
        return self.getrandbits(k)


def draw(config: Config, name: str, index: int) -> tuple[str, Image.Image]:
    """Label and picture number `index` of the set `name`; the same for the same seed.

    Each picture has random numbers of its own, started from (seed, set, index): it does not
    matter which process draws it, and no two sets share any.
    """
    label, dice = _label(config, name, index)
    secrets, library.secrets = library.secrets, dice  # the library takes no seed
    try:
        return label, _painter(config.width, config.height).generate_image(label)
    finally:
        library.secrets = secrets


def _label(config: Config, name: str, index: int) -> tuple[str, Dice]:
    dice = Dice(f"{config.seed}/{name}/{index}")
    return "".join(dice.choice(config.alphabet) for _ in range(config.char_num)), dice


class Painter(captcha.image.ImageCaptcha):
    """Draws the library's pictures, to the pixel, from the same random numbers in half the time.

    Pillow does the same in the same order, but the shape of a symbol is made once, and nothing is
    made of the blanks between symbols, which nobody sees. Colours must be nearly opaque, as the
    library's own are.
    """

    def create_captcha_image(
        self, chars: str, color: tuple[int, ...], background: tuple[int, ...]
    ) -> Image.Image:
        """The symbols in a row, RGB [H, W], without the noise."""
        dice = library.secrets
        symbols = []
        for c in chars:
            if dice.randbits(32) / 2**32 > self.word_space_probability:
                symbols.append(self._symbol(" ", color))
            symbols.append(self._symbol(c, color))
        length = sum(w for w, _, _ in symbols)
        average = int(length / len(chars))
        closer = int(self.word_offset_dx * average)
        x = int(average * 0.1)
        picture = Image.new("RGB", (max(length, self._width), self._height), background)
        for w, h, symbol in symbols:
            if symbol:
                mask = symbol.convert("L").point(self.lookup_table)
                picture.paste(symbol, (x, int((self._height - h) / 2)), mask)
            x += w - dice.randbelow(closer + 1)
        return picture.resize((self._width, self._height))

    def _symbol(self, c: str, color: tuple[int, ...]) -> tuple[int, int, Image.Image | None]:
        """Width and height of a symbol, and itself, turned and warped, RGBA; None for a blank."""
        dice = library.secrets
        font = dice.choice(self.truefonts)
        left, top, w, h = _box(font, c)
        x, y = (
            low + dice.randbelow(end - low + 1)
            for low, end in (self.character_offset_dx, self.character_offset_dy)
        )
        turn, wide, high, *corners = [dice.randbits(32) / 2**32 for _ in range(7)]
        if c == " ":
            return w, h, None
        # The place matters only to what it pushes over the left or upper edge.
        shape = _shape(font, c, x if left < 1 else 0, y if top < 1 else 0)
        symbol = Image.new("RGBA", shape.size)
        symbol.paste(color, (0, 0), shape)
        low, end = self.character_rotate
        symbol = symbol.rotate(low + turn * (end - low), Image.Resampling.BILINEAR, expand=True)
        (low_x, end_x), (low_y, end_y) = self.character_warp_dx, self.character_warp_dy
        dx = w * wide * (end_x - low_x) + low_x
        dy = h * high * (end_y - low_y) + low_y
        x1, y1, x2, y2 = (int(share * (d + d) - d) for share, d in zip(corners, (dx, dy) * 2, strict=True))
        w2, h2 = w + abs(x1) + abs(x2), h + abs(y1) + abs(y2)
        quad = (x1, y1, -x1, h2 - y2, w2 + x2, h2 + y2, w2 - x2, -y1)
        return w, h, symbol.resize((w2, h2)).transform((w, h), Image.Transform.QUAD, quad)


@functools.cache
def _box(font: ImageFont.FreeTypeFont, symbol: str) -> tuple[int, ...]:
    """Left, top, right and bottom of a symbol drawn at (1, 1)."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    return tuple(int(edge) for edge in draw.multiline_textbbox((1, 1), symbol, font))


@functools.cache
def _shape(font: ImageFont.FreeTypeFont, symbol: str, x: int, y: int) -> Image.Image:
    """How much a symbol drawn at (x, y) covers of each pixel, L, without the empty edges."""
    _, _, w, h = _box(font, symbol)
    shape = Image.new("L", (w + x, h + y))
    ImageDraw.Draw(shape).text((x, y), symbol, 255, font)
    return shape.crop(shape.getbbox())


@functools.cache
def _painter(width: int, height: int) -> Painter:
    # The library's letters of 42, 50 and 56 px are made for 60 px of height: keep the proportion.
    sizes = tuple(max(1, round(size * height / 60)) for size in (42, 50, 56))
    return Painter(width, height, font_sizes=sizes)


def check_drawable(config: Config) -> None:
    """Raise a ConfigError for a symbol that the library's font lacks: all such would be one box."""
    font = _painter(config.width, config.height).truefonts[-1]
    box = bytes(font.getmask("\uffff"))  # no font has this one
    for symbol in config.alphabet:
        if bytes(font.getmask(symbol)) == box:
            raise ConfigError(
                f"characters must be symbols that the captcha library's font has, to be drawn, not {symbol!r}"
                ": leave it out, or put your own pictures in the folders"
            )


def _file_name(label: str, index: int) -> str:
    return f"{label}_{index:06d}.png"


def _png(picture: Image.Image) -> bytes:
    """An RGB picture as a PNG file.

    Pillow's own takes twice the time to choose filters that make these pictures no smaller.
    """
    width, height = picture.size
    rows = picture.tobytes("raw", "RGB", 3 * width + 1)  # each with a 0 behind it: "no filter" for the next
    chunks = {
        b"IHDR": struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0),  # 8 bits, RGB
        b"IDAT": zlib.compress(b"\0" + rows[:-1], 1),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def _draw_files(config: Config, name: str, folder: str, indices: Sequence[int]) -> int:
    """Draw those pictures into the folder; each appears there only once it is whole."""
    for index in indices:
        label, picture = draw(config, name, index)
        with whole(Path(folder, _file_name(label, index))) as part:
            part.write_bytes(_png(picture))
    return len(indices)


class Generate:
    """Draws the training, validation and test set that a Config describes."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def check_path(self) -> None:
        """Make the three folders where they are missing."""
        for _, folder, _ in self.config.sets:
            if os.path.lexists(folder) and not os.path.isdir(folder):
                raise CaptchaError(
                    f"{printable(folder)} must be a folder for captchas, but is a file: name another folder"
                )
            os.makedirs(folder, exist_ok=True)

    def gen_captcha(self, keep: bool = False) -> None:
        """Draw what is missing of the three sets, and say what is there already.

        An interrupted set is completed. With `keep`, sets drawn with another seed or in
        another number and people's own pictures are left as they are, to be used so.

        Raises:
            CaptchaError: a folder holds other pictures than those asked for, or some but not all
                hold people's own. Nothing is drawn.
        """
        self.check_path()
        wanted = [(name, folder, self._record(name, count)) for name, folder, count in self.config.sets]
        missing = [each for each in wanted if self._is_missing(*each, keep)]
        if missing:
            own = [folder for _, folder, _ in wanted if read_record(folder) is None and visible_names(folder)]
            if own:
                raise CaptchaError(
                    f"{printable(missing[0][1])} must hold pictures of yours, as {printable(own[0])} does, "
                    "since drawn captchas would train or judge for something else: put some there"
                )
            check_drawable(self.config)
        for name, folder, record in missing:
            names = set(os.listdir(folder))
            files = [_file_name(_label(self.config, name, i)[0], i) for i in range(record["count"])]
            indices = [i for i, file in enumerate(files) if file not in names]
            write_json(Path(folder, RECORD), record | {"complete": False})
            work = functools.partial(_draw_files, self.config, name, folder)
            try:
                for _ in in_parallel(work, indices, f"Drawing {name}"):
                    pass
            except OSError as error:
                raise CaptchaError(
                    f"{printable(folder)} could not be drawn to the end ({error.strerror or error}): the "
                    "pictures drawn so far are kept, and the next run goes on from there"
                ) from error
            write_json(Path(folder, RECORD), record | {"complete": True})
            print(f"{printable(folder)}: {record['count']} captchas drawn", flush=True)

    def _record(self, name: str, count: int) -> dict[str, Any]:
        c = self.config
        return {
            "set": name,
            "count": count,
            "seed": c.seed,
            "width": c.width,
            "height": c.height,
            "char_num": c.char_num,
            "characters": c.alphabet,
            "captcha": version("captcha"),
            "pillow": version("pillow"),
        }

    @staticmethod
    def _is_missing(name: str, folder: str, wanted: dict[str, Any], keep: bool) -> bool:
        shown, flag = printable(folder), f"--{name}-folder"
        found = read_record(folder)
        if found is None:
            others = visible_names(folder)
            if others and not keep:
                raise CaptchaError(
                    f"{shown} must be empty to draw captchas into, but holds {len(others)} files that this "
                    f"program did not draw: name another folder with {flag}"
                )
            return not others
        differences = [key for key in wanted if found.get(key) != wanted[key]]
        if not differences:
            if found["complete"]:
                print(f"{shown}: {wanted['count']} captchas are there already", flush=True)
            return not found["complete"]
        told = ", ".join(f"{key} {found.get(key)} (asked for: {wanted[key]})" for key in differences)
        fixed = {"width", "height", "char_num", "characters"}  # what a model cannot overlook
        if keep and found.get("complete") and not fixed & set(differences):
            print(f"{shown}: used as it is, drawn with {told}", flush=True)
            return False
        raise CaptchaError(
            f"{shown} holds captchas drawn with {told}: ask for those, delete the folder to draw it anew, "
            f"or name another with {flag}"
        )


def read_record(folder: str) -> dict[str, Any] | None:
    """How the set in that folder was drawn; None where there is no record."""
    path = Path(folder, RECORD)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("complete"), bool):
        raise CaptchaError(
            f"{printable(str(path))} must be the record of a drawn set, but cannot be read: delete it to use "
            "the pictures beside it as your own, or the folder to draw it anew"
        )
    return record


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    with whole(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden path to write to, which takes the place of `path` once all is written, or goes."""
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------- loading


class ReadData:
    """Reads labelled pictures as arrays, as a Config describes them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.size = (config.width, config.height)

    def read_data(self, path: str | os.PathLike[str]) -> tuple[np.ndarray, str]:
        """One picture, uint8 [H, W], grey, and its label, from the name of the file.

        Raises:
            PictureError: no picture, damaged, of another size, or no valid label in its name.
        """
        label = self.label(os.path.basename(path))
        return self.read_picture(path), label

    def label(self, name: str) -> str:
        """The label in a file's name: what stands before the first `_` or the extension."""
        label = os.path.splitext(name)[0].split("_")[0]
        length, alphabet = self.config.char_num, self.config.alphabet
        if len(label) != length:
            raise PictureError("label of another length", f"{printable(label)!r} is not {length} symbols")
        for symbol in label:
            if symbol not in alphabet:
                raise PictureError(
                    "label outside the alphabet",
                    f"{printable(symbol)!r} in {printable(label)!r} is not in {alphabet}",
                )
        return label

    def read_picture(self, picture: Picture) -> np.ndarray:
        """One picture, uint8 [H, W], grey; what is transparent becomes white.

        The size is compared before anything is decoded, so that a small file that claims a
        huge picture costs nothing.

        Args:
            picture: a path, the bytes of a file, a PIL picture, or an array, uint8 [H, W] grey,
                [H, W, 3] RGB or [H, W, 4] RGBA.
        Raises:
            PictureError: no picture, damaged, or of another size.
        """
        kind = "damaged"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's opinions on metadata
                if isinstance(picture, np.ndarray):
                    picture = _from_array(picture)
                if isinstance(picture, Image.Image):
                    return self._grey(picture)
                with io.BytesIO(picture) if isinstance(picture, bytes) else _opened(picture) as stream:
                    with Image.open(stream, formats=FORMATS) as opened:
                        kind = f"damaged {opened.format}"
                        if opened.format != "PNG" or opened.size != self.size:
                            return self._grey(opened)
                        opened.verify()  # the checksums, which decoding does not look at
                    stream.seek(0)
                    with Image.open(stream, formats=["PNG"]) as opened:
                        return self._grey(opened)
        except (PictureError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise PictureError("a huge size", "far more pixels than {}x{}".format(*self.size)) from None
        except UnidentifiedImageError:
            raise PictureError("not a picture", f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
        except PermissionError:
            raise PictureError("not readable", "permission denied") from None
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
            raise PictureError(kind, printable(str(error))) from error

    def _grey(self, picture: Image.Image) -> np.ndarray:
        """A picture of any of Pillow's modes and of the right size as uint8 [H, W]."""
        if picture.size != self.size:
            raise PictureError("another size", "{}x{} px, not {}x{}".format(*picture.size, *self.size))
        return grey(picture)

    def label2vec(self, label: str) -> np.ndarray:
        """The one-hot vector of a label, float32 [L * K]: '1327' has ones at 1, 13, 22 and 37."""
        length, symbols = self.config.char_num, len(self.config.alphabet)
        if len(label) != length or any(symbol not in self.config.alphabet for symbol in label):
            raise CaptchaError(f"a label must be {length} symbols of {self.config.alphabet}, not {label!r}")
        vector = np.zeros((length, symbols), np.float32)
        vector[np.arange(length), [self.config.alphabet.index(symbol) for symbol in label]] = 1
        return vector.reshape(-1)

    def vec2label(self, vector: np.ndarray) -> str:
        """The label of a one-hot vector (or of scores: the best of each place), [L * K]."""
        length, symbols = self.config.char_num, len(self.config.alphabet)
        if np.size(vector) != length * symbols:
            raise CaptchaError(f"a label's vector must have {length * symbols} values, not {np.size(vector)}")
        best = np.reshape(vector, (length, symbols)).argmax(axis=1)
        return "".join(self.config.alphabet[i] for i in best)

    def load_data(self, folder: str) -> tuple[np.ndarray, np.ndarray, int]:
        """All pictures of a folder, in the order of their names, as load_named() finds them.

        Returns:
            images, uint8 [N, H, W]; label vectors, float32 [N, L * K]; N.

        Raises:
            CaptchaError: as load_named() does.
        """
        images, labels, _ = self.load_named(folder)
        return images, np.stack([self.label2vec(label) for label in labels]), len(labels)

    def load_named(self, folder: str) -> tuple[np.ndarray, list[str], list[str]]:
        """All pictures of a folder, in the order of their names, with labels and names.

        Bad files are left out; on standard error ten are named, one of each kind first, and the rest
        counted.

        Returns:
            images, uint8 [N, H, W]; N labels; the names of the N files.

        Raises:
            CaptchaError: no such folder, no pictures, more than a tenth of them bad, or a set
                whose drawing was interrupted.
        """
        shown = printable(folder)
        if not os.path.isdir(folder):
            raise CaptchaError(f"{shown} must be a folder of pictures, but there is none: check the path")
        record = read_record(folder)
        if record and not record["complete"]:
            raise CaptchaError(
                f"{shown} must be a whole set, but its drawing was interrupted: run generate_captcha.py again"
            )
        names = visible_names(folder)
        images, labels, bad = [], [], []
        for image_part, label_part, bad_part in in_parallel(
            functools.partial(_load_files, self.config, folder), names, f"Loading {shown}", LOADED_ALONE
        ):
            images.append(image_part)
            labels += label_part
            bad += bad_part
        if bad:
            self._report(shown, bad, len(names))
        if not labels:
            example = (self.config.alphabet * self.config.char_num)[: self.config.char_num]
            raise CaptchaError(
                f"{shown} must hold pictures with their labels in their names, such as {example}_000042.png, "
                "but holds none that can be used: put some there, or delete the folder to have captchas drawn"
            )
        left_out = {name for name, _, _ in bad}
        return np.concatenate(images), labels, [name for name in names if name not in left_out]

    @staticmethod
    def _report(shown: str, bad: list[tuple[str, str, str]], total: int) -> None:
        first: dict[str, tuple[str, str, str]] = {}
        for each in bad:
            first.setdefault(each[1], each)
        named = dict.fromkeys([*first.values(), *bad])  # one of each kind, then the others in order
        lines = [f"{shown}: {len(bad)} of {total} files left out"]
        lines += [f"  {printable(name)}: {reason}" for name, _, reason in list(named)[:BAD_NAMED]]
        if len(bad) > BAD_NAMED:
            counts = Counter(kind for _, kind, _ in bad)
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
            lines.append(f"  and {len(bad) - BAD_NAMED} more; in all: {kinds}")
        print("\n".join(lines), file=sys.stderr, flush=True)
        if len(bad) > BAD_SHARE * total:
            raise CaptchaError(
                f"{shown} must hold at most a tenth of bad files, but {len(bad)} of {total} are: "
                "check width, height, char_num and characters, or remove the bad files"
            )


def _load_files(
    config: Config, folder: str, names: Sequence[str]
) -> tuple[np.ndarray, list[str], list[tuple[str, str, str]]]:
    """Images [n, H, W], labels, and (name, kind, reason) of each bad file."""
    reader = ReadData(config)
    images, labels, bad = [], [], []
    for name in names:
        try:
            image, label = reader.read_data(os.path.join(folder, name))
        except PictureError as error:
            bad.append((name, error.kind, str(error)))
        else:
            images.append(image)
            labels.append(label)
    shape = (len(images), config.height, config.width)
    return np.asarray(images, np.uint8).reshape(shape), labels, bad


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    """A file open for reading; a small one is in memory, where Pillow's many short reads cost less.

    Raises:
        PictureError: it is none, or none that can be a picture.
    """
    try:
        found = os.stat(path)
    except PermissionError:
        raise
    except (OSError, ValueError):
        raise PictureError("a link to nothing" if os.path.islink(path) else "no such file") from None
    if stat.S_ISDIR(found.st_mode):
        raise PictureError("a folder")
    if not stat.S_ISREG(found.st_mode):
        raise PictureError("not a file")
    if found.st_size == 0:
        raise PictureError("an empty file")
    if found.st_size > LARGEST_FILE:
        raise PictureError("a huge file", f"{found.st_size:,} bytes, not at most {LARGEST_FILE:,}")
    if found.st_size > IN_MEMORY:
        return open(path, "rb")
    with open(path, "rb") as file:
        return io.BytesIO(file.read())


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise PictureError(
            "not a picture",
            f"an array must be uint8 [H, W], [H, W, 3] or [H, W, 4], not {array.dtype} {list(array.shape)}",
        )
    return Image.fromarray(array)


def grey(picture: Image.Image) -> np.ndarray:
    """Any of Pillow's modes as uint8 [H, W]."""
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits: convert("L") would cut them off at 255
        return np.clip(np.asarray(picture, np.float64) / 257 + 0.5, 0, 255).astype(np.uint8)
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("L"), np.uint8)


def visible_names(folder: str) -> list[str]:
    """The sorted names in a folder, without hidden files and what systems leave there."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(".") and name not in SILENT)


# ---------------------------------------------------------------------- all cores


def in_parallel(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], title: str, alone: int = CHUNK
) -> Iterator[Result]:
    """work(chunk) for each chunk of the items, in order, from all cores, with a progress bar.

    Up to `alone` items are not worth starting processes for. Processes are spawned, since
    forking one that has TensorFlow's threads can hang.
    """
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    workers = min(available_cores(), len(chunks)) if len(items) > alone else 1
    total = len(items)
    with tqdm(
        total=total, desc=title, unit=" pictures", disable=None, leave=False, dynamic_ncols=True
    ) as bar:
        if workers < 2:
            for chunk in chunks:
                yield work(chunk)
                bar.update(len(chunk))
            return
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _end_with_parent)
        try:
            with CtrlCForUsAlone():
                results = pool.map(work, chunks)
            for chunk, result in zip(chunks, results, strict=True):
                yield result
                bar.update(len(chunk))
        except BrokenProcessPool:
            raise CaptchaError(f"{title} stopped: a process was killed, perhaps for lack of memory") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Have this process end when the one that started it is gone, killed perhaps."""
    parent = parent_process()

    def wait() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class CtrlCForUsAlone:
    """Processes started inside ignore Ctrl-C, which reaches the whole group: we stop them."""

    def __enter__(self) -> None:
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        if self.main:
            signal.signal(signal.SIGINT, self.before)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str]) -> int:
    """Draw the three sets."""
    Generate(parse(arguments, "Draw the training, validation and test captchas.")).gen_captcha()
    return 0


if __name__ == "__main__":
    run(main)
