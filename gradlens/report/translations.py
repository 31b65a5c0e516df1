"""The words of a report in English and Indonesian; numbers and names come from the runs.

Every key of ``ENGLISH`` is a key of ``INDONESIAN`` with the same placeholders. Indonesian has further keys: ``kind``
and a name for kinds of findings, ``row`` and ``value`` likewise for the tables of settings.

"""

from __future__ import annotations

from collections.abc import Mapping

from gradlens.analysis.gradient_ratio import FATES, RATIOS
from gradlens.diagnosis.kinds import REGISTRY
from gradlens.errors import ConfigError
from gradlens.report.figures import figure_words
from gradlens.studies import study_words

ENGLISH: dict[str, str] = {
    "decimal mark": ".",
    "interval": "[{low}, {high}]",
    "range": "{low} to {high}",
    "not finite": "not finite",
    "part of values": "{mean} ({n} of {total})",
    "title": "Gradient report",
    "runs of settings": "{runs} of {groups}: {names}.",
    "runs of many settings": "{runs} of {groups} and {models}.",
    "unequal lengths": "The runs do not have the same length: {low} to {high}; each number is of a run's own end.",
    "running runs": "{runs} had not ended when this was written.",
    "interrupted runs": "{runs} interrupted before the end.",
    "failed runs": "{runs} failed before the end.",
    "one run": "one run",
    "runs": "{n} runs",
    "one setting": "one setting",
    "settings": "{n} settings",
    "one model": "one model",
    "models": "{n} models",
    "one seed": "one seed",
    "seeds": "{n} seeds",
    "one epoch": "1 epoch",
    "epochs": "{n} epochs",
    "one step": "1 step",
    "steps": "{n} steps",
    "final accuracy": "At the end, validation accuracy is {values}.",
    "accuracy range": "At the end, validation accuracy lies between {low} ({lowest}) and {high} ({highest}).",
    "value of group": "{value} for {group}",
    "difference": "Over the {n} common seeds, {second} ends {more} {column} than {first}: the mean difference of the "
    "pairs is {mean} [{low}, {high}] (95 % interval){inconclusive}.",
    "higher": "with higher",
    "lower": "with lower",
    "inconclusive": "; the interval contains 0, so these seeds are inconclusive",
    "overfits": "{group} overfits: training accuracy ends {gap} above validation accuracy.",
    "early loss": "After {epochs}, training loss is {values}.",
    "gradient of group": "{group}: {what}; {ratio} ({over}).",
    "gradient in settings": "in {settings}, {what}",
    "median over rows": "median over the rows",
    "median over rows, mean over seeds": "median over the rows, mean of {n} seeds from {low} to {high}",
    "numbered layer": "layer {name}",
    **FATES,
    **RATIOS,
    "diagnosis": "Diagnosis: {findings}.",
    "finding of group": "{group} {kind} ({seeds})",
    "kind in settings": "{kind} in {settings}",
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
    **figure_words("en"),
    "group": "experiment",
    "finding": "finding",
    "evidence": "evidence",
    "next": "next step",
    "made by": "Made by",
    "language of claims": "",
    "language of evidence": "",
    "none": "none",
}  # fmt: skip

