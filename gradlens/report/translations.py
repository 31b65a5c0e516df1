"""The words of a report in its two languages; numbers and names come from the runs."""

from __future__ import annotations

from collections.abc import Mapping

from gradlens.analysis.gradient_ratio import FATES, RATIOS
from gradlens.diagnosis.kinds import REGISTRY
from gradlens.errors import ConfigError
from gradlens.studies import study_words

ENGLISH: dict[str, str] = {
    "title": "What the gradients say",
    "runs of": "{runs} of {groups}: {said}.",
    "run": "one run",
    "runs": "{n} runs",
    "net": "one setting",
    "nets": "{n} settings",
    "seed": "one seed",
    "seeds": "{n} seeds",
    "accuracy": "At the end, validation accuracy is {said}.",
    "accuracy of": "{value} for {group}",
    "difference": "Over the {n} seeds that both have, {second} ends {more} {column} than {first}: "
    "the difference is {mean} [{low}, {high}] (mean of the pairs, 95 % interval){open}.",
    "higher": "higher in",
    "lower": "lower in",
    "open": "; as 0 is inside, these seeds do not decide it",
    "overfits": "{group} overfits: training accuracy ends {gap} above validation accuracy.",
    "faster": "After {epoch} epochs, training loss is {said}.",
    "way": "{group}: {what}; {said} ({over}).",
    "median": "median over the rows",
    "median of": "median over the rows, mean of {n} seeds from {low} to {high}",
    **FATES,
    **RATIOS,
    "found": "Diagnosis: {said}.",
    "found of": "{group} {kind} ({seeds})",
    "all seeds": "all {n} seeds",
    "the run": "the run",
    "some seeds": "seed {seeds} of {n} seeds",
    "copies": "{share} of the validation images have a copy in the training set, so validation accuracy is partly "
    "memory ({group}).",
    "Metric comparison": "Metric comparison",
    "Simple graph": "Simple graph",
    "Brief analysis": "Brief analysis",
    "Hyper-parameters": "Hyper-parameter configuration",
    "Findings": "Findings",
    "Environment": "Environment",
    "last epoch": "Last epoch of each run: mean ± standard deviation between seeds, with the 95 % interval of the "
    "mean (Student).",
    "quantity": "quantity",
    "training accuracy": "training accuracy",
    "validation accuracy": "validation accuracy",
    "training loss": "training loss",
    "validation loss": "validation loss",
    "differs": "Bold: where the experiments differ.",
    "setting": "setting",
    "curves": "Accuracy and loss over epochs",
    "curves read": "Lines are means over seeds while all of them run, bands the 95 % interval of the mean, thin lines "
    "the single seeds. Read whether the bands part, and where validation leaves training.",
    "heatmap": "Gradient norm, layers by steps",
    "heatmap read": "A row per layer with the input at the top, a column per step; the colour is log10 of the gradient "
    "norm with respect to the layer's output, on one scale for all. A gradient that vanishes darkens towards the top.",
    "profile": "Gradient norm over depth",
    "profile read": "The median over steps for each layer, input at the left. A line that falls to the left shrinks on "
    "its way back. Where theory of initialisation has a prediction, it stands beside the first step.",
    "group": "experiment",
    "finding": "finding",
    "evidence": "evidence",
    "next": "next step",
    "made by": "Made by",
    "of evidence": "",
    "in English": "",
    "none": "none",
    "runs of many": "{runs} of {groups}, of {nets} nets.",
    "accuracy from": "At the end, validation accuracy lies between {low} ({lowest}) and {high} ({highest}).",
    "in settings": "in {settings}, {what}",
    "kind in": "{kind} in {settings}",
}  # fmt: skip

