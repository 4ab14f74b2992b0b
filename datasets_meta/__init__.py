"""Descriptions of data sets: targets, labels, regions, joins, licence; never a patient's row."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def read_meta(name: str) -> dict[str, Any]:
    """The description called `name` ("knee_phantom", "oaizib_cm") as JSON in the form of dataset.json."""
    content: dict[str, Any] = json.loads(
        resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8")
    )
    return content
