"""Configs by name: what a recipe or a card may say, and what it may not."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from models.registry import REGISTRY, build, configure, lookup


@pytest.mark.parametrize("name", REGISTRY)
def test_a_config_survives_json(name: str) -> None:
    config = configure(name)
    assert configure(name, json.loads(json.dumps(asdict(config)))) == config == REGISTRY[name].config


def test_a_list_becomes_a_tuple() -> None:
    assert configure("efficientnet-b0", {"strides": [1, 1, 2, 2, 1, 2, 1]}).strides == (1, 1, 2, 2, 1, 2, 1)


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    width = configure("efficientnet-b0", {"width": 2}).width
    assert (width, type(width)) == (2.0, float)


def test_overrides_leave_the_row_alone() -> None:
    assert configure("lenet5", {"dropout": 0.5}).dropout == 0.5
    assert REGISTRY["lenet5"].config.dropout == 0.0


def test_an_unknown_name_is_told_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"unknown architecture 'lenet6'; known: .*efficientnet-b0.*lenet5"):
        lookup("lenet6")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"colour": 1, "width": 2.0}, "lenet5 has no setting colour, width"),
        ({"num_classes": "ten"}, "num_classes"),
        ({"num_classes": "10"}, "num_classes"),
        ({"num_classes": True}, "num_classes"),
        ({"num_classes": 9.5}, "num_classes"),
        ({"num_classes": None}, "num_classes"),
        ({"dropout": float("nan")}, "not JSON compliant"),
        ({"dropout": float("inf")}, "not JSON compliant"),
        ({"dropout": object()}, "not JSON serializable"),
        ({"activation": "gelu"}, "'tanh' or 'relu'"),
    ],
)
def test_wrong_settings_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure("lenet5", overrides)


def test_settings_that_a_network_cannot_be_built_from() -> None:
    with pytest.raises(ValueError, match="reads 32x32 pictures, not 28"):
        build("lenet5", {"image_size": 28})
    with pytest.raises(ValueError, match="codes for the 10 digits, not for 26"):
        build("lenet5", {"num_classes": 26})
    with pytest.raises(ValueError, match="one input size, 16, not 28"):
        build("lenet1989", {"image_size": 28})
    with pytest.raises(ValueError, match="strides needs 7 numbers, got 1"):
        build("efficientnet-b0", {"strides": [2]})
