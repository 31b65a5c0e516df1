"""The claims of the report that started this project: tests fixed before looking, evidence, verdicts."""

from gradlens.analysis.claims.controls import Control
from gradlens.analysis.claims.deciders import listed, names_experiment, what_decides
from gradlens.analysis.claims.evidence import Evidence, Verdict, say
from gradlens.analysis.claims.judge import JudgedClaim, Judgement, judge_claims
from gradlens.analysis.claims.texts import CLAIMS, OUTCOMES, Claim, Outcome

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
