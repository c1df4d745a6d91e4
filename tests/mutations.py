"""Switch each guard off in a copy of the package and see its test fail: the table at the end of docs/reliability.md.

    python -m tests.mutations                 all of them; prints the table
    python -m tests.mutations image seal      those whose names hold one of these words

A mutation is a piece of source text and what stands there instead. `tests/security/test_mutations.py` sees that every
piece is still in its file, once, and that every test is there. Exit code 1: a guard can go and nobody notices.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEMORY = 8 << 30  # of a test process: without its guard it may read, or decode, without end
SHOWN = 110  # characters of a test's complaint


@dataclass(frozen=True, slots=True)
class Mutation:
    """A guard, the file of the package it is in, its text and what takes its place, and the test that must fail."""

    guard: str
    file: str
    old: str
    new: str
    test: str  # pytest's node id, below tests/; "-k words" may follow


def off(guard: str, file: str, condition: str, test: str) -> Mutation:
    """A guard of the form ``if CONDITION:`` that is never true."""
    return Mutation(guard, file, f"if {condition}:\n", "if False:\n", test)


IMAGES, FOLDER = "data/images.py", "data/sources/folder.py"
TAR, TABLE, HUB = "data/sources/webdataset.py", "data/sources/table.py", "data/sources/huggingface.py"
ADDRESSES, LOCATIONS = "security/test_addresses.py", "security/test_locations.py"
MODELS, ESCAPES = "security/test_models.py", "security/test_escapes.py"

MUTATIONS = (
    # images
    off("image: bytes", IMAGES, "len(data) > limits.max_bytes", "data/test_images.py::test_small_long_and_heavy"),
    off(
        "image: pixels, before one is decoded",
        IMAGES,
        "width * height > limits.max_pixels",
        "data/test_images.py::test_bombs_are_refused_without_decoding_a_pixel",
    ),
    off(
        "image: shortest side",
        IMAGES,
        "min(width, height) < limits.min_side",
        "data/test_images.py::test_small_long_and_heavy",
    ),
    off(
        "image: aspect",
        IMAGES,
        "max(width, height) > limits.max_aspect * min(width, height)",
        "data/test_images.py::test_small_long_and_heavy",
    ),
    Mutation(
        "image: no decoder of other formats",
        IMAGES,
        "Image.open(io.BytesIO(data), formats=FORMATS)",
        "Image.open(io.BytesIO(data))",
        "data/test_images.py::test_rare_formats_have_no_decoder",
    ),
    Mutation(
        "image: 16 bits are scaled",
        IMAGES,
        'if not (image.mode.startswith("I") or image.mode == "F"):',
        "if True:",
        "data/test_images.py::test_sixteen_bit_png_is_scaled_not_clipped",
    ),
    # where records say that images are
    off(
        "path: inside the image folder",
        FOLDER,
        'not path.startswith(self._root.rstrip("/") + "/")',
        f"{LOCATIONS}::test_an_ingest_of_every_way_out",
    ),
    off(
        "path: inside the prefix, on S3",
        FOLDER,
        'name.startswith("/") or ".." in name.split("/")',
        f"{LOCATIONS}::test_a_name_does_not_lead_out_of_a_prefix",
    ),
    off(
        "path: a regular file",
        FOLDER,
        "not stat.S_ISREG(status.st_mode)",
        "data/sources/test_folder.py::test_no_way_out",
    ),
    off(
        "path: size before reading",
        FOLDER,
        "size > self._max_bytes",
        "data/sources/test_folder.py::test_large_file_is_not_read",
    ),
    Mutation(
        "path: bytes read",
        FOLDER,
        "return file.read(self._max_bytes)",
        "return file.read()",
        "data/sources/test_folder.py::test_a_file_that_grows_is_read_up_to_the_limit",
    ),
    Mutation(
        "address: no URL is fetched",
        FOLDER,
        'raise ImageRefused(Verdict.IMAGE_MISSING, f"URLs are not fetched, only files in the image folder: {shown}")',
        "return __import__('urllib.request').request.urlopen(name, timeout=2).read()",
        f"{ADDRESSES}::test_no_address_of_a_record_is_asked",
    ),
    Mutation(
        "address: no client that could",
        FOLDER,
        "import stat\n",
        "import stat\nimport urllib.request\n",
        f"{ADDRESSES}::test_nothing_in_the_package_can_fetch_a_url",
    ),
    # names that a bucket, a manifest or a configuration gives to files
    off(
        "name: inside its folder",
        "data/storage.py",
        'not _writable(name) or name.startswith("/") or ".." in name.split("/")',
        f"{LOCATIONS}::test_a_key_of_a_bucket_does_not_lead_out_of_a_folder",
    ),
    Mutation(
        "name: in a manifest",
        "data/manifest.py",
        'storage.inside(entry["path"], "a manifest.json")',
        'entry["path"]',
        f"{LOCATIONS}::test_a_manifest_signs_only_files_of_its_stage",
    ),
    Mutation(
        "name: in the seal of a checkpoint",
        "training/snapshots.py",
        'storage.inside(entry["path"], COMPLETE)',
        'str(entry["path"])',
        f"{LOCATIONS}::test_a_checkpoint_is_made_of_its_own_files",
    ),
    Mutation(
        "name: of a replay source",
        "config/mixture.py",
        '        pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$",\n',
        "",
        f"{LOCATIONS}::test_the_name_of_a_replay_source_is_the_name_of_a_file",
    ),
    Mutation(
        "name: of a pocket model",
        "models/checkpoint.py",
        '(name if re.fullmatch(r"\\w+", name) else "none")',
        "name",
        f"{LOCATIONS}::test_pocket_models_are_those_that_ship",
    ),
    off(
        "name: in a saved data set",
        HUB,
        'not name or name in (".", "..") or "/" in name or "\\\\" in name or "\\0" in name',
        "data/sources/test_huggingface.py::test_folders_that_are_none",
    ),
    off(
        "location: one that can be",
        "data/storage.py",
        "not _writable(uri) or len(uri) > MAX_PATH_CHARS",
        f"{ADDRESSES}::test_locations_that_cannot_be_are_told_without_a_traceback",
    ),
    off(
        "location: of a kind that is supported",
        "data/storage.py",
        'separator and scheme != "file"',
        f"{ADDRESSES}::test_no_address_of_a_configuration_is_asked",
    ),
    Mutation(
        "location: a bucket, not a key",
        "data/storage.py",
        "if not _BUCKET.fullmatch(bucket):",
        "if False:",
        f"{ADDRESSES}::test_locations_that_cannot_be_are_told_without_a_traceback",
    ),
    # a store that lies
    off(
        "store: announced bytes",
        "data/s3.py",
        "size > max_bytes",
        f"{ADDRESSES}::test_not_more_than_the_limit_is_read_of_an_image -k huge",
    ),
    off(
        "store: bytes read",
        "data/s3.py",
        "size > self._max_bytes",
        f"{ADDRESSES}::test_not_more_than_the_limit_is_read_of_an_image -k endless",
    ),
    off(
        "store: seconds",
        "data/s3.py",
        "time.monotonic() > self._stop",
        f"{ADDRESSES}::test_a_store_that_trickles_is_given_up",
    ),
    off(
        "store: redirects that tell no region",
        "data/s3.py",
        '"x-amz-bucket-region" not in headers',
        f"{ADDRESSES}::test_images_do_not_follow_a_store_elsewhere",
    ),
    # archives and tables
    off(
        "tar: regular files only",
        TAR,
        "member.type not in _PLAIN",
        "data/sources/test_webdataset.py::test_hostile_members",
    ),
    off("tar: ratio", TAR, "self._left < 0", "data/sources/test_webdataset.py::test_compressed_shards_and_bombs"),
    off(
        "tar: length of a header",
        TAR,
        "self.type in _EXTENDED and self.size > MAX_HEADER_BYTES",
        "data/sources/test_webdataset.py::test_a_header_that_is_long_is_not_held",
    ),
    Mutation(
        "tar: kinds that are counted",
        "data/sources/pair.py",
        'name = what if what in ignored or len(ignored) < MAX_IGNORED_NAMES else "other"',
        "name = what",
        "data/sources/test_webdataset.py::test_the_names_that_are_counted_stay_few",
    ),
    off(
        "table: no pickled objects",
        TABLE,
        "name in serialized",
        "data/sources/test_huggingface.py::test_a_column_of_pickles_is_refused",
    ),
    Mutation(
        "table: offsets inside the buffers",
        HUB,
        "batch.validate(full=True)",
        "pass",
        "data/sources/test_huggingface.py::test_offsets_that_lead_out_of_the_file",
    ),
    # models and engines
    off(
        "model: no code of its own",
        "models/checkpoint.py",
        "(file := _own_code(folder)) is not None",
        f"{MODELS}::test_code_of_its_own",
    ),
    Mutation(
        "model: nor in a part of it",
        "models/checkpoint.py",
        'return "auto_map" in tree or any(map(_names_code, tree.values()))',
        'return "auto_map" in tree',
        f"{MODELS}::test_code_of_its_own",
    ),
    off(
        "model: no pickled weights",
        "models/checkpoint.py",
        'not any(folder.glob("*.safetensors"))',
        f"{MODELS}::test_pickled_weights",
    ),
    off(
        "adapter: no pickled weights",
        "models/adapter.py",
        "not (folder / WEIGHTS).is_file()",
        f"{MODELS}::test_pickled_weights_of_an_adapter",
    ),
    Mutation(
        "engine: guarded settings",
        "synthesis/engine_arguments.py",
        "settings.extra | GUARDED",
        "settings.extra",
        "synthesis/test_engine_arguments.py::test_guards_hold_and_everything_else_is_passed_on",
    ),
    off(
        "engine: they cannot be set",
        "synthesis/engine_arguments.py",
        "taken",
        "synthesis/test_engine_arguments.py::test_code_network_and_what_ray_must_know_cannot_be_set",
    ),
    Mutation(
        "engine: no code by name",
        "synthesis/engine_arguments.py",
        "for place in _code(settings.extra):",
        "for place in ():",
        "synthesis/test_engine_arguments.py::test_nothing_imports_what_a_configuration_names",
    ),
    off(
        "engine: an answer per request",
        "synthesis/requests.py",
        "completion.id in found",
        "synthesis/test_requests.py::test_missing_doubled_and_foreign_rows_are_named",
    ),
    # configuration
    Mutation(
        "configuration: unknown keys",
        "config/fields.py",
        'extra="forbid"',
        'extra="ignore"',
        "test_config.py::test_unknown_key_names_the_nearest",
    ),
    Mutation(
        "configuration: numbers that are none",
        "config/fields.py",
        "Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]",
        "Weight = Annotated[float, Field(ge=0)]",
        "test_config.py::test_wrong_types_and_values",
    ),
    off(
        "configuration: size of the file",
        "config/run.py",
        "file.stat().st_size > MAX_CONFIG_BYTES",
        "test_config.py::test_unreadable_files",
    ),
    off(
        "configuration: no aliases",
        "config/text.py",
        "self.check_event(yaml.AliasEvent)",
        "test_config.py::test_aliases_are_refused",
    ),
    Mutation(
        "configuration: no keys in URLs",
        "config/text.py",
        "elif isinstance(tree, str) and _USER_INFO.search(tree):",
        "elif False:",
        "test_config.py::test_secrets_in_paths_are_refused_and_not_repeated",
    ),
    # rows and their accounts
    off(
        "rows: in = kept + rejected + failed",
        "data/run.py",
        "sum(outcomes.values()) != rows_in",
        "data/test_run.py::test_row_identity_is_enforced",
    ),
    off(
        "rows: of one configuration",
        "data/run.py",
        "differing",
        "data/test_run.py::test_another_fingerprint_is_refused_and_the_keys_are_named",
    ),
    off(
        "rows: a damaged file is not read past",
        "data/run.py",
        "sizes.get(name) != size",
        "data/test_run.py::test_a_damaged_part_is_named_and_not_read_past",
    ),
    Mutation(
        "rows: a half-done rename",
        "data/run.py",
        "self._heal_ledger()\n            return",
        "return",
        "data/test_run.py::test_half_done_rename_is_healed",
    ),
    Mutation(
        "rows: one driver per folder",
        "data/locks.py",
        "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "data/test_run.py::test_second_driver_is_refused_and_the_first_is_named",
    ),
    Mutation(
        "rows: one that kills its replica",
        "synthesis/poison.py",
        "self._died(row, last)",
        "pass",
        "synthesis/test_poison.py::test_what_was_taken_back_was_in_no_death",
    ),
    Mutation(
        "checkpoint: every byte",
        "training/snapshots.py",
        'if digests[entry["path"]] != entry["sha256"]:',
        "if False:",
        "training/test_snapshots.py::test_any_flipped_byte_is_found",
    ),
    # what people and clusters read
    Mutation(
        "text: one line, no control characters",
        "errors.py",
        'c if c.isprintable() else c.encode("unicode_escape").decode()',
        "c",
        f"{ESCAPES}::test_what_a_failed_ingest_says",
    ),
    Mutation(
        "text: names of a source",
        "data/sources/places.py",
        'raise SourceError(f"cannot read {foreign(where)}: {foreign(error)}")',
        'raise SourceError(f"cannot read {where}: {error}")',
        f"{ESCAPES}::test_what_is_said_of_a_source_that_cannot_be_read",
    ),
    Mutation(
        "report: escaped",
        "report/build.py",
        "autoescape=True",
        "autoescape=False",
        f"{ESCAPES}::test_templates_escape_everything",
    ),
    Mutation(
        "cluster: a token",
        "submission/security.py",
        'if (cluster.get("authOptions") or {}).get("mode") != "token":',
        "if False:",
        "submission/test_security.py::test_a_broken_cluster",
    ),
    off(
        "cluster: images by digest",
        "submission/security.py",
        'not _DIGEST.fullmatch(str(container.get("image")))',
        "submission/test_security.py::test_a_broken_cluster",
    ),
    off(
        "cluster: no keys in manifests",
        "submission/security.py",
        "_SECRET_VALUE.search(text)",
        "submission/test_security.py::test_other_broken_objects",
    ),
)


@contextmanager
def copied() -> Iterator[Path]:
    """Package and tests in a folder of their own; the pocket models' weights are not copied but pointed at."""
    with tempfile.TemporaryDirectory(prefix="mutations") as name:
        folder = Path(name)
        ignored = shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(ROOT / "adamllm_ray", folder / "adamllm_ray", ignore=ignored)
        (folder / "adamllm_ray" / "pocket" / "weights").symlink_to(ROOT / "adamllm_ray" / "pocket" / "weights")
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        for also in ("cluster", "jobs"):
            (folder / also).symlink_to(ROOT / also)
        yield folder


