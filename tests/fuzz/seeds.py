"""The inputs that fuzzing starts from: small, valid, one of each kind. Written once into corpora/ by

    python -m tests.fuzz.seeds

What fuzzing found later stands beside them under other names, so this is run again only for a new seed.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests import hostile
from tests.fuzz.targets import OVERRIDES

CORPORA = Path(__file__).parent / "corpora"
Seeds = dict[str, bytes]


def main() -> None:
    """Write all seeds."""
    for name, made in {
        "image": images(),
        "triplet": responses(),
        "records": records(),
        "config": configurations(),
        "webdataset": shards(),
    }.items():
        folder = CORPORA / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed, data in made.items():
            (folder / f"seed-{seed}").write_bytes(data)


def images() -> Seeds:
    """Every allowed format and the modes that the decoder treats apart."""
    small = hostile.picture(20, 16)
    plain = {kind.lower(): hostile.encode(small, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")}
    modes = {f"png-{mode}": hostile.encode(small.convert(mode)) for mode in ("L", "LA", "RGBA", "P", "1")}
    ramp = np.linspace(0, 65535, 320).reshape(16, 20)
    turned = Image.Exif()
    turned[0x0112] = 6
    odd = {
        "png-16": hostile.encode(Image.fromarray(ramp.astype(np.uint16))),
        "tiff-float": hostile.encode(Image.fromarray(ramp.astype(np.float32)), "TIFF"),
        "tiff-lzw": hostile.encode(small, "TIFF", compression="tiff_lzw"),
        "tiff-turned": hostile.encode(small, "TIFF", exif=turned),
        "jpeg-turned": hostile.encode(small, "JPEG", exif=turned),
        "jpeg-cmyk": hostile.encode(small.convert("CMYK"), "JPEG"),
        "png-frames": hostile.animation("PNG", 2),
        "gif-frames": hostile.encode(small, "GIF", save_all=True, append_images=[hostile.picture(20, 16, 1)]),
        "webp-lossless": hostile.encode(small.convert("RGBA"), "WEBP", lossless=True),
    }
    return plain | modes | odd


def responses() -> Seeds:
    """By the pieces of targets.py: 0 user, 1 assistant, 2 end of turn, 3 end, 6 and 7 precise, 8 and 9 informative."""
    task = [6, 1, 7, 0, 8, 1, 9, 2]
    return {
        "task": bytes([0, *task, 3]),
        "turned": bytes([1, 8, 1, 9, 0, 6, 1, 7, 2]),
        "cut": bytes([6, *task, 0, 6, 1]),
        "normalised": bytes([2, 6, 10, 1, 7, 0, 8, 10, 10, 1, 9, 2, 3]),
        "repeats": bytes([4, *[7] * 30]),
        "urls": bytes([0, 6, 1, 7, 12, 13, 0, 8, 1, 9, 12, 2, 3]),
        "raw": bytes([0, *range(200, 256)]),
    }


def records() -> Seeds:
    """Both layouts, both ways to say things, and what is damaged."""
    pair = hostile.share_gpt("a.png", "A pond.", score=0.5)
    spoken = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A hill."}],
    }
    parts = [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "A lake."}]}]
    odd = [{"images": [{"path": "../a.png"}], "messages": parts}, {"image": "a.png", "caption": "\ud800"}, 7, None]
    lines = "\n".join(map(json.dumps, [pair, spoken, *odd]))
    return {
        "list": json.dumps([pair, spoken]).encode(),
        "list-odd": json.dumps([*odd, pair], indent=1).encode(),
        "list-numbers": b'\xef\xbb\xbf [1, -2.5e10, 12345678901234567890, true, "x\\u00e9" , {} ,[]]\n',
        "lines": lines.encode(),
        "lines-damaged": lines.replace("}\n", "\n", 1).encode() + b'\n\n\xff\n{"image": NaN}\r\n',
        "empty": b"[]",
    }


def configurations() -> Seeds:
    """The least that is accepted, one with most sections, and options."""
    least = "run: {output: runs/x}\n"
    more = (
        "run:\n  name: a\n  output: s3://bucket/x\n  seed: 3\n"
        "data:\n  format: parquet\n  path: /d\n  columns: {key: id}\n"
        "  images: {max_pixels: 1000, max_aspect: 2.5}\nmodels: {base: /m, synthesizer: tuned}\n"
        "seed: {captions: a, precise: b, informative: c}\n"
        "synthesis:\n  candidates: 2\n  temperature: 7e-1\n  engine: {replicas: 1}\n"
        "judge: {threshold: 1e-1}\nmixture:\n  both: 1\n  replay: [{name: a, path: b, weight: 1}]\ntraining:\n"
        "  epochs: 2\n  lora: {rank: 4}\n  betas: [0.9, 0.95]\nevaluation: {}\ntuning: {trials: 2}\n"
    )
    set_options = f"{least}{OVERRIDES}training.learning_rate=1e-5\ndata.path=/x\nrun.seed=[1]"
    return {
        "least": least.encode(),
        "more": more.encode(),
        "set": set_options.encode(),
        "unknown": b"run: {output: x}\ntrainig: {epochs: .nan}\n? [1]\n: 2\n",
        "tags": b"run: !!python/name:os.system\nb: &x [*x]\nd: 2001-99-01\ne: !!binary aGk=\n",
    }


def shards() -> Seeds:
    """Text and JSON captions, long names, links, what is not asked for; packed too."""
    about = json.dumps({"caption": "A hill.", "score": 1}).encode()
    png = hostile.encode(hostile.picture(20, 16).convert("L"))
    pair = shard([("d/1.png", png), ("d/1.txt", b"A pond.")])
    link = tarfile.TarInfo("l.png")
    link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
    return {
        "pair": pair,
        "json": shard([("1.json", about), ("1.jpg", b"no image")]),
        "names": shard([(f"{'n' * 110}.txt", b"x"), ("\xe9\u4e2d.txt", b"y")], tarfile.GNU_FORMAT),
        "pax": shard([(f"{'n' * 110}.txt", b"x"), ("\xe9\u4e2d.txt", b"y")], tarfile.PAX_FORMAT),
        "others": shard([(link, b""), ("../x.pkl", b"cos\n"), ("/abs.cls", b"1"), ("noname", b"2")]),
        "packed": gzip.compress(pair, mtime=0),
    }


def shard(members: list[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar file, without the padding that it usually has at its end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset + 2 * tarfile.BLOCKSIZE
    return buffer.getvalue()[:end]


if __name__ == "__main__":
    main()
