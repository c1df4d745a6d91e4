"""PMC-VQA: questions with four choices about figures of PubMed Central articles."""

from adamllm_ray.evaluation.tasks.layout import BIOMEDICINE, Benchmark, lettered

TASK = Benchmark(
    name="pmc_vqa",
    title="PMC-VQA",
    release=BIOMEDICINE,
    folders=("pmc_vqa", "PMC-VQA"),
    rows={"": 2000},
    link="https://github.com/xiaoman-zhang/PMC-VQA",
    licence="CC BY-SA 4.0",
    read=lettered,
)
