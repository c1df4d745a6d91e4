"""Small files in the exact layout of the released benchmark sets, with a malformed row in each.

``write_all(folder)`` makes all twelve, some as Parquet, some as ``datasets``' save_to_disk writes them, with the tables
of names that the release keeps beside the rows. Contents are invented.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Rows = list[dict[str, Any]]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
GOOD = 3  # sound rows per benchmark; the fourth is malformed

DISHES = ["apple_pie", "baby_back_ribs", "baklava"]
FOODS = ["background", "candy", "egg tart", "rice", "other ingredients"]
INGREDIENTS = ["brown rice", "rice", "olive oil", "salt, iodized"]


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def row(seed: int, asked: str, label: Any, **more: Any) -> dict[str, Any]:
    return {"image": {"bytes": picture(seed), "path": None}, "input": asked, "label": label, **more}


def medical(seed: int) -> Rows:
    found = [("Is it normal?", "No", "CLOSED"), ("Which organ?", "the left lung", "OPEN"), ("Side?", "left", "OPEN")]
    return [
        *(row(seed + i, asked, label, answer_type=kind) for i, (asked, label, kind) in enumerate(found)),
        row(seed + 3, "Which plane?", "axial", answer_type="MAYBE"),
    ]


def lettered(seed: int) -> Rows:
    texts = {"A": "A: a circle", "B": "B: two circles", "C": "C: a square", "D": "D: nothing"}
    asked = "Question: What is shown? The choices are: A: a circle B: two circles C: a square D: nothing"
    return [
        *(row(seed + i, asked, label, **texts) for i, label in enumerate(("A", "C", "two circles"))),
        row(seed + 3, asked, "E", **texts),
    ]


def plain(seed: int, labels: list[Any], broken: Any = "") -> Rows:
    return [row(seed + i, f"What is it? {i}", label) for i, label in enumerate([*labels, broken])]


def all_rows() -> dict[str, Rows]:
    """Rows of every benchmark by its name in the configuration; the last one of each is malformed."""
    return {
        "slake": medical(0),
        "pathvqa": medical(10),
        "vqa_rad": medical(20),
        "pmc_vqa": lettered(30),
        "recipe1m": plain(40, ["Rice. Cook the rice.", "Egg tart. Bake it.", "Pie. Bake the pie."]),
        "nutrition5k": plain(50, [["rice", "olive oil"], ["brown rice"], ["salt, iodized"]], broken=None),
        "food101": plain(60, ["0", "2", "1"], broken="101"),
        "foodseg103": plain(70, [[0, 1, 3], [2], [0, 4]], broken=[77]),
        "clrs": plain(80, ["airport", "bare-land", "beach"]),
        "uc_merced": plain(90, ["agricultural", "airplane", "baseball diamond"]),
        "floodnet": plain(100, ["yes", "4", "non flooded"]),
        "nwpu_captions": plain(110, ["Two planes on a runway.", "A lake.", "A river in a forest."]),
    }


def write_parquet(folder: Path, rows: Rows, name: str = "test-00000-of-00001.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows), folder / name)
    return folder


def write_saved(folder: Path, rows: Rows) -> Path:
    """As ``Dataset.save_to_disk``: Arrow streams, state.json, dataset_info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    made = table(rows)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", made.schema) as sink:
        sink.write_table(made, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def table(rows: Rows) -> pa.Table:
    columns = {name: [one[name] for one in rows] for name in rows[0]}
    arrays = {name: pa.array(values, IMAGE if name == "image" else None) for name, values in columns.items()}
    return pa.table(arrays)


def write_all(folder: Path) -> dict[str, str]:
    """Every benchmark where its release has it below three folders. Returns the path to configure for each."""
    rows = all_rows()
    medical_set, food, remote = (folder / f"{name}-VQA-benchmark" for name in ("biomed", "food", "remote-sensing"))
    saved = {"slake": "SLAKE", "pathvqa": "pathvqa", "vqa_rad": "vqa_rad", "pmc_vqa": "pmc_vqa"}
    for name, below in saved.items():
        write_saved(medical_set / below, rows[name])
    (medical_set / "dataset_dict.json").write_text(json.dumps({"splits": ["vqa_rad"]}))  # as released: not all of them
    for name, below in {
        "recipe1m": "food_eval_multitask_v2",
        "nutrition5k": "nutrition50k",
        "food101": "food101",
        "foodseg103": "foodseg103",
    }.items():
        write_saved(food / below, rows[name])
    (food / "food101_name_to_label_map.json").write_text(json.dumps({name: i for i, name in enumerate(DISHES)}))
    (food / "foodSeg103_id2label.json").write_text(json.dumps({str(i): name for i, name in enumerate(FOODS)}))
    (food / "nutrition5k_ingredients.py").write_text(f"# names\ningredients = {INGREDIENTS!r}\n")
    for name in ("clrs", "uc_merced", "floodnet", "nwpu_captions"):
        write_parquet(remote / name, rows[name])
    medical_names = dict.fromkeys(saved, str(medical_set))
    foods = dict.fromkeys(("recipe1m", "nutrition5k", "food101", "foodseg103"), str(food))
    return (
        medical_names
        | foods
        | {name: str(remote / name) for name in ("clrs", "uc_merced", "floodnet", "nwpu_captions")}
    )
