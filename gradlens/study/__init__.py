"""The original study, students' work that started this project: its claims with their tests, evidence and verdicts."""

from gradlens.study.claims import judge_claims
from gradlens.study.controls import Control
from gradlens.study.criteria import CLAIMS, OUTCOMES, Claim, Outcome
from gradlens.study.evidence import Evidence, JudgedClaim, Verdict, say
from gradlens.study.interface import STUDY
from gradlens.study.judgement import Judgement
from gradlens.study.next_experiments import listed

__all__ = [
    "CLAIMS",
    "OUTCOMES",
    "STUDY",
    "Claim",
    "Control",
    "Evidence",
    "JudgedClaim",
    "Judgement",
    "Outcome",
    "Verdict",
    "judge_claims",
    "listed",
    "say",
]
