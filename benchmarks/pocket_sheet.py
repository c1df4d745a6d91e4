"""A contact sheet of the satellite domain: two test chips for every answer of every open question, to check by eye.

    python -m benchmarks.pocket_sheet [docs/images/chips.png]

The chips are the first two that the benchmark asks about; the answers are computed from the masks (pocket/chips.py).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from adamllm_ray.pocket.domain import DomainQuestion, benchmark_questions
from benchmarks.measure import ROOT

SCALE, ACROSS, EACH = 2, 8, 2
SIDE, LINE = 60 * SCALE, 12  # pixels


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "chips.png"
    shown = chosen()
    rows = -(-len(shown) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * (SIDE + 8), rows * (SIDE + 2 * LINE + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, question in enumerate(shown):
        x, y = number % ACROSS * (SIDE + 8) + 4, number // ACROSS * (SIDE + 2 * LINE + 8) + 4
        chip = Image.open(io.BytesIO(question.image_bytes))
        sheet.paste(chip.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
        draw.text((x, y + SIDE), f"{question.type}: {question.answer}", fill="black")
        draw.text((x, y + SIDE + LINE), question.id[:10], fill="gray")
    sheet.quantize(128).save(target, optimize=True)
    print(f"{len(shown)} chips, {target.name}")


def chosen() -> list[DomainQuestion]:
    """The first chips of each (type, answer), no chip twice for the same type."""
    found: dict[tuple[str, str], list[DomainQuestion]] = {}
    for question in benchmark_questions():
        if question.kind == "open" or question.type == "island":
            found.setdefault((question.type, question.answer), []).append(question)
    return [question for key in sorted(found) for question in found[key][:EACH]]


if __name__ == "__main__":
    main()