INDONESIAN = {
    "decimal mark": ",",
    "interval": "[{low}; {high}]",
    "range": "{low} sampai {high}",
    "not finite": "tak hingga",
    "part of values": "{mean} ({n} dari {total})",
    "title": "Laporan gradien",
    "runs of settings": "{runs} dari {groups}: {names}.",
    "runs of many settings": "{runs} dari {groups} dan {models}.",
    "unequal lengths": "Panjang pelatihan tidak sama: {low} sampai {high}; setiap angka berasal dari akhir pelatihan "
    "masing-masing.",
    "running runs": "{runs} belum selesai ketika laporan ini ditulis.",
    "interrupted runs": "{runs} terhenti sebelum selesai.",
    "failed runs": "{runs} gagal sebelum selesai.",
    "one run": "satu pelatihan",
    "runs": "{n} pelatihan",
    "one setting": "satu pengaturan",
    "settings": "{n} pengaturan",
    "one model": "satu model",
    "models": "{n} model",
    "one seed": "satu seed",
    "seeds": "{n} seed",
    "one epoch": "1 epoch",
    "epochs": "{n} epoch",
    "one step": "1 langkah",
    "steps": "{n} langkah",
    "final accuracy": "Pada akhir pelatihan, akurasi validasi adalah {values}.",
    "accuracy range": "Pada akhir pelatihan, akurasi validasi berada di antara {low} ({lowest}) dan {high} "
    "({highest}).",
    "value of group": "{value} untuk {group}",
    "difference": "Pada {n} seed yang sama, {column} akhir {second} {more} daripada {first}: rata-rata selisih "
    "berpasangan adalah {mean} [{low}; {high}] (interval kepercayaan 95 %){inconclusive}.",
    "higher": "lebih tinggi",
    "lower": "lebih rendah",
    "inconclusive": "; interval ini memuat 0, sehingga belum dapat ditarik kesimpulan dari seed ini",
    "overfits": "{group} mengalami overfitting: akurasi pelatihan berakhir {gap} di atas akurasi validasi.",
    "early loss": "Setelah {epochs}, loss pelatihan adalah {values}.",
    "gradient of group": "{group}: {what}; {ratio} ({over}).",
    "gradient in settings": "pada {settings}, {what}",
    "median over rows": "median semua baris",
    "median over rows, mean over seeds": "median semua baris, rata-rata {n} seed, dari {low} sampai {high}",
    "numbered layer": "lapisan {name}",
    "unknown": "perbandingan gradien lapisan pertama dengan lapisan tersembunyi terakhir tidak diketahui",
    "ratio times": "norma gradien {first} sekitar {number} kali ({power}) norma gradien {last}",
    "ratio part": "norma gradien {first} sekitar 1/{number} ({power}) dari norma gradien {last}",
    "ratio power": "norma gradien {first} adalah {power} kali norma gradien {last}",
    "ratio zero": "norma gradien {first} tepat 0",
    "ratio inf": "norma gradien {last} tepat 0, sedangkan norma gradien {first} tidak",
    "zero": "gradien di lapisan pertama tepat 0",
    "vanishes": "terjadi vanishing gradient saat backpropagation: gradien menghilang menuju lapisan masukan",
    "shrinks": "gradien mengecil saat backpropagation menuju lapisan masukan",
    "similar": "gradien di lapisan pertama kira-kira sebesar di lapisan tersembunyi terakhir",
    "grows": "tidak terjadi vanishing gradient: gradien membesar saat backpropagation menuju lapisan masukan",
    "diagnosis": "Diagnosis: {findings}.",
    "finding of group": "{group} {kind} ({seeds})",
    "kind in settings": "{kind} pada {settings}",
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
    "last epoch": "Epoch terakhir setiap pelatihan: rata-rata ± simpangan baku antar-seed, dengan interval "
    "kepercayaan 95 % dari rata-rata (Student).",
    "quantity": "besaran",
    "training accuracy": "akurasi pelatihan",
    "validation accuracy": "akurasi validasi",
    "training loss": "loss pelatihan",
    "validation loss": "loss validasi",
    "differs": "Huruf tebal: nilai yang berbeda antar-eksperimen.",
    "setting": "pengaturan",
    **figure_words("id"),
    "group": "eksperimen",
    "finding": "temuan",
    "evidence": "bukti",
    "next": "langkah berikutnya",
    "made by": "Dibuat dengan",
    "language of claims": " (penjelasan, alasan dan catatan dalam bahasa Inggris)",
    "language of evidence": " (bukti dan langkah berikutnya dalam bahasa Inggris)",
    "none": "tidak ada",
}  # fmt: skip

KINDS_INDONESIAN = {
    **{kind.name: kind.indonesian for kind in REGISTRY},
    "healthy": "sehat (healthy)",
    "undecided": "belum dapat disimpulkan (undecided)",
}
SETTINGS_INDONESIAN = {
    "data": "data",
    "image_size": "ukuran gambar (piksel)",
    "split": "pembagian data",
    "val_fraction": "porsi validasi",
    "augment": "augmentasi",
    "recipe": "resep",
    "epochs": "jumlah epoch maksimum",
    "patience": "patience (early stopping)",
    "batch_size": "ukuran batch",
    "lr": "laju pembelajaran (learning rate)",
    "schedule": "jadwal laju pembelajaran",
    "weight_decay": "weight decay",
    "label_smoothing": "label smoothing",
    "init": "inisialisasi",
    "amp": "presisi campuran (amp)",
    "device": "perangkat",
    "workers": "proses pemuat data (workers)",
    "every": "rekam setiap (iterasi)",
    "metrics": "metrik tambahan",
    "on_nonfinite": "jika loss tak hingga (on_nonfinite)",
    "on_record_error": "jika perekaman gagal (on_record_error)",
    "skip_broken": "lewati gambar rusak (skip_broken)",
    "allow_outside": "izinkan gambar di luar folder tabel (allow_outside)",
    "epochs trained": "epoch yang dilatih",
    "optimizer steps recorded": "iterasi yang direkam",
    "layers recorded": "lapisan yang direkam",
    "parameters in them": "parameter di dalamnya",
    "seeds": "seed",
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
VALUES_INDONESIAN = {
    "yes": "ya",
    "no": "tidak",
    "none": "tidak ada",
    "complete": "selesai",
    "running": "sedang berjalan",
    "interrupted": "terhenti",
    "failed": "gagal",
}
"""Values in the tables of settings and environment that are words; all others are names and numbers."""

LANGUAGES: Mapping[str, Mapping[str, str]] = {
    "en": ENGLISH,
    "id": INDONESIAN
    | {f"kind {kind}": name for kind, name in KINDS_INDONESIAN.items()}
    | {f"row {english}": name for english, name in SETTINGS_INDONESIAN.items()}
    | {f"value {english}": name for english, name in VALUES_INDONESIAN.items()},
}


def words_of(language: str) -> Mapping[str, str]:
    """Return the words of a language, including those for the study.

    Args:
        language: "en" or "id".

    Raises:
        ConfigError: The language is unknown.
    """
    if language not in LANGUAGES:
        raise ConfigError(f"unknown language {language!r}; expected one of {', '.join(LANGUAGES)}")
    return {**LANGUAGES[language], **study_words(language)}
