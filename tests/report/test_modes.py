"""What the terminal says of both kinds of metric, and of each task's denominator."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from adamllm_ray.evaluation.scores import summarise
from adamllm_ray.report.modes import mode_tables


def scores(*names: str, general: str = "", **about: Any) -> dict[str, Any]:
    rows = []
    for name in names:
        for model in ("base", "adapted"):
            for i, right in enumerate([0.0, 1.0, None]):
                row = {"question_id": f"{name}/{i}", "model": model, "task": name, "type": f"{name} open"}
                row |= {"metric": "recall", "verdict": "ok" if right is not None else "row_unreadable"}
                paper = right and (0.75 if model == "adapted" else 0.5)
                rows.append(
                    row | {"score_strict": right, "parsed_strict": True, "score_paper": paper, "parsed_paper": False}
                )
    tasks = {n: {"title": n, "protocol": "zero-shot", "split": "test", "general": n == general, **about} for n in names}
    return summarise(rows, tasks=tasks, samples=50)


def printed(found: dict[str, Any]) -> str:
    console = Console(width=160, record=True, force_terminal=False)
    for item in mode_tables(found):
        console.print(item, highlight=False)
    return console.export_text()


def test_a_single_task_of_ones_own_has_both_modes_and_its_line() -> None:
    lines = printed(scores("own")).splitlines()
    [row] = [line for line in lines if line.strip().startswith("own open")]
    assert row.split()[2:] == ["2", "50.0", "50.0", "0/0", "25.0", "37.5", "2/2"]
    assert lines[-1] == "own: n = 2 of 3 rows, 1 malformed; split: test; zero-shot"
    assert printed({"types": []}) == ""


def test_both_modes_denominators_and_what_is_general() -> None:
    text = printed(scores("slake", "everyday", general="everyday"))
    [slake] = [line for line in text.splitlines() if line.startswith(" slake open") or line.startswith("slake open")]
    assert slake.split()[2:] == ["2", "50.0", "50.0", "0/0", "25.0", "37.5", "2/2"]
    lines = [line.strip() for line in text.splitlines()]
    assert lines[lines.index("general, not domain:") + 1].startswith("everyday open")
    assert "slake: n = 2 of 3 rows, 1 malformed; split: test; zero-shot" in text
    assert "everyday, general: n = 2 of 3 rows" in text


def test_the_paper_s_number_of_rows_is_said_where_it_differs() -> None:
    text = printed(scores("slake", paper_rows={"SLAKE open": 645, "SLAKE closed": 416}))
    assert "the paper prints 1,061 rows" in text
