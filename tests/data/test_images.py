"""Images: every hostile input becomes pixels or one of our verdicts, and what Pillow gets wrong is right."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from adamllm_ray.config import ImageLimits
from adamllm_ray.data import images
from adamllm_ray.data.verdicts import Verdict
from adamllm_ray.errors import ImageRefused
from tests import hostile

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.guards,
    pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"),
]
LIMITS = ImageLimits()


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        images.check(data, limits)
    return caught.value


def verdict(data: bytes, limits: ImageLimits = LIMITS) -> Verdict:
    return refusal(data, limits).verdict


def outcome(data: bytes) -> tuple[str, str]:
    """("ok", remark) or (verdict, detail)."""
    try:
        return "ok", images.check(data, LIMITS) or ""
    except ImageRefused as refused:
        return refused.verdict.value, refused.detail


def test_good_images_come_through_in_every_format() -> None:
    reference = np.asarray(hostile.picture())
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(np.asarray(images.decode(hostile.encode(hostile.picture(), kind), LIMITS)), reference)
    for kind in ("JPEG", "WEBP"):
        decoded = images.decode(hostile.encode(hostile.picture(), kind, quality=95), LIMITS)
        assert decoded.mode == "RGB"
        assert decoded.size == (64, 48)


def test_empty_random_and_foreign_bytes() -> None:
    assert verdict(b"") is Verdict.IMAGE_EMPTY
    assert verdict(np.random.default_rng(0).bytes(5000)) is Verdict.IMAGE_UNRECOGNISED


@pytest.mark.parametrize("name", sorted(hostile.RARE))
def test_rare_formats_have_no_decoder(name: str) -> None:
    assert verdict(hostile.RARE[name]) is Verdict.IMAGE_UNRECOGNISED


def test_decoders_of_other_formats_are_not_even_imported() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); import hostile\n"
        "from adamllm_ray.config import ImageLimits; from adamllm_ray.data import images\n"
        "images.check(hostile.good_png(), ImageLimits())\n"
        "for data in hostile.RARE.values():\n"
        "    try: images.check(data, ImageLimits())\n"
        "    except images.ImageRefused: pass\n"
        "print([m for m in ('Fits', 'Psd', 'Eps', 'Pdf', 'Gd') if f'PIL.{m}ImagePlugin' in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_truncated_at_every_twentieth(kind: str) -> None:
    cut = hostile.truncations(hostile.encode(hostile.picture(256, 200), kind))
    found = [outcome(data)[0] for data in cut]
    assert set(found) <= {"image_truncated", "ok"}
    assert found.count("image_truncated") >= 15, found


def test_only_our_error_escapes_ten_thousand_mutations() -> None:
    originals = [hostile.encode(hostile.picture(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]
    originals += [hostile.exif_jpeg(6), hostile.ramp_tiff(np.float32, 1.0)[:4000], hostile.animation("GIF", 3)]
    outcomes = [outcome(data) for data in hostile.mutations(originals, 10_000)]
    assert len(outcomes) == 10_000
    assert 2500 < sum(name != "ok" for name, _ in outcomes) < 10_000
    assert not any(" at 0x" in detail for _, detail in outcomes), "a detail must be the same in every run"


def test_bombs_are_refused_without_decoding_a_pixel() -> None:
    code = (
        "import sys, json, resource; sys.path.insert(0, 'tests'); import hostile\n"
        "from adamllm_ray.config import ImageLimits; from adamllm_ray.data import images\n"
        "images.check(hostile.good_png(), ImageLimits())\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "bombs = [hostile.bomb_png(n, n) for n in (9_400, 13_000, 20_000)] + [hostile.frame_bomb_gif()]\n"
        "before, found = peak(), []\n"
        "for data in bombs:\n"
        "    try: images.check(data, ImageLimits()); found.append('decoded')\n"
        "    except images.ImageRefused as refused: found.append(str(refused.verdict))\n"
        "print(json.dumps([found, peak() - before, [len(data) for data in bombs]]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, grown_mb, sizes = json.loads(result.stdout)
    assert found == ["image_too_many_pixels"] * 4
    assert grown_mb <= 20, f"decoding grew the process by {grown_mb} MB"
    assert max(sizes) < 60_000


def test_sixteen_processes_refuse_the_same_bomb_at_once() -> None:
    code = (
        "import sys, resource; sys.path.insert(0, 'tests'); import hostile\n"
        "from adamllm_ray.config import ImageLimits; from adamllm_ray.data import images\n"
        "data, peak = hostile.bomb_png(13_000, 13_000), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "images.check(hostile.good_png(), ImageLimits()); print('ready', flush=True); input(); before = peak()\n"
        "try: images.check(data, ImageLimits())\n"
        "except images.ImageRefused as refused: print(refused.verdict, peak() - before)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    crowd = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(16)]  # type: ignore[call-overload]
    for process in crowd:
        assert process.stdout.readline() == "ready\n"
    for process in crowd:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].split() for process in crowd]
    assert [verdict for verdict, _ in answers] == ["image_too_many_pixels"] * 16
    assert sum(int(grown) for _, grown in answers) <= 500 * 1024, "KiB over all sixteen"


def test_twenty_thousand_square_png_is_named_with_its_size() -> None:
    refused = refusal(hostile.bomb_png(20_000, 20_000))
    assert refused.verdict is Verdict.IMAGE_TOO_MANY_PIXELS
    assert "40000000" in refused.detail


def test_text_chunk_bomb_is_refused_or_ignored() -> None:
    assert outcome(hostile.text_bomb_png())[0] in ("ok", "image_truncated")


def test_a_text_chunk_is_not_unpacked() -> None:
    """As for the other bombs: 200 MB of text in 200 KB."""
    code = (
        "import sys, resource; sys.path.insert(0, 'tests'); import hostile\n"
        "from adamllm_ray.config import ImageLimits; from adamllm_ray.data import images\n"
        "data = hostile.text_bomb_png(); images.check(hostile.good_png(), ImageLimits())\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "try: images.check(data, ImageLimits())\n"
        "except images.ImageRefused: pass\n"
        "print(peak() - before)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) <= 20, "MB"


def test_small_long_and_heavy() -> None:
    assert verdict(hostile.encode(Image.new("RGB", (1, 1)))) is Verdict.IMAGE_TOO_SMALL
    assert verdict(hostile.encode(Image.new("L", (60_000, 1)))) is Verdict.IMAGE_TOO_SMALL
    assert verdict(hostile.encode(Image.new("L", (30_000, 20)))) is Verdict.IMAGE_EXTREME_ASPECT
    heavy = hostile.good_png() + b"\0" * 5000
    assert verdict(heavy, ImageLimits(max_bytes=5000)) is Verdict.IMAGE_TOO_MANY_BYTES
    assert images.decode(heavy, LIMITS).size == (64, 48)


def test_sixteen_bit_png_is_scaled_not_clipped() -> None:
    pixels = np.asarray(images.decode(hostile.ramp_png_16(), LIMITS))
    assert pixels.shape == (256, 256, 3)
    assert abs(pixels.mean() - 127.5) < 0.5
    assert len(np.unique(pixels)) == 256


@pytest.mark.parametrize(
    ("dtype", "high"),
    [
        (np.float32, 1.0),
        (np.float32, 255.0),
        (np.float32, 1e6),
        (np.int32, 65535),
        (np.int32, 2**31 - 1),
        (np.uint16, 65535),
    ],
)
def test_tiff_of_any_depth_is_scaled(dtype: type, high: float) -> None:
    pixels = np.asarray(images.decode(hostile.ramp_tiff(dtype, high), LIMITS)).astype(float)
    faithful = np.linspace(0, 255, 65536).reshape(256, 256)
    assert np.abs(pixels[..., 0] - faithful).max() <= 1.5
    assert abs(pixels.mean() - 127.5) <= 1


def test_float_tiff_with_nan_and_infinity() -> None:
    values = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    values[0, :3] = [np.nan, np.inf, -np.inf]
    pixels = images.decode(hostile.encode(Image.fromarray(values), "TIFF"), LIMITS)
    assert np.asarray(pixels)[-1, -1, 0] == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    pixels = np.asarray(images.decode(hostile.exif_jpeg(orientation), LIMITS)).astype(int)
    assert pixels.shape == (48, 64, 3)
    corners = pixels[[2, 2, -3, -3], [2, -3, 2, -3], :2]
    expected = np.asarray(hostile.picture()).astype(int)[[2, 2, -3, -3], [2, -3, 2, -3], :2]
    assert np.abs(corners - expected).max() < 25


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 say nothing
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_header_tells_the_size_that_decoding_gives(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = hostile.encode(hostile.picture(64, 48), kind, exif=exif)
    expected = (48, 64) if orientation in (5, 6, 7, 8) else (64, 48)
    assert images.upright_size(data, LIMITS) == images.decode(data, LIMITS).size == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_pixel_is_upright(orientation: int) -> None:
    """Without the losses of JPEG: all eight equal the reference."""
    pixels = np.asarray(images.decode(hostile.exif(orientation, "PNG"), LIMITS))
    assert np.array_equal(pixels, np.asarray(hostile.picture()))


def test_a_broken_exif_block_does_not_cost_the_image() -> None:
    data = hostile.encode(hostile.picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert images.decode(data, LIMITS).size == (64, 48)


def test_transparency_is_white() -> None:
    clear_red = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    half_black = Image.new("LA", (32, 32), (0, 128))
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    for kind in ("PNG", "WEBP"):
        pixels = np.asarray(images.decode(hostile.encode(clear_red, kind), LIMITS))
        assert (pixels == 255).all()
    assert np.abs(np.asarray(images.decode(hostile.encode(half_black), LIMITS)).astype(int) - 127).max() <= 2
    for kind in ("GIF", "PNG"):
        assert (np.asarray(images.decode(hostile.encode(palette, kind, transparency=1), LIMITS)) == 255).all()


def test_grey_palette_and_cmyk() -> None:
    grey = np.asarray(images.decode(hostile.encode(Image.new("L", (32, 32), 77)), LIMITS))
    assert (grey == 77).all()
    bits = np.asarray(images.decode(hostile.encode(Image.new("1", (32, 32), 1)), LIMITS))
    assert (bits == 255).all()
    cmyk = hostile.encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(np.asarray(images.decode(cmyk, LIMITS)).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind: str) -> None:
    data = hostile.animation(kind, 50)
    assert images.check(data, LIMITS) == "first of 50 frames"
    single = images.decode(
        hostile.encode(hostile.picture(seed=0), kind, **({"lossless": True} if kind == "WEBP" else {})), LIMITS
    )
    difference = np.abs(np.asarray(images.decode(data, LIMITS)).astype(int) - np.asarray(single).astype(int))
    assert difference.mean() < (8 if kind == "GIF" else 0.01)  # GIF animations choose another palette


def test_metadata_is_stripped() -> None:
    data = hostile.encode(hostile.picture(), "PNG", icc_profile=b"\0" * 100_000, dpi=(300, 300))
    assert images.decode(data, LIMITS).info == {}
