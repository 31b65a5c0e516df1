"""The words of a report about the original study, in English and Indonesian."""

from __future__ import annotations

from gradlens.study.published import NET

ENGLISH = {
    "Claims": "The original study's claims",
    "claim": "claim",
    "condition": "condition",
    "verdict": "verdict",
    "why": "why",
    "published": "The numbers of the original study come from one run each.",
}
INDONESIAN = {
    "Claims": "Klaim studi asli",
    "claim": "klaim",
    "condition": "kondisi",
    "verdict": "kesimpulan",
    "why": "penjelasan",
    "published": "Angka studi asli masing-masing berasal dari satu pelatihan.",
    "verdict supported": "didukung",
    "verdict refuted": "dibantah oleh data",
    "verdict mixed": "sebagian didukung, sebagian dibantah",
    "verdict undecided": "belum dapat disimpulkan",
    "verdict withheld": "tidak diberikan",
    "condition with batch norm": "dengan batch norm",
    "condition without batch norm": "tanpa batch norm",
    "claim A": "Tanpa shortcut, gradien melemah saat backpropagation sampai hampir menghilang (vanishing gradient).",
    "claim B": "Koneksi residual memberi gradien jalur alternatif ke lapisan-lapisan awal.",
    "claim C": "Model residual lebih cepat konvergen.",
    "claim D": "Model residual mencapai akurasi dan loss akhir yang lebih baik.",
    "claim E": "Model plain mengalami stagnasi atau overfitting jika makin dalam; model residual tetap sehat.",
    "claim F": "Model plain gagal karena gradiennya menghilang; shortcut mengatasinya melalui jalur balik gradien.",
    f"reference {NET.format('plain34')}": "studi asli, plain34",
    f"reference {NET.format('resnet34')}": "studi asli, resnet34",
}
WORDS = {"en": ENGLISH, "id": INDONESIAN}
