"""What would decide a claim that is undecided: an experiment, more seeds, or nothing that was thought of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.stats import nct, t

from gradlens.analysis.stats import mean_interval, seeds_for_power
from gradlens.report.translator import translate
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
from gradlens.study.next_experiments import seeds_that_decide
from gradlens.study.run_groups import WITH, WITHOUT
from gradlens.study.words import WORDS
from gradlens.terminal.claims import STYLES, claims_card
from tests.report.english_words import english_in

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


def test_seeds_are_counted_for_a_power_of_08() -> None:
    """scipy's power of Student's t test, two-sided at 5 %, is the second truth."""
    margin = 0.02
    values = np.array([0.07, 0.02, 0.11, 0.05, -0.01, 0.08, 0.0, 0.06])
    seen = mean_interval(values - 0.01)
    one = Evidence("difference", seen.mean, seen.low, seen.high, "accuracy difference", seen.n)
    wide = replace(one, low=-0.01)
    needed = int(seeds_for_power(seen.std, seen.mean - margin))
    for count, enough in ((needed, True), (needed - 3, False)):
        away = (seen.mean - margin) / seen.std * math.sqrt(count)
        power = nct.sf(t.ppf(0.975, count - 1), count - 1, away)
        assert (power > 0.79) == enough
    assert math.isnan(seeds_that_decide("C", [one])) == (one.low > 0)
    half = (wide.high - wide.low) / 2
    expected = seeds_for_power(half / t.ppf(0.975, wide.n - 1) * math.sqrt(wide.n), wide.value)
    assert seeds_that_decide("C", [wide]) == expected
    (said,) = judged(("C", replace(shown("undecided"), evidence=(wide,))), ("A", shown("mixed", WITHOUT))).next_steps
    assert said.startswith(f"C with batch norm: the same experiment with --seeds 0-{expected - 1:.0f}, as many as")
    near = replace(wide, value=1e-4)
    (said,) = judged(("C", replace(shown("undecided"), evidence=(near,))), ("A", shown("mixed", WITHOUT))).next_steps
    assert "more than 200 seeds" in said
    assert not english_in(translate(said, "id"))


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
    assert "more than 200 seeds" in need("F", replace(shown("undecided"), evidence=(*[NUMBER] * 4, alive, gone, gone)))
    assert "more than 200 seeds" in need("F", replace(UNTESTED, evidence=(*[NUMBER] * 4, alive, gone, gone)))


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
