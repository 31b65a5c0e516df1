"""Numbers as JSON and as text: one way for each kind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gradlens.analysis.gradient_ratio import say_power
from gradlens.cli import run_command
from gradlens.cli.options import print_rows
from gradlens.format import (
    brackets,
    plain,
    plural,
    say_decimals,
    say_magnitude,
    say_seconds,
    say_share,
    say_signed,
    to_json,
)
from gradlens.terminal.verify import check_rows
from gradlens.theory.laws import Check

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NAN, None),
        (INF, "inf"),
        (-INF, "-inf"),
        (0.1, 0.1),
        (3, 3),
        (True, True),
        (None, None),
        ("inf", "inf"),
        (np.float32(0.5), 0.5),
        (np.float64(-INF), "-inf"),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([1.0, NAN, -INF]), [1.0, None, "-inf"]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(INF), "inf"),
        ({"a": {"b": (NAN, [np.float32(INF)])}}, {"a": {"b": [None, ["inf"]]}}),
    ],
    ids=repr,
)
def test_every_number_has_one_form_in_json(value: object, expected: object) -> None:
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    assert json.loads(to_json({"x": value})) == {"x": expected}


def test_what_is_hidden_is_escaped_in_json_and_comes_back() -> None:
    text = "a\x1b[2J\x9b31m\u202e\u2028\U000e0041\ufffe\x7f\ud800 \xa0漢\n"
    said = to_json({text: [text]})
    assert said.replace("\n", "").replace("\xa0", "").isprintable()
    assert json.loads(said) == {text: [text]}


def test_what_json_does_not_know_is_text() -> None:
    assert json.loads(to_json([Path("a/b"), "größe"])) == ["a/b", "größe"]
    assert "größe" in to_json("größe")


def test_rows_are_printed_alike_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"a": np.float32(0.5), "b": -INF, "c": NAN, "d": INF}]
    print_rows(rows, "json")
    assert json.loads(capsys.readouterr().out) == [{"a": 0.5, "b": "-inf", "c": None, "d": "inf"}]
    print_rows(rows, "csv")
    assert capsys.readouterr().out == "a,b,c,d\n0.5,-inf,,inf\n"


def test_the_sign_of_what_is_not_finite_is_kept(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(overhead=-INF)
    assert run_command(["summary", "net-s0", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["overhead"] == "-inf"
    checks = [Check("a law", "a source", "a setting", 1.0, measured, 0.1) for measured in (INF, -INF, NAN)]
    assert [row["measured"] for row in check_rows(checks)] == ["inf", "-inf", None]


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (2, ("row",), "2 rows"),
        (12345, ("row",), "12,345 rows"),
        (1, ("process", "processes"), "1 process"),
        (3, ("process", "processes"), "3 processes"),
    ],
)
def test_counts(count: int, words: tuple[str, ...], said: str) -> None:
    assert plural(count, *words) == said


def test_no_text_of_the_package_leaves_the_number_to_the_reader() -> None:
    package = Path(plain.__code__.co_filename).parent
    files = [path for path in package.rglob("*.py") if "diagnosis" not in path.relative_to(package).parts]
    assert [path.name for path in files if "(s)" in path.read_text(encoding="utf-8")] == []


def test_shares() -> None:
    shares = (NAN, 0.0, 1e-9, 0.00099, 0.001, 0.1234, 0.9994, 0.9996, 1.0)
    assert [say_share(value) for value in shares] == [
        "-", "none", "< 0.1 %", "< 0.1 %", "0.1 %", "12.3 %", "99.9 %", "100 %", "100 %",
    ]  # fmt: skip
    assert [say_share(value, 0) for value in (0.0, 0.004, 0.01, 0.994, 1.0)] == [
        "none",
        "< 1 %",
        "1 %",
        "99 %",
        "100 %",
    ]


def test_magnitudes_durations_signs_and_intervals() -> None:
    assert [say_magnitude(v) for v in (NAN, INF, 0.0, 0.00123)] == ["-", "not finite", "0", "1.23e-03"]
    assert [say_seconds(s) for s in (3, 89, 120, 7200)] == ["3 s", "89 s", "2.0 min", "2.0 h"]
    assert [say_signed(v) for v in (NAN, 1.0, -0.256)] == ["-", "+1.00", "-0.26"]
    assert say_signed(0.1234, 3) == "+0.123"
    assert (say_signed(-0.001), say_power(-0.04)) == ("+0.00", "10^0.0")
    assert [say_decimals(v) for v in (0.0, 0.7311, 4.71e-4, -1.5e-6, 0.0006, 1.2e6)] == [
        "0.000", "0.731", "4.71e-04", "-1.50e-06", "0.001", "1.20e+06",
    ]  # fmt: skip
    assert brackets(0.1, 0.25) == " [0.100, 0.250]"
    assert brackets(-0.1, 0.25, 2, sign=True) == " [-0.10, +0.25]"
    assert brackets(NAN, NAN) == brackets(-INF, 1.0) == ""
