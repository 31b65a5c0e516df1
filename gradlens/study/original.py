"""The original study as the rest of the instrument knows it; ``gradlens.studies`` says what a study must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gradlens.analysis.compare import Reference
from gradlens.run import Run
from gradlens.study.claims import judge_claims
from gradlens.study.experiments import find_experiments
from gradlens.study.judgement import Judgement
from gradlens.study.published import REFERENCES
from gradlens.study.run_groups import sort_runs
from gradlens.study.words import WORDS


class OriginalStudy:
    """A report by students on plain and residual networks, which started this project."""

    @property
    def references(self) -> Sequence[Reference]:
        """The study's own numbers of the last epoch."""
        return REFERENCES

    @property
    def words(self) -> Mapping[str, Mapping[str, str]]:
        """Language to the words by which a report speaks of the study."""
        return WORDS

    @property
    def experiments(self) -> Mapping[str, Path]:
        """Name of an experiment to its file."""
        return find_experiments()

    def pairs(self, runs: Sequence[Run]) -> list[tuple[Run, Run]]:
        """Return, for each depth and way to train, a run of the plain network and one of the residual network."""
        return [
            (next(iter(setting.plain[depth].values())), next(iter(setting.resnet[depth].values())))
            for setting in sort_runs(runs).settings
            for depth in sorted(setting.plain.keys() & setting.resnet.keys())
        ]

    def judge(self, runs: Sequence[Run]) -> Judgement:
        """Judge the claims, as ``judge_claims`` does."""
        return judge_claims(runs)


STUDY = OriginalStudy()
