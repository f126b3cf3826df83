"""Configs by name: which settings a recipe or a card may have."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from models.registry import REGISTRY, configure, lookup


@pytest.mark.parametrize("name", REGISTRY)
def test_config_survives_json(name: str) -> None:
    config = configure(name)
    assert configure(name, json.loads(json.dumps(asdict(config)))) == config == REGISTRY[name].config


def test_integer_becomes_a_float() -> None:
    width = configure("efficientnet-b0", {"width": 2}).width
    assert (width, type(width)) == (2.0, float)


def test_unknown_name_error_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"unknown architecture 'lenet6'; expected one of .*efficientnet-b0.*lenet5"):
        lookup("lenet6")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"colour": 1, "width": 2.0}, "lenet5 has no setting colour, width"),
        ({"num_classes": "10"}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"dropout": float("nan")}, "not JSON compliant"),
        ({"dropout": object()}, "not JSON serializable"),
        ({"activation": "gelu"}, "'tanh' or 'relu'"),
    ],
)
def test_invalid_settings_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure("lenet5", overrides)
