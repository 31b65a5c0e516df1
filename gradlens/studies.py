"""The interface between gradlens and the study that it contains: claims, reference numbers, experiments.

Report, notebook, terminal and command line use a study only through this module. Everything else works without the
study's folder; ``find_study`` then returns None.
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
    """A claim with its test."""

    @property
    def key(self) -> str:
        """A letter."""

    @property
    def text(self) -> str:
        """The claim in a sentence."""

    @property
    def supports(self) -> str:
        """What would support it."""

    @property
    def refutes(self) -> str:
        """What would refute it."""

    @property
    def reason(self) -> str:
        """The reason for the thresholds."""


class Evidence(Protocol):
    """A number that supports or refutes a claim; ``str`` writes it with its interval."""

    @property
    def name(self) -> str:
        """What was measured."""

    @property
    def unit(self) -> str:
        """Its unit."""

    @property
    def n(self) -> int:
        """The number of seeds."""

    @property
    def note(self) -> str:
        """Remarks about the number, or ""."""


class Verdict(Protocol):
    """The verdict of the runs of one setting about one claim."""

    @property
    def condition(self) -> str:
        """The condition under which the runs were trained."""

    @property
    def setting(self) -> str:
        """What was trained and how."""

    @property
    def verdict(self) -> str:
        """The outcome: supported, refuted, mixed, undecided or withheld."""

    @property
    def why(self) -> str:
        """The reason, with its numbers."""

    @property
    def evidence(self) -> Sequence[Evidence]:
        """The numbers; the first one decides."""


class JudgedClaim(Protocol):
    """A claim with its verdicts."""

    @property
    def claim(self) -> Claim:
        """The claim."""

    @property
    def overall(self) -> Mapping[str, Verdict]:
        """Condition to the verdict over all settings."""

    @property
    def verdicts(self) -> Sequence[Verdict]:
        """One verdict for each setting."""


class Control(Protocol):
    """A check of the instrument."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def text(self) -> str:
        """What the runs must show."""

    @property
    def passed(self) -> bool | None:
        """Whether all runs show it; None if there is no run to check."""

    @property
    def detail(self) -> str:
        """What the runs show."""


class Judgement(Protocol):
    """The judgement of all claims of a study by runs."""

    @property
    def title(self) -> str:
        """The title of the claims."""

    @property
    def claims(self) -> Sequence[JudgedClaim]:
        """The claims in the study's order."""

    @property
    def controls(self) -> Sequence[Control]:
        """The checks of the instrument."""

    @property
    def explanation(self) -> str:
        """Sentences that summarise the verdicts."""

    @property
    def next_steps(self) -> Sequence[str]:
        """Experiments that would decide the undecided claims."""

    @property
    def notes(self) -> Sequence[str]:
        """What was left out, and why; some notes are also next steps."""

    @property
    def remarks(self) -> Sequence[str]:
        """The notes that are not next steps."""

    @property
    def runs(self) -> int:
        """The number of runs that were given."""

    @property
    def conditions(self) -> list[str]:
        """The conditions that were trained."""

    @property
    def is_decided(self) -> bool:
        """Whether any claim has a verdict other than undecided."""

    def decided(self, condition: str) -> str:
        """Return the decided claims of a condition by verdict."""

    def to_dict(self) -> dict[str, Any]:
        """Return the judgement as values for JSON."""

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per claim, setting and number."""


class Study(Protocol):
    """A study with claims that can be judged by runs."""

    @property
    def references(self) -> Sequence[Reference]:
        """The numbers that the study published for the last epoch."""

    @property
    def words(self) -> Mapping[str, Mapping[str, str]]:
        """Language ("en", "id") to the words of a report about the study."""

    @property
    def experiments(self) -> Mapping[str, Path]:
        """Name to file of each experiment."""

    def pairs(self, runs: Sequence[Run]) -> list[tuple[Run, Run]]:
        """Return the pairs of runs with equal settings that the study compares with each other."""

    def judge(self, runs: Sequence[Run]) -> Judgement:
        """Judge the study's claims; a ConfigError says what is missing if the runs do not allow it."""

    def keep(self, runs: Sequence[Run], folder: Path) -> Path:
        """Write the numbers of runs that the claims use into a folder, and return the file."""

    def judge_kept(self, folder: Path) -> Judgement:
        """Judge the claims by numbers that ``keep`` wrote."""


def find_study() -> Study | None:
    """Return the study, or None if its folder is missing."""
    try:
        module = import_module(HOME)
    except ModuleNotFoundError as error:
        if error.name != HOME:
            raise
        return None
    return cast(Study, module.STUDY)


def judge(runs: Sequence[Run]) -> Judgement:
    """Judge the study's claims by runs.

    Args:
        runs: Any runs, in any order.

    Returns:
        The verdicts, controls and notes.

    Raises:
        ConfigError: There is no study, or the runs do not allow a judgement.
    """
    return _the_study().judge(runs)


def keep(runs: Sequence[Run], folder: Path) -> Path:
    """Write the numbers of runs that the study's claims use, so that ``judge_kept`` gives the same judgement.

    Args:
        runs: Any runs, in any order.
        folder: Where to write them.

    Returns:
        The file.

    Raises:
        ConfigError: There is no study.
        RunFileError: The file cannot be written.
    """
    return _the_study().keep(runs, folder)


def judge_kept(folder: Path) -> Judgement:
    """Judge the study's claims by numbers that ``keep`` wrote.

    Args:
        folder: The folder, or the file in it.

    Returns:
        The judgement that the runs themselves give.

    Raises:
        ConfigError: There is no study, or the runs do not allow a judgement.
        RunFileError: The file cannot be read.
    """
    return _the_study().judge_kept(folder)


def _the_study() -> Study:
    study = find_study()
    if study is None:
        raise ConfigError(f"there are no claims to judge: {HOME} is not installed")
    return study


def judge_pairs(runs: Sequence[Run]) -> Judgement | None:
    """Judge the study's claims if the runs contain a pair that the study compares; else return None."""
    study = find_study()
    return study.judge(runs) if study is not None and study.pairs(runs) else None


def pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return the pairs of runs that the study compares; none without a study."""
    study = find_study()
    return study.pairs(runs) if study is not None else []


def references() -> Sequence[Reference]:
    """Return the numbers that the study published for the last epoch; none without a study."""
    study = find_study()
    return study.references if study is not None else ()


def experiments() -> Mapping[str, Path]:
    """Return the study's experiments by name; none without a study."""
    study = find_study()
    return study.experiments if study is not None else {}


def study_words(language: str) -> Mapping[str, str]:
    """Return the words of a report about the study in a language; none without a study."""
    study = find_study()
    return study.words[language] if study is not None else {}


if TYPE_CHECKING:
    from gradlens.study import STUDY

    _is_a_study: Study = STUDY
