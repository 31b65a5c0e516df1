"""What would decide a claim that is undecided: an experiment, more seeds, or nothing that was thought of."""

from __future__ import annotations

import math
from dataclasses import replace

from gradlens.study import (
    CLAIMS,
    OUTCOMES,
    Control,
    Evidence,
    JudgedClaim,
    Judgement,
    Outcome,
    Verdict,
    listed,
)
from gradlens.study.run_groups import WITH, WITHOUT
from gradlens.study.words import WORDS
from gradlens.terminal.claims import STYLES, claims_card

NUMBER = Evidence("share", 0.5, 0.4, 0.6, "share", 5)
PASSED = Control("positive", "must vanish", 3, True, "it does")
UNTESTED = Verdict(WITHOUT, "34 layers", "undecided", "not trained", tested=False)


def judged(*verdicts: tuple[str, Verdict], control: Control = PASSED, notes: tuple[str, ...] = ()) -> Judgement:
    """Return a judgement with these verdicts, by the claims' letters."""
    claims = []
    for claim in CLAIMS:
        found = {verdict.condition: verdict for key, verdict in verdicts if key == claim.key}
        if found:
            claims.append(JudgedClaim(claim, found, tuple(found.values())))
    return Judgement(tuple(claims), (control,), "This is so. That is not.", notes, 8)


def shown(verdict: Outcome, condition: str = WITH, *, counts: bool = True) -> Verdict:
    return Verdict(condition, "34 layers", verdict, "seen", (NUMBER,), counts=counts)


def test_undecided_claims_that_need_the_same_stand_together() -> None:
    found = judged(*((key, shown("undecided", one)) for key in "BCD" for one in (WITHOUT, WITH)), ("A", UNTESTED))
    assert found.next_steps == [
        "A without batch norm: gradlens run norm trains both networks with equal settings, from several seeds",
        "B, C and D with batch norm, B, C and D without batch norm: more seeds of both networks, to narrow the "
        "intervals (--seeds 0-9)",
    ]


def test_each_need_names_its_experiment() -> None:
    def need(key: str, verdict: Verdict) -> str:
        (said,) = judged((key, verdict), ("C", shown("supported")), ("C", shown("mixed", WITHOUT))).next_steps
        return said

    with_norm = replace(UNTESTED, condition=WITH)
    assert "gradlens run report" in need("A", with_norm)
    assert "gradlens run depth" in need("E", with_norm)
    assert "second depth" in need("E", UNTESTED)
    assert "gradlens run cause" in need("F", UNTESTED)
    assert "--split group" in need("D", shown("undecided", counts=False))
    gone = Evidence("gradient alone", -5.0, -6.0, -4.0, "decades", 5)
    assert "it vanishes, too" in need("F", replace(shown("undecided"), evidence=(*[NUMBER] * 4, gone, gone, gone)))
    alive = replace(gone, value=0.0, low=-1.0, high=1.0)
    assert "more seeds" in need("F", replace(shown("undecided"), evidence=(*[NUMBER] * 4, alive, gone, gone)))
    assert "more seeds" in need("F", replace(UNTESTED, evidence=(*[NUMBER] * 4, alive, gone, gone)))


def test_controls_come_first_and_where_they_fail_nothing_else_is_said() -> None:
    failed = replace(PASSED, passed=False)
    found = judged(("A", shown("withheld")), ("B", shown("withheld")), control=failed)
    (said,) = found.next_steps
    assert "the positive control fails" in said
    assert claims_card(found).verdict == "no verdict: the instrument fails its controls"
    missing = judged(("A", shown("supported")), notes=("no control (gradlens run controls)", "x"))
    assert missing.next_steps == [
        "no control (gradlens run controls)",
        "gradlens run norm trains both networks without batch norm",
    ]
    assert [text for label, text in claims_card(missing).lines if label == "note"] == ["x"]


def test_the_card_says_what_is_decided_and_a_sentence_of_why_in_each_line() -> None:
    found = judged(*((key, shown("refuted")) for key in "ABF"), ("C", shown("mixed", WITHOUT)))
    card = claims_card(found)
    assert card.verdict == "A, B and F refuted with batch norm; C mixed without batch norm"
    assert card.lines[1:3] == [("why", "This is so."), ("why", "That is not.")]  # behind the control
    assert not card.beside
    open_ = claims_card(judged(("A", replace(shown("undecided"), evidence=(replace(NUMBER, low=math.nan),)))))
    assert (open_.verdict, open_.beside) == ("nothing is decided", ["1 of 1 undecided"])


def test_a_reader_finds_every_verdict_in_their_language() -> None:
    """English words are the outcomes themselves."""
    assert {f"verdict {one}" for one in OUTCOMES} == {key for key in WORDS["id"] if key.startswith("verdict ")}
    assert set(STYLES) == set(OUTCOMES)


def test_letters_are_read_out() -> None:
    assert [listed(list(keys)) for keys in ("", "A", "AB", "ABC")] == ["", "A", "A and B", "A, B and C"]
