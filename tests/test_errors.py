"""The tree in the errors' docstring, against the classes."""

import inspect
import re

import pytest

from comfyui_happyhorse import errors


def test_the_docstring_draws_the_tree():
    drawn = re.findall(r"^(?:[├└]── )?(\w+Error) ", errors.__doc__, re.MULTILINE)
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    assert sorted(drawn) == sorted(cls.__name__ for cls in classes)
    assert drawn[0] == "HappyHorseError"
    for cls in classes:
        assert cls.__module__ == errors.__name__
        assert issubclass(cls, errors.HappyHorseError)
        assert re.search(rf"[├└]── {cls.__name__} ", errors.__doc__) or cls is errors.HappyHorseError
        assert cls is errors.HappyHorseError or cls.__bases__[0] is errors.HappyHorseError


def test_a_size_that_cannot_be_made_is_a_value_error():
    with pytest.raises(ValueError, match="17"):
        raise errors.GeometryError("17")


def test_a_missing_package_says_how_to_get_it():
    error = errors.missing_package("bitsandbytes", "4-bit precision", "nf4")
    assert type(error) is errors.HappyHorseError
    assert str(error) == (
        "4-bit precision needs the Python package 'bitsandbytes', which is not installed: "
        'pip install "comfyui-happyhorse[nf4]"'
    )
    assert str(errors.missing_package("av", "Writing films")).endswith("pip install av")
