"""Image bytes to pixels, under limits: the only place where an image is decoded.

    pixels = decode(data, config.data.images)     # upright RGB, alpha on white, or ImageRefused with a Verdict

Every limit is checked on the header, before a pixel is decoded: a 49 KB PNG may hold 400 million of them. What
Pillow gets wrong quietly is put right here: EXIF rotation, 16-bit and float images (it clips them), transparency.
Only the formats named below have a decoder at all; the bytes decide, never the file name.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused

if TYPE_CHECKING:
    from adamllm_ray.config import ImageLimits

# Imported by name, so that Pillow never goes looking for its forty other decoders.
_DECODERS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    TiffImagePlugin.TiffImageFile,
    BmpImagePlugin.BmpImageFile,
)
FORMATS = tuple(decoder.format for decoder in _DECODERS if decoder.format)
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\x00", b"MM\x00*")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

# Our own, lower limit takes the place of Pillow's warning at 89 million pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """Upright 8-bit RGB image without metadata; the first frame of an animation.

    16-bit samples are scaled by 1/257. 32-bit and float samples keep their values if these lie in 0..255, are
    scaled if they lie in 0..1 or 0..65535, and are otherwise stretched from their minimum to their maximum.

    Raises:
        ImageRefused: the bytes are not an image of an allowed format, break a limit, or are damaged.
    """
    image = _open(data, limits)
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise many types on damaged data; each means the same to us
        raise ImageRefused(Verdict.IMAGE_TRUNCATED, _words(error)) from error
    try:
        pixels = _on_white_rgb(_eight_bit(image))
        method = _UPRIGHT.get(_orientation(image))
        pixels = pixels.transpose(method) if method is not None else pixels
    except Exception as error:
        raise ImageRefused(Verdict.IMAGE_UNRECOGNISED, f"colour mode {image.mode}: {_words(error)}") from error
    pixels.info = {}
    return pixels


def check(data: bytes, limits: ImageLimits) -> str | None:
    """Decode once, to find out whether a later stage can. Returns a remark ("first of 50 frames") or None.

    Raises:
        ImageRefused: as ``decode``.
    """
    return examine(data, limits)[0]


def examine(data: bytes, limits: ImageLimits) -> tuple[str | None, Image.Image]:
    """What ``check`` returns, and the decoded image.

    Raises:
        ImageRefused: as ``decode``.
    """
    pixels = decode(data, limits)
    try:
        frames = getattr(_open(data, limits), "n_frames", 1)
    except Exception:  # damage behind the first frame, which is the only one we use
        return "first of several frames", pixels
    return f"first of {frames} frames" if frames > 1 else None, pixels


def upright_size(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """(width, height) that ``decode`` will give, read off the header. Raises ImageRefused as ``decode``."""
    image = _open(data, limits)
    width, height = image.size
    turned = image.format != "TIFF" and _orientation(image) in _SIDEWAYS  # Pillow turns TIFFs, and their size, itself
    return (height, width) if turned else (width, height)


def _open(data: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """Read the header and hold it against the limits; nothing is decoded yet."""
    if not data:
        raise ImageRefused(Verdict.IMAGE_EMPTY, "0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageRefused(Verdict.IMAGE_TOO_MANY_BYTES, f"{len(data)} bytes, limit {limits.max_bytes}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageRefused(Verdict.IMAGE_TOO_MANY_PIXELS, f"limit {limits.max_pixels}") from error
    except Exception as error:
        raise _not_opened(data, error) from error
    width, height = image.size
    size = f"{width} x {height} pixels"
    if width * height > limits.max_pixels:
        raise ImageRefused(Verdict.IMAGE_TOO_MANY_PIXELS, f"{size}, limit {limits.max_pixels}")
    if min(width, height) < limits.min_side:
        raise ImageRefused(Verdict.IMAGE_TOO_SMALL, f"{size}, shortest side {limits.min_side}")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageRefused(Verdict.IMAGE_EXTREME_ASPECT, f"{size}, limit {limits.max_aspect:g} : 1")
    return image


def _not_opened(data: bytes, error: Exception) -> ImageRefused:
    """A file that starts like an image but has no readable header is a damaged one."""
    if data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] in (b"WEBP", b"")):
        words = "" if isinstance(error, UnidentifiedImageError) else f": {_words(error)}"
        return ImageRefused(Verdict.IMAGE_TRUNCATED, f"header cannot be read{words}")
    return ImageRefused(Verdict.IMAGE_UNRECOGNISED, f"not one of {', '.join(FORMATS)}")


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation, 1 (upright) when there is none or the EXIF block is broken."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block is no reason to lose the image
        return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit, 32-bit and float samples to 0..255 by scaling; Pillow's own conversion clips them."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    samples = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    scaled = samples * (255.0 / 65535.0) if image.mode.startswith("I;16") else _stretch(samples, image.mode)
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _stretch(samples: NDArray[np.float32], mode: str) -> NDArray[np.float32]:
    low, high = float(samples.min()), float(samples.max())
    if low >= 0 and mode == "F" and high <= 1:
        return samples * np.float32(255.0)
    if low >= 0 and high <= 255:
        return samples
    if low >= 0 and high <= 65535:
        return samples * np.float32(255.0 / 65535.0)
    return ((samples.astype(np.float64) - low) * (255.0 / (high - low))).astype(
        np.float32
    )  # high - low may pass float32


def _on_white_rgb(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white, where Pillow would show whatever colour lies beneath."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGB", layered.size, "white")
        white.paste(layered, mask=layered.getchannel("A"))
        return white
    return image.convert("RGB")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__