def complaint(folder: Path, test: str) -> str:
    """What a test says when it fails, its first line; empty when it passes."""
    node, *words = test.split(" ")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout=100",
        f"tests/{node}",
        *words,
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"the process dies of {signal.Signals(-done.returncode).name}"
    lines = [line[1:].strip() for line in done.stdout.splitlines() if line.startswith("E  ")]
    lines = [line for line in lines if not line.endswith("Regex pattern did not match.")]  # what it was says more
    lines = [line for line in lines if not line.startswith("Expected regex:")]
    return (lines or [f"exit code {done.returncode}: {(done.stdout + done.stderr).strip()[-SHOWN:]}"])[0]


def without(folder: Path, mutation: Mutation) -> str:
    """The test's complaint about the package without one guard."""
    file = folder / "adamllm_ray" / mutation.file
    whole = file.read_text("utf-8")
    if whole.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.guard}: its text is {whole.count(mutation.old)} times in {mutation.file}")
    file.write_text(whole.replace(mutation.old, mutation.new), "utf-8")
    try:
        return complaint(folder, mutation.test)
    finally:
        file.write_text(whole, "utf-8")


def main(words: list[str]) -> int:
    """Print the table of the chosen guards. Returns how many nobody would miss."""
    chosen = [each for each in MUTATIONS if not words or any(word in each.guard for word in words)]
    missed = 0
    print("| guard | test | without it |\n| --- | --- | --- |")
    with copied() as folder:
        for mutation in chosen:
            said = without(folder, mutation)
            missed += not said
            shown = re.sub(r"/tmp/\S*/", "", said)[:SHOWN].replace("|", "\\|") or "**passes: nobody would notice**"
            print(f"| {mutation.guard} | `{mutation.test}` | `{shown}` |", flush=True)
    print(
        f"\n{len(chosen) - missed} of {len(chosen)} guards are missed by their tests when they are off", file=sys.stderr
    )
    return missed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
