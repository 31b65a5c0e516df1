"""The original study behind the interface of ``gradlens.studies``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gradlens.analysis.compare import Reference
from gradlens.run import Run
from gradlens.study.claims import judge_claims
from gradlens.study.experiments import find_experiments
from gradlens.study.judgement import Judgement
from gradlens.study.kept_numbers import keep_runs, read_kept
from gradlens.study.published import REFERENCES
from gradlens.study.run_groups import sort_runs
from gradlens.study.words import WORDS


class OriginalStudy:
    """The study by students about plain and residual networks that started this project."""

    @property
    def references(self) -> Sequence[Reference]:
        """The numbers that the study published for the last epoch."""
        return REFERENCES

    @property
    def words(self) -> Mapping[str, Mapping[str, str]]:
        """Language to the words of a report about the study."""
        return WORDS

    @property
    def experiments(self) -> Mapping[str, Path]:
        """Name to file of each experiment."""
        return find_experiments()

    def pairs(self, runs: Sequence[Run]) -> list[tuple[Run, Run]]:
        """Return a run of the plain and one of the residual network for each depth and setting."""
        return [
            (next(iter(setting.plain[depth].values())).run, next(iter(setting.resnet[depth].values())).run)
            for setting in sort_runs(runs).settings
            for depth in sorted(setting.plain.keys() & setting.resnet.keys())
        ]

    def judge(self, runs: Sequence[Run]) -> Judgement:
        """Judge the claims, as ``judge_claims`` does."""
        return judge_claims(runs)

    def keep(self, runs: Sequence[Run], folder: Path) -> Path:
        """Write the numbers of runs that the claims use into a folder, as ``keep_runs`` does."""
        return keep_runs(runs, folder)

    def judge_kept(self, folder: Path) -> Judgement:
        """Judge the claims by numbers that ``keep`` wrote."""
        return judge_claims(read_kept(folder))


STUDY = OriginalStudy()
