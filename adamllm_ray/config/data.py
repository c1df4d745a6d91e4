"""The sections of the ingest stage: where image-caption pairs are, and what is accepted of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adamllm_ray.config.fields import Count, Positive, Section, Share


class S3Section(Section):
    """How to reach an S3-compatible store. Keys are not configuration: they come from the usual AWS sources

    (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, a pod's or an instance's role).
    """

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[A-Za-z0-9.:\[\]-]+/?$",
        description="URL of an S3-compatible server; AWS_ENDPOINT_URL, else Amazon's, if absent.",
    )
    region: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9-]{1,40}$", description="AWS_REGION, else looked up, if absent."
    )
    anonymous: bool = Field(default=False, description="Send no credentials: for public buckets.")
    request_timeout_s: Positive = Field(default=30.0, description="Seconds without an answer before trying again.")
    attempts: Count = Field(default=10, description="Tries per request, with growing, random pauses.")


class ImageLimits(Section):
    """Checked on the header, before any pixel is decoded."""

    max_bytes: Count = 20 << 20
    max_pixels: Count = 40_000_000
    min_side: Count = Field(default=16, description="Pixels.")
    max_aspect: Positive = 50.0


class Columns(Section):
    """Column names of a Parquet or Hugging Face source."""

    image: str = Field(default="image", description="Encoded bytes, or a {bytes, path} struct, or a path or URI.")
    caption: str = "caption"
    key: str | None = Field(default=None, description="A column that names the row; row number if absent.")


class WebDatasetSection(Section):
    """Which members of a tar shard belong to a pair. A suffix starts at the first dot of the file name."""

    image: list[str] = Field(
        default_factory=lambda: ["jpg", "jpeg", "png", "webp"], description="Suffixes of images, in lower case, no dot."
    )
    caption: str = Field(default="txt", description="Suffix of the caption; one that ends in 'json' holds an object.")
    caption_field: str = Field(default="caption", description="Name of the caption in a JSON member.")


class DataSection(Section):
    """The image-caption pairs."""

    format: Literal["sharegpt", "parquet", "webdataset", "huggingface", "pocket"] = "sharegpt"
    path: str = Field(
        default="",
        description="A local path or s3://bucket/prefix. sharegpt: a .json or .jsonl file, or a folder that holds "
        "exactly one. parquet, webdataset: a file or a folder. huggingface: what save_to_disk wrote. pocket: empty.",
    )
    s3: S3Section = S3Section()
    split: str | None = Field(
        default=None,
        description="huggingface: which split of a DatasetDict. pocket: 'train' holds back the chips that "
        "{name: pocket, split: validation} asks about.",
    )
    webdataset: WebDatasetSection = WebDatasetSection()
    image_folder: str | None = Field(
        default=None, description="Where image paths start; the data file's folder if absent."
    )
    columns: Columns = Columns()
    images: ImageLimits = ImageLimits()
    max_caption_chars: Count = 20_000
    limit: Count | None = Field(default=None, description="Read only this many pairs.")
    rows_per_shard: Count = Field(default=1024, description="Upper bound; shards are also cut at shard_bytes.")
    shard_bytes: Count = Field(default=256 << 20, description="Size that shards are cut at: about equal but the last.")
    near_duplicates: int | None = Field(
        default=None,
        ge=0,
        le=7,
        description="Mark images whose perceptual hash differs from an earlier one's in at most so many of 64 bits, "
        "whatever their captions; 4 finds rescaled and recompressed copies. Off if absent.",
    )
    max_failed_share: Share = Field(default=0.05, description="Stop when more than this share of the rows fails.")
