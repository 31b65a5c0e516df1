"""Diagnoses as JUnit XML for continuous integration: a suite per run, a case per kind of finding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from gradlens.diagnosis.findings import Diagnosis, say_confidence, say_layers, say_steps
from gradlens.diagnosis.kinds import KINDS

NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not allow (section 2.2)."""


def junit(diagnoses: Sequence[Diagnosis]) -> str:
    """Return the XML. A finding fails the case of its kind; for an undecided run all cases are skipped."""
    root = ElementTree.Element("testsuites", name="gradlens diagnose")
    for diagnosis in diagnoses:
        root.append(_suite(diagnosis))
    for name in ("tests", "failures", "skipped"):
        root.set(name, str(sum(int(suite.get(name, 0)) for suite in root)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _suite(diagnosis: Diagnosis) -> ElementTree.Element:
    run = _clean(diagnosis.run)
    suite = ElementTree.Element("testsuite", name=run, errors="0", tests=str(len(KINDS)))
    for kind in KINDS:
        case = ElementTree.SubElement(suite, "testcase", classname=f"gradlens.{run}", name=kind, time="0")
        for finding in diagnosis.of_kind(kind):
            where = f"{say_layers(finding.layers)}; {say_steps(finding.steps)}"
            failure = ElementTree.SubElement(case, "failure", type=kind, message=_clean(finding.evidence))
            failure.text = _clean(
                f"{where}; {say_confidence(finding)}\n{finding.evidence}\n"
                f"threshold: {finding.threshold} ({finding.source})\nnext: {finding.remedy}"
            )
        if diagnosis.undecided:
            ElementTree.SubElement(case, "skipped", message=_clean(diagnosis.reason))
    suite.set("failures", str(len(diagnosis.kinds)))
    suite.set("skipped", str(len(KINDS) if diagnosis.undecided else 0))
    return suite


def _clean(text: str) -> str:
    return NOT_IN_XML.sub("?", text)
