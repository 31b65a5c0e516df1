"""The words of a report about the original study, in English and Indonesian."""

from __future__ import annotations

from gradlens.study.published import NET

ENGLISH = {
    "Claims": "The original study's claims",
    "claim": "claim",
    "condition": "condition",
    "verdict": "verdict",
    "why": "why",
    "published": "The numbers of the original study come from one run each, on its own photographs.",
    "explain A": "The backward pass multiplies the gradient by each layer's weights and slopes, so in a deep network "
    "it shrinks or grows like a product of many factors. Batch norm rescales every layer and with it the gradient, "
    "so nothing vanishes where it is used; the same network without batch norm shows the shrinking.",
    "next A": "gradlens run norm",
    "explain B": "The gradient at a block's input is the sum of two parts: one through the shortcut, one through the "
    "convolutions. The share of the first part tells how much of the gradient really takes the shortcut.",
    "next B": "gradlens run report",
    "explain C": "A network that converges faster has the higher training accuracy in the same epochs. The area "
    "under the curve counts every epoch, so it does not depend on a level that somebody chose.",
    "next C": "gradlens run report --seeds 0-9",
    "explain D": "Two networks differ at the end only if the difference is larger than that between two seeds of one "
    "network. The interval over pairs of equal seeds shows whether it is; one run each cannot.",
    "next D": "gradlens run report --seeds 0-9",
    "explain E": "If depth is the problem, a plain network gets worse with every layer that is added, and a residual "
    "one does not. Two depths or more, with several seeds each, show the slope.",
    "next E": "gradlens run depth",
    "explain F": "A cause is shown by taking it away: one shortcut passes only the gradient back, another only the "
    "value forward. If the gradient's path cures the network, the gradient was the cause; if the value's path does, "
    "it was not.",
    "next F": "gradlens run cause",
}
INDONESIAN = {
    "Claims": "Klaim studi asli",
    "claim": "klaim",
    "condition": "kondisi",
    "verdict": "kesimpulan",
    "why": "penjelasan",
    "published": "Angka studi asli masing-masing berasal dari satu pelatihan dengan foto-fotonya sendiri.",
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
    "explain A": "Backward pass mengalikan gradien dengan bobot dan kemiringan setiap lapisan, sehingga pada "
    "jaringan dalam gradien mengecil atau membesar seperti hasil kali banyak faktor. Batch norm menskalakan ulang "
    "setiap lapisan beserta gradiennya, sehingga tidak ada yang menghilang jika dipakai; jaringan yang sama tanpa "
    "batch norm menunjukkan pengecilan itu.",
    "next A": "gradlens run norm",
    "explain B": "Gradien di masukan sebuah blok adalah jumlah dua bagian: satu melalui shortcut, satu melalui "
    "konvolusi. Porsi bagian pertama menunjukkan seberapa banyak gradien yang benar-benar melewati shortcut.",
    "next B": "gradlens run report",
    "explain C": "Jaringan yang lebih cepat konvergen memiliki akurasi pelatihan lebih tinggi pada epoch yang sama. "
    "Luas di bawah kurva menghitung setiap epoch, sehingga tidak bergantung pada tingkat yang dipilih seseorang.",
    "next C": "gradlens run report --seeds 0-9",
    "explain D": "Dua jaringan berbeda pada akhir pelatihan hanya jika selisihnya lebih besar daripada selisih "
    "antar-seed satu jaringan. Interval dari pasangan seed yang sama menunjukkannya; satu pelatihan untuk "
    "masing-masing tidak dapat.",
    "next D": "gradlens run report --seeds 0-9",
    "explain E": "Jika kedalaman adalah masalahnya, jaringan plain memburuk dengan setiap lapisan tambahan, sedangkan "
    "jaringan residual tidak. Dua kedalaman atau lebih, masing-masing dengan beberapa seed, menunjukkan kemiringannya.",
    "next E": "gradlens run depth",
    "explain F": "Penyebab ditunjukkan dengan menghilangkannya: satu shortcut hanya meneruskan gradien ke belakang, "
    "satu lagi hanya nilai ke depan. Jika jalur gradien memulihkan jaringan, gradienlah penyebabnya; jika jalur "
    "nilai, bukan.",
    "next F": "gradlens run cause",
    f"reference {NET.format('plain34')}": "studi asli, plain34",
    f"reference {NET.format('resnet34')}": "studi asli, resnet34",
}
WORDS = {"en": ENGLISH, "id": INDONESIAN}
