"""`adamllm`: a verb per stage, and `run` for all of them.

Exit codes: 0 done, 2 wrong configuration or input, 75 stopped but resumable with the same command, 130 Ctrl-C
(resumable too), 1 a bug (`exits.py`). Stages return their manifests, for the last line of a job (submission/driver.py).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from adamllm_ray.ablation.command import ablate
from adamllm_ray.arguments import ConfigPath, Overrides, folder_of
from adamllm_ray.config import config_schema, dump_config, load_config
from adamllm_ray.errors import ConfigError
from adamllm_ray.evaluation.command import compare
from adamllm_ray.exits import outcome, resumable
from adamllm_ray.pocket.command import pocket
from adamllm_ray.products import products
from adamllm_ray.stages import planned, run_stages, stage_named
from adamllm_ray.terminal import (
    console,
    print_done,
    print_plan,
    print_rehearsed,
    print_scores,
    print_status,
    print_summary,
)
from adamllm_ray.tuning.command import tune

if TYPE_CHECKING:
    from adamllm_ray.data.manifest import Manifest

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Turn your own images and captions into a vision-language model that is good at your domain.\n\n"
    "Start with the example:  [bold]adamllm run jobs/configs/quickstart.yaml[/bold]",
)
app.add_typer(pocket, name="pocket")
app.add_typer(products)  # report, quality, publish, push
app.command()(compare)
app.command()(ablate)
app.command()(tune)

WATCH_S = 10.0

ForceNew = Annotated[
    bool, typer.Option("--force-new", help="Move a folder made with other settings aside and start it again.")
]

Manifests = dict[str, Any]  # of the stages that were done, by name; Typer looks annotations up, so no import for it


@app.command()
def run(
    config: ConfigPath,
    set_: Overrides = None,
    force_new: ForceNew = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Up to the first batch, on tiny stand-ins.")] = False,
    like: Annotated[str | None, typer.Option("--like", metavar="KIND", help="Architecture for --dry-run.")] = None,
) -> Manifests:
    """Run every stage: ingest, synthesize, train, evaluate, report.

    Finished stages are not done again, a killed one continues: after any interruption, give the same command.
    With --dry-run nothing is read but the configuration: models and images are replaced by tiny made-up ones.

    Examples:

      adamllm run jobs/configs/quickstart.yaml

      adamllm run jobs/configs/own_data.yaml --set data.path=/data/xrays/pairs.json --set run.output=runs/xrays
    """
    settings = load_config(config, set_ or [])
    if dry_run:
        from adamllm_ray.pocket.rehearsal import rehearse

        print_rehearsed(rehearse(settings, like))
        return {}
    folder = folder_of(settings)
    with resumable(folder):
        manifests: dict[str, Manifest] = {}
        for number, stage in enumerate(planned(settings), 1):
            console.print(f"[dim]{number}.[/dim] [bold]{stage.name:<11}[/bold] {stage.does}", highlight=False)
        for stage, manifest, seconds in run_stages(settings, folder, force_new=force_new):
            manifests[stage.name] = manifest
            print_done(stage.name, manifest, seconds)
        print_summary(settings, folder, manifests)
    return manifests


def _stage_command(name: str, config: Path, set_: list[str] | None, force_new: bool) -> Manifests:
    settings = load_config(config, set_ or [])
    folder = folder_of(settings)
    with resumable(folder), folder.lock():
        manifest = stage_named(name).run(settings, folder, force_new=force_new)
    print_done(name, manifest, manifest.seconds)
    return {name: manifest}


@app.command()
def ingest(config: ConfigPath, set_: Overrides = None, force_new: ForceNew = False) -> Manifests:
    """Read images and captions, check every one of them, and write records.

    A bad image or caption becomes a row with a verdict; nothing is dropped.

    Example:  adamllm ingest my.yaml --set data.limit=100
    """
    return _stage_command("ingest", config, set_, force_new)


@app.command()
def seed(config: ConfigPath, set_: Overrides = None, force_new: ForceNew = False) -> Manifests:
    """Join captions, precise and informative answers into the conversations that a synthesizer is tuned on.

    Records that cannot be used get a verdict; the counts are in the manifest. `adamllm train` with
    training.objective=synthesizer, or `adamllm run` with models.synthesizer=tuned, trains on the result.

    Example:  adamllm seed my.yaml --set seed.captions=c.json --set seed.precise=p.json --set seed.informative=i.json
    """
    return _stage_command("seed", config, set_, force_new)


@app.command()
def synthesize(config: ConfigPath, set_: Overrides = None, force_new: ForceNew = False) -> Manifests:
    """Let the synthesizer write a task for each pair, and the judge compare its two answers.

    Example:  adamllm synthesize my.yaml --set synthesis.engine.replicas=8 --set judge.engine.replicas=2
    """
    return _stage_command("synthesize", config, set_, force_new)


@app.command()
def train(config: ConfigPath, set_: Overrides = None, force_new: ForceNew = False) -> Manifests:
    """Post-train the base model on captions and kept tasks, in one stage, and export it.

    Example:  adamllm train my.yaml --set training.workers=8 --set training.gpus_per_worker=1
    """
    return _stage_command("train", config, set_, force_new)


@app.command()
def evaluate(config: ConfigPath, set_: Overrides = None, force_new: ForceNew = False) -> Manifests:
    """Ask the base and the adapted model the same questions and score them.

    Example:  adamllm evaluate my.yaml --set evaluation.task=/data/xrays/test.parquet
    """
    settings = load_config(config, set_ or [])
    if not settings.evaluation.asked:
        raise ConfigError("evaluation.task is empty: name a Parquet or JSONL file with questions, or 'pocket'")
    done = _stage_command("evaluate", config, set_, force_new)
    print_scores(folder_of(settings))
    return done


@app.command()
def submit(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A stage, or 'pipeline' for all.", show_default=False)],
    config: ConfigPath,
    cluster: Annotated[str, typer.Option("--cluster", metavar="NAME", help="An overlay of cluster/, or a path.")] = "",
    address: Annotated[str, typer.Option("--address", metavar="URL", help="Job API of a running Ray cluster.")] = "",
    set_: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the manifests as YAML, send nothing.")] = False,
    mounted: Annotated[
        list[str] | None, typer.Option("--mounted", metavar="FOLDER", help="Every node has it too. Repeatable.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Stay until it ends, with its exit code.")] = True,
) -> None:
    """Run a stage on a cluster: as a RayJob on Kubernetes, or on a running Ray cluster. The same command resumes.

    Refuses what could not work there before anything is sent: local paths, broken or unsafe manifests. Exit codes are
    those of the stage. Keys come from the cluster; a Ray cluster's token is taken from RAY_AUTH_TOKEN(_PATH).

    Examples:

      adamllm submit synthesize my.yaml --cluster gpu-h100 --dry-run

      adamllm submit pipeline my.yaml --address http://ray-head:8265
    """
    from adamllm_ray.submission.command import Target, hand_over

    settings = load_config(config, set_ or [])
    target = Target(cluster, address, dry_run=dry_run, follow=follow, mounted=tuple(mounted or ()))
    raise typer.Exit(hand_over(stage, settings, target))


@app.command()
def plan(
    config: ConfigPath,
    set_: Overrides = None,
    rows: Annotated[int, typer.Option(min=8, help="Rows of the probe; more of them measure better.")] = 100,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of a GPU-hour (a CPU-hour without GPUs), in any currency.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Tell what a whole synthesis would take: time, GPU-hours, output size, kept tasks, cost.

    Runs a probe of some rows through the real models, one replica each, into a scratch folder. Needs a finished ingest.

    Examples:

      adamllm plan jobs/configs/quickstart.yaml

      adamllm plan my.yaml --rows 500 --price 2.5 --set synthesis.engine.replicas=16
    """
    from adamllm_ray.synthesis.plan import plan as probe

    settings = load_config(config, set_ or [])
    folder = folder_of(settings)
    with resumable(folder), folder.lock():
        found = probe(settings, folder, rows=rows, price=price)
    if as_json:
        typer.echo(found.to_json())
        return
    print_plan(found)


