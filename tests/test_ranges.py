"""Every number that a user may set is checked when the object is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback

import fldd_lightning
from fldd_lightning import (
    FLDD,
    MLP,
    AbsorbingProcess,
    Decoding,
    DiscreteDataModule,
    FLDDError,
    ForwardProcess,
    GradientEstimator,
    ImageFLDD,
    Judge,
    Latent,
    Reinforce,
    Spec,
)
from fldd_lightning.networks import Autoencoder, Backbone
from fldd_lightning.ranges import (
    AT_LEAST_TWO,
    BELOW_ONE,
    BETWEEN,
    COUNT,
    POSITIVE,
    SEED,
    SHARE,
    UP_TO_ONE,
    Range,
    check_numbers,
)

SPEC = Spec(2, (8, 8), 2)
ROW = Spec(3, (8,), 2, padded=True)
WRONG = ("a word", nan, inf, -inf, -1, True, 1.5)
KINDS = (
    Autoencoder,
    Backbone,
    Callback,
    Decoding,
    DiscreteDataModule,
    FLDD,
    ForwardProcess,
    GradientEstimator,
    ImageFLDD,
    Judge,
    Latent,
)
INTEGERS, NUMBERS = ("int", "int | None"), ("float", "float | None")
GIVEN: dict[str, Callable[..., Any]] = {  # what classes need besides
    "ArrayDataModule": partial(fldd_lightning.ArrayDataModule, "x.npy"),
    "TableDataModule": partial(fldd_lightning.TableDataModule, "x.csv"),
    "ImageDataModule": partial(fldd_lightning.ImageDataModule, "x.npy"),
    "CausalLMJudge": partial(fldd_lightning.CausalLMJudge, "/nowhere"),
    "LabelLatent": partial(fldd_lightning.LabelLatent, SPEC, num_labels=3),
    "WarmUp": partial(fldd_lightning.WarmUp, SPEC, Reinforce, Reinforce),
    "ResidualAbsorbingProcess": partial(fldd_lightning.ResidualAbsorbingProcess, SPEC, MLP),
    "ResidualUniformProcess": partial(fldd_lightning.ResidualUniformProcess, SPEC, MLP),
    "ChainLatent": partial(fldd_lightning.ChainLatent, ROW),
    "TrainedChainLatent": partial(fldd_lightning.TrainedChainLatent, ROW),
    "ResidualProcess": partial(fldd_lightning.ResidualProcess, SPEC, AbsorbingProcess(SPEC), MLP),
    "Transformer": partial(fldd_lightning.Transformer, ROW, 3, 2),
}


def maker(made: type) -> Callable[..., Any]:
    """Makes an object of a class, of what it needs and one option."""
    if made.__name__ in GIVEN:
        return GIVEN[made.__name__]
    if issubclass(made, FLDD):
        square = {"num_classes": 3, "shape": (8, 8) if made is ImageFLDD else (8,)}
        return partial(made, **square, forward_process=AbsorbingProcess, denoiser=MLP)
    if issubclass(made, Backbone):
        return partial(made, SPEC, 3, 2)
    if issubclass(made, Autoencoder):
        return partial(made, SPEC, 4, 1, 1)
    needs_spec = "spec" in inspect.signature(made.__init__).parameters
    return partial(made, SPEC) if needs_spec else made


def options() -> list[tuple[str, str, str]]:
    """Class, name and annotation of every number that a public class takes."""
    found = []
    for name in sorted(fldd_lightning.__all__):
        made = getattr(fldd_lightning, name)
        if not inspect.isclass(made) or inspect.isabstract(made) or not issubclass(made, KINDS):
            continue
        for option in inspect.signature(made.__init__).parameters.values():
            kind = str(option.annotation)
            # networks and autoencoders get some from what they are made for, which has checked them
            of_owner = ("num_inputs", "num_outputs", "size" if issubclass(made, Autoencoder) else "")
            if kind in (*INTEGERS, *NUMBERS) and option.name not in of_owner:
                found.append((name, option.name, kind))
    return found


def refusal(make: Callable[[], Any]) -> str | None:
    """What the error says, or None."""
    try:
        make()
    except FLDDError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "option", "kind"), options())
def test_no_option_takes_any_number(name: str, option: str, kind: str) -> None:
    make = maker(getattr(fldd_lightning, name))
    refused = []
    for value in WRONG:
        with suppress(OSError):  # let through, and the file looked for
            said = refusal(partial(make, **{option: value}))
            assert said is None or option in said, f"{option}={value!r}: {said}"
            refused += [str(value)] if said else []
    least = {"a word", nan, inf, -inf, True} | ({1.5} if kind in INTEGERS else set())
    assert set(refused) >= {str(value) for value in least}


def test_there_are_many_options() -> None:
    assert len(options()) > 100


@pytest.mark.parametrize("option", ["num_classes", "num_steps"])
@pytest.mark.parametrize("value", [2.0, 2.7, True, 0, "3", nan])
def test_classes_and_steps_are_whole(option: str, value: object) -> None:
    with pytest.raises(FLDDError, match=option):
        Spec(**{"num_classes": 3, "shape": (2,), "num_steps": 4, option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (0,), (2.5,), (True,), (-1, 4)])
def test_shapes_are_whole(shape: tuple[Any, ...]) -> None:
    with pytest.raises(FLDDError, match="shape"):
        Spec(3, shape, 4)
    with pytest.raises(FLDDError, match="shape"):
        FLDD(3, shape, AbsorbingProcess, MLP)


def test_numpy_numbers_are_numbers() -> None:
    spec = Spec(np.int64(3), (np.int32(4),), np.int16(2))  # type: ignore[arg-type]
    assert (spec.num_classes, spec.shape, spec.num_steps) == (3, (4,), 2)
    assert all(type(number) is int for number in (spec.num_classes, *spec.shape, spec.num_steps))
    assert np.float32(0.5) in BETWEEN


@given(st.integers(-5, 5), st.floats(allow_nan=True, allow_infinity=True))
def test_ranges_hold_what_they_say(whole: int, number: float) -> None:
    assert (whole in COUNT) == (whole >= 1)
    assert (whole in AT_LEAST_TWO) == (whole >= 2)
    assert number not in COUNT
    assert (number in SHARE) == (0 <= number <= 1)
    assert (number in BETWEEN) == (0 < number < 1)
    assert (number in BELOW_ONE) == (0 <= number < 1)
    assert (number in POSITIVE) == (0 < number < inf)
    assert None in COUNT.or_none
    assert None not in COUNT


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (COUNT, "a whole number, 1 or more"),
        (SEED, "a whole number from 0 to 4294967295"),
        (POSITIVE, "a number above 0"),
        (SHARE, "a number from 0 to 1"),
        (BETWEEN, "a number above 0 and below 1"),
        (BELOW_ONE, "a number from 0 and below 1"),
        (UP_TO_ONE, "a number above 0, 1 at most"),
        (COUNT.or_none, "a whole number, 1 or more, or left out"),
        (Range(), "a number"),
    ],
)
def test_the_words(numbers: Range, words: str) -> None:
    with pytest.raises(FLDDError, match=f"^size is 'x', but it must be {words}\\.$"):
        check_numbers({"size": "x"}, size=numbers)


def test_the_error_names_the_class() -> None:
    with pytest.raises(FLDDError, match=r"^lr of FLDD is -0\.01, but it must be a number above 0\.$"):
        FLDD(2, (4,), AbsorbingProcess, MLP, lr=-0.01)


def test_callbacks_are_among_them() -> None:
    names = {name for name, _, _ in options()}
    assert any(issubclass(getattr(fldd_lightning, name), Callback) for name in names)
