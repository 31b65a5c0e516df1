"""The words by which a report speaks of the original study, in its two languages."""

from __future__ import annotations

from gradlens.study.published import NET

ENGLISH = {
    "Claims": "The original study's claims",
    "claim": "claim",
    "condition": "condition",
    "verdict": "verdict",
    "why": "why",
    "published": "The original study's numbers are of one run each.",
}
INDONESIAN = {
    "Claims": "Klaim studi asli",
    "claim": "klaim",
    "condition": "kondisi",
    "verdict": "putusan",
    "why": "alasan",
    "published": "Angka studi asli masing-masing berasal dari satu pelatihan.",
    "verdict supported": "didukung",
    "verdict not supported": "tidak didukung",
    "verdict mixed": "campuran",
    "verdict undecided": "belum dapat diputuskan",
    "verdict withheld": "ditahan",
    f"reference {NET.format('plain34')}": "studi asli, plain34",
    f"reference {NET.format('resnet34')}": "studi asli, resnet34",
}
WORDS = {"en": ENGLISH, "id": INDONESIAN}
