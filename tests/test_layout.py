"""The rules that keep the code navigable, checked on the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "adamllm_ray"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))
VERBS = "ablate compare config evaluate ingest plan pocket publish push quality redrive report run seed size".split()  # noqa: SIM905
VERBS += "status submit synthesize train tune verify".split()  # noqa: SIM905


def imports(path: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


THIRD_PARTY = "pydantic, typer, yaml, rich.console, rich.table"  # what any such command line costs
HEAVY = ("ray", "torch", "vllm", "transformers", "deepspeed", "matplotlib")


@pytest.mark.parametrize("module", ["adamllm_ray", "adamllm_ray.cli"])
def test_importing_is_quick_and_light(module):
    """None of the heavy packages, and at most twice as much work again as the libraries that it stands on."""
    ours, theirs = [], []
    for _ in range(4):  # side by side; the least of each, as the machine may be busy with other things
        ours.append(_import(module))
        theirs.append(_import(THIRD_PARTY))
    assert ours[0][1] == "[]"
    assert min(ours)[0] < 3 * min(theirs)[0]


def _import(modules):
    """Seconds of processor time, and which heavy packages it took in."""
    code = (
        f"import time, sys; t = time.process_time(); import {modules}; s = time.process_time() - t;"
        f"print(s, [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.strip().split(" ", 1)
    return float(seconds), heavy


def test_only_the_engine_imports_vllm():
    assert [p.relative_to(PACKAGE).as_posix() for p in SOURCES if "vllm" in imports(p)] == ["synthesis/engine.py"]


def test_the_step_loop_and_all_it_imports_from_training_are_free_of_ray():
    names = ("loop", "engines", "batches", "collate", "conversations", "parts", "checkpoints", "export", "snapshots")
    for name in (*names, "flops"):
        assert "ray" not in imports(PACKAGE / "training" / f"{name}.py"), name


def test_the_configuration_is_free_of_heavy_imports():
    for path in (*PACKAGE.glob("config/*.py"), PACKAGE / "errors.py"):
        assert not imports(path) & {"ray", "torch", "vllm", "transformers", "pyarrow"}


def test_ray_is_imported_where_work_is_distributed_and_nowhere_else():
    rooms = {p.relative_to(PACKAGE).parts[0] for p in SOURCES if "ray" in imports(p)}
    assert rooms <= {"ray_runtime.py", "gauges.py", "synthesis", "training", "evaluation", "submission", "tuning"}


def test_verbs_of_the_command_line():
    from typer.main import get_command

    from adamllm_ray.cli import app

    command = get_command(app)
    assert sorted(command.commands) == VERBS
    assert sorted(command.commands["pocket"].commands) == ["build", "seed"]


TESTED_WITH_A_NEIGHBOUR = {
    "ablation/arms.py": "ablation/test_driver.py",
    "ablation/command.py": "test_cli.py",
    "arguments.py": "test_cli.py",
    "config/ablation.py": "ablation/test_driver.py",
    "config/conversations.py": "training/test_wording.py",
    "config/data.py": "test_config.py",
    "config/engine.py": "synthesis/test_placement.py",
    "config/fields.py": "test_config.py",
    "config/mixture.py": "test_config.py",
    "config/quality.py": "test_config.py",
    "config/run.py": "test_config.py",
    "config/seed.py": "training/seed/test_records.py",
    "config/synthesis.py": "test_config.py",
    "config/text.py": "test_config.py",
    "config/training.py": "test_config.py",
    "config/tuning.py": "tuning/test_checks.py",
    "data/draws.py": "synthesis/test_attempts.py",
    "data/jsonfile.py": "data/sources/test_sharegpt.py",
    "data/record.py": "data/test_ingest.py",
    "data/sources/pair.py": "data/sources/test_parquet.py",
    "data/sources/places.py": "data/sources/test_pocket.py",
    "data/sources/table.py": "data/sources/test_parquet.py",
    "data/verdicts.py": "data/test_run.py",
    "evaluation/answers.py": "evaluation/test_runner.py",
    "evaluation/command.py": "evaluation/test_compare.py",
    **{
        f"evaluation/metrics/{name}.py": "evaluation/test_metrics.py"
        for name in ("contract", "free", "labels", "names", "options", "rouge", "text")
    },
    "evaluation/tasks/clrs.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/floodnet.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/food101.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/foodseg103.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/nutrition5k.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/nwpu_captions.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/pathvqa.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/pmc_vqa.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/pocket.py": "pocket/test_domain.py",
    "evaluation/tasks/recipe1m.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/rows.py": "evaluation/tasks/test_table.py",
    "evaluation/tasks/slake.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/uc_merced.py": "evaluation/tasks/test_layout.py",
    "evaluation/tasks/vqa_rad.py": "evaluation/tasks/test_layout.py",
    "models/families.py": "training/test_parts.py",
    "pocket/command.py": "test_cli.py",
    "pocket/standins.py": "pocket/test_rehearsal.py",
    "publish/card.py": "publish/test_dataset.py",
    "pocket/chips.py": "pocket/test_domain.py",
    "products.py": "test_cli.py",
    "report/collect.py": "report/test_build.py",
    "report/gallery.py": "report/test_build.py",
    "report/plots.py": "report/test_build.py",
    "report/scoring.py": "report/test_build.py",
    "report/thumbnails.py": "report/test_browser.py",
    "synthesis/backpressure.py": "synthesis/test_faults.py",
    "synthesis/release.py": "synthesis/test_graph.py",
    "training/board.py": "training/test_trainer.py",
    "training/books.py": "training/test_stream.py",
    "training/replay.py": "training/test_stream.py",
    "tuning/command.py": "tuning/test_kill.py",
    "tuning/runner.py": "tuning/test_kill.py",
    "tuning/schedule.py": "tuning/test_trial.py",
    "tuning/settings.py": "tuning/test_checks.py",
    "training/worker.py": "training/test_trainer.py",
}


def test_tests_mirror_the_package():
    """Each module has a test file of its name, or is listed with the neighbour whose test covers it."""
    tests = ROOT / "tests"
    names = [path.relative_to(PACKAGE) for path in SOURCES if path.name != "__init__.py"]
    missing = {name.as_posix() for name in names if not (tests / name.parent / f"test_{name.name}").exists()}
    assert missing == TESTED_WITH_A_NEIGHBOUR.keys()
    assert all((tests / test).exists() for test in TESTED_WITH_A_NEIGHBOUR.values())


def test_no_file_is_named_utils_and_no_function_is_endless():
    for path in SOURCES:
        assert path.stem not in ("utils", "helpers", "common", "misc")
        text = path.read_text("utf-8")
        assert text.count("\n") <= 400, path
        assert ast.get_docstring(ast.parse(text)), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{path}:{node.name}"


def test_weights_in_the_package_are_small_and_safe():
    files = [path for path in (PACKAGE / "pocket" / "weights").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30 << 20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}


def test_the_tuned_quickstart_differs_in_its_synthesizer_alone():
    from adamllm_ray.config import load_config

    plain, tuned = (load_config(ROOT / "jobs" / "configs" / f"quickstart{end}.yaml") for end in ("", "_tuned"))
    differ = {name for name in type(plain).model_fields if getattr(plain, name) != getattr(tuned, name)}
    assert differ == {"run", "models", "seed"}
    assert tuned.models == plain.models.model_copy(update={"synthesizer": "runs/quickstart-tuned/synthesizer/model"})


def test_every_shipped_configuration_is_valid():
    from adamllm_ray.config import load_config

    files = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
    assert files
    for path in files:
        load_config(path)
        head = path.read_text("utf-8").split("\nrun:")[0]
        assert "adamllm run" in head or "make " in head, f"{path} is not headed by its command"