@app.command()
def size(
    config: ConfigPath,
    images: Annotated[int, typer.Option(min=1, help="Image-caption pairs of the whole run.", show_default=False)],
    hours: Annotated[float, typer.Option(min=0, help="When the synthesis is to be done.", show_default=False)],
    set_: Overrides = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU-hour, in any currency.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1)] = 8,
    losses: Annotated[float, typer.Option(min=0, help="How often a node is lost, per day: spot machines.")] = 0.0,
    provision: Annotated[float, typer.Option(min=0, help="Seconds from asking for a node to having it.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what machines a synthesis of so many images needs to be done in so many hours. Runs nothing.

    Needs `adamllm plan` first, which measures one replica of each pool.

    Example:  adamllm size my.yaml --images 1000000 --hours 12 --price 2.5 --losses 1
    """
    from adamllm_ray.report.summary import size_lines
    from adamllm_ray.synthesis.sizing import Target
    from adamllm_ray.synthesis.sizing import size as machines

    settings = load_config(config, set_ or [])
    needs = machines(settings, folder_of(settings), Target(images, hours, price, gpus_per_node, losses, provision))
    if as_json:
        typer.echo(needs.to_json())
        return
    for line in size_lines(needs):
        console.print(line, highlight=False, soft_wrap=True)


@app.command()
def redrive(
    config: ConfigPath,
    verdict: Annotated[list[str], typer.Option("--verdict", help="Rows with this task verdict. Repeatable.")],
    set_: Overrides = None,
) -> None:
    """Run only the rows with certain verdicts again, and put the results in their places.

    For rows that failed for a reason that is gone now (engine_error, engine_died). With unchanged settings a greedy
    model writes the same again, so the other verdicts change only where sampling or a damaged image was to blame.

    Example:  adamllm redrive my.yaml --verdict engine_error --verdict not_synthesized
    """
    from adamllm_ray.synthesis.redrive import redrive as run_again

    settings = load_config(config, set_ or [])
    folder = folder_of(settings)
    with resumable(folder), folder.lock():
        done = run_again(settings, folder, verdict)
    if not done.rows:
        console.print("no row has such a verdict: nothing to do")
        return
    words = [", ".join(f"{name} {count}" for name, count in sorted(each.items())) for each in (done.before, done.after)]
    console.print(f"{done.rows} rows ran again: {words[0]} [bold]->[/bold] {words[1]}", highlight=False)
    print_done("synthesize", done.manifest, done.manifest.seconds)


@app.command()
def status(
    config: ConfigPath,
    set_: Overrides = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, until Ctrl-C or the end.")] = False,
) -> None:
    """Show which stages are finished, with their counts, and how far a synthesis is: rows, rate, time left, verdicts.

    Reads the run folder only, so it works from any machine that sees it, also while another process is at work.

    Examples:

      adamllm status jobs/configs/quickstart.yaml

      adamllm status my.yaml --set run.output=s3://bucket/run --watch
    """
    settings = load_config(config, set_ or [])
    folder = folder_of(settings)
    while not print_status(settings, folder) and watch:
        time.sleep(WATCH_S)


@app.command()
def verify(config: ConfigPath, set_: Overrides = None) -> None:
    """Compare the run with its manifests: every file by checksum, then rows, ids and verdicts counted again.

    Names each damaged, missing or foreign file and each stage that is not finished, and exits with 1 when there is one.

    Example:  adamllm verify jobs/configs/quickstart.yaml
    """
    from adamllm_ray.data.verify import verify as differences

    settings = load_config(config, set_ or [])
    folder = folder_of(settings)
    sources = {"synthesize": folder.stage("ingest")}
    begun = [stage.name for stage in planned(settings) if folder.read(f"{stage.name}/fingerprint.json") is not None]
    if not begun:
        raise ConfigError(f"{folder.uri} holds no stage of this run: there is nothing to verify")
    problems = [problem for name in begun for problem in differences(folder.stage(name), sources.get(name))]
    for problem in problems:
        console.print(f"[red]{escape(problem)}[/red]", soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console.print(f"{', '.join(begun)}: every file and every row is as its manifest says")


@app.command("config")
def show_config(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Print this one, resolved.")] = None,
    set_: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a configuration.")] = False,
) -> None:
    """Check a configuration and print it with every default written out, or print the schema.

    Examples:

      adamllm config my.yaml

      adamllm config --schema > adamllm.schema.json
    """
    if schema:
        typer.echo(json.dumps(config_schema(), indent=2))
    elif config is None:
        raise ConfigError("name a configuration to print, or ask for --schema")
    else:
        typer.echo(dump_config(load_config(config, set_ or [])), nl=False)


def main() -> None:
    """Entry point: known errors are printed without a traceback and give their own exit code."""
    sys.exit(outcome(lambda: app(standalone_mode=False)).code)


if __name__ == "__main__":
    main()