INDONESIAN = {
    "title": "Apa yang dikatakan gradien",
    "runs of": "{runs} dari {groups}: {said}.",
    "run": "satu pelatihan",
    "runs": "{n} pelatihan",
    "net": "satu pengaturan",
    "nets": "{n} pengaturan",
    "seed": "satu seed",
    "seeds": "{n} seed",
    "accuracy": "Pada akhir pelatihan, akurasi validasi adalah {said}.",
    "accuracy of": "{value} untuk {group}",
    "difference": "Pada {n} seed yang dimiliki keduanya, {second} berakhir dengan {column} {more} daripada {first}: "
    "selisihnya {mean} [{low}, {high}] (rata-rata pasangan, interval 95 %){open}.",
    "higher": "lebih tinggi",
    "lower": "lebih rendah",
    "open": "; karena 0 berada di dalam interval, seed ini belum memutuskannya",
    "overfits": "{group} mengalami overfitting: akurasi pelatihan berakhir {gap} di atas akurasi validasi.",
    "faster": "Setelah {epoch} epoch, loss pelatihan adalah {said}.",
    "way": "{group}: {what}; {said} ({over}).",
    "median": "median semua baris",
    "median of": "median semua baris, rata-rata {n} seed, dari {low} sampai {high}",
    "unknown": "perbandingan gradien lapisan pertama dengan lapisan tersembunyi terakhir tidak diketahui",
    "ratio times": "{first} memiliki sekitar {number} kali ({power}) norma gradien {last}",
    "ratio part": "{first} memiliki sekitar 1/{number} ({power}) dari norma gradien {last}",
    "ratio power": "{first} memiliki {power} kali norma gradien {last}",
    "ratio zero": "norma gradien {first} tepat 0",
    "ratio inf": "norma gradien {last} tepat 0, sedangkan norma gradien {first} tidak",
    "zero": "gradien tepat 0 di lapisan pertama",
    "vanishes": "gradien menghilang ke arah masukan (vanishing gradient)",
    "shrinks": "gradien mengecil ke arah masukan",
    "similar": "gradien di lapisan pertama kira-kira sebesar di lapisan tersembunyi terakhir",
    "grows": "gradien tidak menghilang: gradien membesar ke arah masukan",
    "found": "Diagnosis: {said}.",
    "found of": "{group} {kind} ({seeds})",
    "all seeds": "semua {n} seed",
    "the run": "satu pelatihan",
    "some seeds": "seed {seeds} dari {n} seed",
    "copies": "{share} gambar validasi memiliki salinan di data latih, sehingga akurasi validasi sebagian adalah "
    "hafalan ({group}).",
    "Metric comparison": "Perbandingan Metrik",
    "Simple graph": "Grafik Sederhana",
    "Brief analysis": "Analisis Singkat",
    "Hyper-parameters": "Konfigurasi Hyperparameter",
    "Findings": "Temuan",
    "Environment": "Lingkungan",
    "last epoch": "Epoch terakhir setiap pelatihan: rata-rata ± simpangan baku antar-seed, dengan interval 95 % "
    "dari rata-rata (Student).",
    "quantity": "besaran",
    "training accuracy": "akurasi pelatihan",
    "validation accuracy": "akurasi validasi",
    "training loss": "loss pelatihan",
    "validation loss": "loss validasi",
    "differs": "Huruf tebal: di mana eksperimen berbeda.",
    "setting": "pengaturan",
    "curves": "Akurasi dan loss per epoch",
    "curves read": "Garis adalah rata-rata seed selama semuanya berjalan, pita adalah interval 95 % dari rata-rata, "
    "garis tipis adalah tiap seed. Perhatikan apakah pita berpisah, dan di mana validasi meninggalkan pelatihan.",
    "heatmap": "Norma gradien, lapisan terhadap langkah",
    "heatmap read": "Satu baris per lapisan dengan masukan di atas, satu kolom per langkah; warna adalah log10 norma "
    "gradien terhadap keluaran lapisan, pada satu skala untuk semua. Gradien yang menghilang menjadi gelap ke atas.",
    "profile": "Norma gradien terhadap kedalaman",
    "profile read": "Median semua langkah untuk setiap lapisan, masukan di kiri. Garis yang turun ke kiri mengecil "
    "dalam perjalanan balik. Di sampingnya langkah pertama dibandingkan dengan teori inisialisasi, jika ada.",
    "group": "eksperimen",
    "finding": "temuan",
    "evidence": "bukti",
    "next": "langkah berikutnya",
    "made by": "Dibuat dengan",
    "in English": " (dalam bahasa Inggris)",
    "of evidence": " (bukti dan langkah berikutnya dalam bahasa Inggris)",
    "none": "tidak ada",
    "runs of many": "{runs} dari {groups}, dari {nets} jaringan.",
    "accuracy from": "Pada akhir pelatihan, akurasi validasi berada di antara {low} ({lowest}) dan {high} ({highest}).",
    "in settings": "pada {settings}, {what}",
    "kind in": "{kind} pada {settings}",
}  # fmt: skip

KINDS_INDONESIAN = {
    **{kind.name: kind.indonesian for kind in REGISTRY},
    "healthy": "sehat (healthy)",
    "undecided": "belum dapat diputuskan (undecided)",
}
SETTINGS_INDONESIAN = {
    "data": "data",
    "image_size": "ukuran gambar (piksel)",
    "split": "pembagian data",
    "val_fraction": "porsi validasi",
    "augment": "augmentasi",
    "recipe": "resep",
    "epochs": "epoch paling banyak",
    "patience": "kesabaran (early stopping)",
    "batch_size": "ukuran batch",
    "lr": "laju pembelajaran (lr)",
    "schedule": "jadwal lr",
    "init": "inisialisasi",
    "amp": "presisi campuran (amp)",
    "device": "perangkat",
    "every": "rekam setiap",
    "metrics": "metrik tambahan",
    "epochs trained": "epoch yang dilatih",
    "optimizer steps recorded": "langkah optimizer yang direkam",
    "layers recorded": "lapisan yang direkam",
    "parameters in them": "parameter di dalamnya",
    "data: classes": "data: kelas",
    "data: training images": "data: gambar latih",
    "data: validation images": "data: gambar validasi",
    "data: different pictures": "data: gambar yang berbeda",
    "data: exact copy files": "data: berkas salinan persis",
    "data: near copies": "data: salinan hampir sama",
    "data: validation share any copy in train": "data: porsi validasi dengan salinan di data latih",
    "device name": "nama perangkat",
    "recorded on": "direkam pada",
    "files": "berkas",
}

LANGUAGES: Mapping[str, Mapping[str, str]] = {
    "en": ENGLISH,
    "id": INDONESIAN
    | {f"kind {kind}": said for kind, said in KINDS_INDONESIAN.items()}
    | {f"row {name}": said for name, said in SETTINGS_INDONESIAN.items()},
}


def words_of(language: str) -> Mapping[str, str]:
    """Return the words of a language, with those by which the study is spoken of.

    Raises:
        ConfigError: It is not known.
    """
    if language not in LANGUAGES:
        raise ConfigError(f"unknown language {language!r}; expected one of {', '.join(LANGUAGES)}")
    return {**LANGUAGES[language], **study_words(language)}
