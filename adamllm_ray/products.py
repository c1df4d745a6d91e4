"""Verbs about what a run has made: its data judged, its report, its data set, its model on a hub."""

from __future__ import annotations

from typing import Annotated

import typer

from adamllm_ray.arguments import ConfigPath, Overrides, folder_of
from adamllm_ray.config import load_config
from adamllm_ray.exits import resumable
from adamllm_ray.terminal import console, print_quality

products = typer.Typer()

Public = Annotated[bool, typer.Option("--public", help="Everybody may see it. Private otherwise.")]


@products.command()
def report(config: ConfigPath, set_: Overrides = None) -> None:
    """Write the HTML report of what is there so far. It opens from disk, without a network.

    Example:  adamllm report jobs/configs/quickstart.yaml --set report.gallery=2000
    """
    from adamllm_ray.report.build import build_report

    settings = load_config(config, set_ or [])
    console.print(f"report: {build_report(settings, folder_of(settings))}", soft_wrap=True)


@products.command()
def quality(config: ConfigPath, set_: Overrides = None) -> None:
    """Judge the data: diversity, lengths, keep rate, the judge itself, and what leaked from the evaluation sets.

    Reads every image once to compare it with the evaluation sets; the result is kept and shown by `adamllm report`.

    Example:  adamllm quality my.yaml --set contamination.near_images=6
    """
    from adamllm_ray.quality.measure import judge_data

    settings = load_config(config, set_ or [])
    folder = folder_of(settings)
    with resumable(folder), folder.lock():
        print_quality(*judge_data(settings, folder))


@products.command()
def publish(
    config: ConfigPath,
    output: Annotated[str, typer.Option("--output", metavar="DIR", help="An empty folder, or s3://bucket/prefix.")],
    set_: Overrides = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="ORG/NAME", help="Copy it to this hub repository as well.")
    ] = None,
    public: Public = False,
) -> None:
    """Write the kept tasks with images as a data set that `datasets`, TRL and LLaMA-Factory load, with a card.

    Sources and licences come from the section `publish` of the configuration. Nothing is sent anywhere without --repo,
    which needs HF_TOKEN in the environment.

    Example:  adamllm publish my.yaml --output published/xrays --set publish.license=cc-by-4.0
    """
    from adamllm_ray.models.hub import check_repository, push_dataset
    from adamllm_ray.publish.dataset import publish as write

    settings = load_config(config, set_ or [])
    folder = folder_of(settings)
    if repo is not None:
        check_repository(repo)  # before hours of writing
    with resumable(folder):
        done = write(settings, folder, output)
    left = "".join(f", {count} left out: {name}" for name, count in done.left_out.items())
    console.print(f"{done.rows:,} rows, {done.bytes:,} bytes{left}: {done.uri}", soft_wrap=True, highlight=False)
    if repo is not None:
        sent = push_dataset(done.uri, done.files, repo, settings.run.s3, private=not public)
        console.print(f"{sent.files} files, {sent.bytes:,} bytes: {sent.url}", soft_wrap=True, highlight=False)


@products.command()
def push(
    config: ConfigPath,
    repo: Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="Repository; made if there is none.")],
    set_: Overrides = None,
    public: Public = False,
) -> None:
    """Copy the trained model to a Hugging Face hub.

    Needs HF_TOKEN in the environment. Weights, processor and model card go; no record, caption, image or path.

    Example:  adamllm push my.yaml --repo our-team/xray-vlm
    """
    from adamllm_ray.models.hub import push as upload

    done = upload(folder_of(load_config(config, set_ or [])), repo, private=not public)
    console.print(f"{done.files} files, {done.bytes:,} bytes: {done.url}", soft_wrap=True, highlight=False)
