"""What the fork server of checkpoint_lives.py imports once."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import boto3  # noqa: F401
import deepspeed  # noqa: F401
import s3transfer.upload  # noqa: F401

import adamllm_ray.training.checkpoints  # noqa: F401
