"""The study that the instrument carries, as the rest of it knows one: what it judges, and what it puts beside a run.

All that shows runs (report, notebook, terminal, command line) asks here and nowhere else. Without the study's folder
everything works but what only a study can say: ``find_study`` returns None then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from gradlens.analysis.compare import Reference
from gradlens.errors import ConfigError
from gradlens.run import Run

HOME = "gradlens.study"


class Claim(Protocol):
    """A sentence with its test."""

    @property
    def key(self) -> str:
        """A letter."""

    @property
    def text(self) -> str:
        """The sentence."""

    @property
    def supports(self) -> str:
        """What counts for it."""

    @property
    def refutes(self) -> str:
        """What counts against it."""

    @property
    def reason(self) -> str:
        """Why the lines are there."""


class Evidence(Protocol):
    """A number that speaks for or against a claim; ``str`` writes it with its interval."""

    @property
    def name(self) -> str:
        """What was measured."""

    @property
    def unit(self) -> str:
        """Its unit."""

    @property
    def n(self) -> int:
        """Over how many seeds."""

    @property
    def note(self) -> str:
        """What else is to be known of it; or ""."""


class Verdict(Protocol):
    """What the runs of one setting say of one claim."""

    @property
    def condition(self) -> str:
        """Under which condition."""

    @property
    def setting(self) -> str:
        """What was trained and how."""

    @property
    def verdict(self) -> str:
        """The outcome: supported, not supported, mixed, undecided or withheld."""

    @property
    def why(self) -> str:
        """The reason, with its numbers."""

    @property
    def evidence(self) -> Sequence[Evidence]:
        """The numbers; the first decides."""


class JudgedClaim(Protocol):
    """A claim and what was found."""

    @property
    def claim(self) -> Claim:
        """The claim."""

    @property
    def overall(self) -> Mapping[str, Verdict]:
        """Condition to its verdict over all settings."""

    @property
    def verdicts(self) -> Sequence[Verdict]:
        """One for each setting."""


class Control(Protocol):
    """A check of the instrument."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def text(self) -> str:
        """What must be seen."""

    @property
    def passed(self) -> bool | None:
        """Whether it was; None where it was not looked for."""

    @property
    def detail(self) -> str:
        """What was seen."""


class Judgement(Protocol):
    """All claims of a study, judged by runs."""

    @property
    def title(self) -> str:
        """What the claims are of."""

    @property
    def claims(self) -> Sequence[JudgedClaim]:
        """In the study's order."""

    @property
    def controls(self) -> Sequence[Control]:
        """The checks of the instrument."""

    @property
    def explanation(self) -> str:
        """Sentences that tie the claims together."""

    @property
    def next_steps(self) -> Sequence[str]:
        """What would decide the rest."""

    @property
    def notes(self) -> Sequence[str]:
        """What was left out, and why; some of them are next steps, too."""

    @property
    def remarks(self) -> Sequence[str]:
        """The notes that are no next steps."""

    @property
    def runs(self) -> int:
        """How many runs were looked at."""

    @property
    def conditions(self) -> list[str]:
        """The conditions that were trained."""

    def decided(self, condition: str) -> str:
        """Return the letters of the claims behind each verdict that was reached under a condition."""

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON knows it."""

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per claim, setting and number."""


class Study(Protocol):
    """A study whose claims runs can be judged by."""

    @property
    def references(self) -> Sequence[Reference]:
        """The study's own numbers of the last epoch."""

    @property
    def words(self) -> Mapping[str, Mapping[str, str]]:
        """Language ("en", "id") to the words that a report needs to speak of the study."""

    @property
    def experiments(self) -> Mapping[str, Path]:
        """Name of an experiment to its file."""

    def pairs(self, runs: Sequence[Run]) -> list[tuple[Run, Run]]:
        """Return the runs that the study compares with each other: a run of either side, of equal settings."""

    def judge(self, runs: Sequence[Run]) -> Judgement:
        """Judge the study's claims; a ConfigError says what is missing where there is nothing to judge them by."""


def find_study() -> Study | None:
    """Return the study, or None where its folder is not there."""
    try:
        module = import_module(HOME)
    except ModuleNotFoundError as error:
        if error.name != HOME:
            raise
        return None
    return cast(Study, module.STUDY)


def judge(runs: Sequence[Run]) -> Judgement:
    """Judge the study's claims by runs.

    Raises:
        ConfigError: There is no study, or nothing among the runs to judge its claims by.
    """
    study = find_study()
    if study is None:
        raise ConfigError(f"there are no claims to judge: {HOME} is not installed")
    return study.judge(runs)


def judge_pairs(runs: Sequence[Run]) -> Judgement | None:
    """Judge the study's claims where there are runs that it compares with each other; None where there are none."""
    study = find_study()
    return study.judge(runs) if study is not None and study.pairs(runs) else None


def pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return the runs that the study compares with each other; none where there is no study."""
    study = find_study()
    return study.pairs(runs) if study is not None else []


def references() -> Sequence[Reference]:
    """Return the study's own numbers of the last epoch; none where there is no study."""
    study = find_study()
    return study.references if study is not None else ()


def experiments() -> Mapping[str, Path]:
    """Return the study's experiments by name; none where there is no study."""
    study = find_study()
    return study.experiments if study is not None else {}


def study_words(language: str) -> Mapping[str, str]:
    """Return the words that a report needs to speak of the study, in a language; none where there is no study."""
    study = find_study()
    return study.words[language] if study is not None else {}


if TYPE_CHECKING:
    from gradlens.study import STUDY

    _is_a_study: Study = STUDY
