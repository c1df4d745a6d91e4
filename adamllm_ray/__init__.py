"""adamllm_ray: turn your own images and captions into a vision-language model that is good at your domain.

The flow, and the room that owns each step (docs/architecture.md has the picture)::

    data/        images + captions -> records (one row per pair), the run folder, verdicts
    models/      what a vision-language model is to us: chat format on token ids, families, load and export
    synthesis/   records -> records + task + judge verdict: vLLM replica pools in one Ray Data graph
    training/    lazy mixture -> conversations -> DeepSpeed step loop, Ray Train around it
    evaluation/  checkpoint -> scores with intervals
    report/      one static HTML page per run
    pocket/      laptop-size models and a satellite domain, so that all of this runs anywhere
    stages.py    the order of the stages and what each reads and writes
    cli.py       `adamllm`: a verb per stage

Importing this package imports neither ray, torch nor vllm (a test holds that).
"""

__version__ = "0.1.0"
