"""The claims of the report that started this project: tests fixed before looking, evidence, verdicts."""

from gradlens.study.claims import JudgedClaim, Judgement, judge_claims
from gradlens.study.controls import Control
from gradlens.study.criteria import CLAIMS, OUTCOMES, Claim, Outcome
from gradlens.study.evidence import Evidence, Verdict, say
from gradlens.study.next_experiments import listed, names_experiment, what_decides

__all__ = [
    "CLAIMS",
    "OUTCOMES",
    "Claim",
    "Control",
    "Evidence",
    "JudgedClaim",
    "Judgement",
    "Outcome",
    "Verdict",
    "judge_claims",
    "listed",
    "names_experiment",
    "say",
    "what_decides",
]
