"""Files of figures: named after their runs, written atomically, each with a JSON file that says how it was made."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gradlens.atomic import whole_file, write_errors, write_text
from gradlens.errors import RunExistsError
from gradlens.format import file_name, to_json, visible
from gradlens.plots.style import Look, house_style
from gradlens.provenance import commit, versions
from gradlens.run import Run, jsonable
from gradlens.specs import check_figure_path

FIGURES = Path("figures")
DPI = 200
"""Sharp enough for print at column width."""


def figure_name(kind: str, runs: Sequence[Run], *details: str) -> Path:
    """Return the default path of a figure: ``figures/heatmap-plain34-s0.png``; details come after the kind."""
    names = [run.name for run in runs]
    if len(names) > 3:
        models = list(dict.fromkeys(run.model or run.name for run in runs))
        names = [*models[:4], f"{len(runs)}-runs"]
    return FIGURES / f"{'-'.join([kind, *details, file_name('-'.join(names))])}.png"


def save_figure(
    figure: Figure,
    path: Path,
    *,
    command: str,
    runs: Sequence[Run],
    caption: str = "",
    asked: bool = True,
    look: Look | None = None,
) -> None:
    """Write a figure, and a JSON file of the same name with the command, the runs, the versions and the commit.

    Args:
        figure: The figure.
        path: The file; its ending sets the format: .png, .svg or .pdf.
        command: The command that drew it.
        runs: The runs in the figure.
        caption: The caption for the JSON file and the metadata.
        asked: Whether the user named this file, which allows any file to be replaced; otherwise only a figure that
            gradlens wrote is replaced.
        look: The look that the figure was drawn with.

    Raises:
        ConfigError: The ending is unknown.
        RunExistsError: A file that gradlens did not write has this name.
        RunFileError: The file cannot be written.
    """
    check_figure_path(path)
    facts = path.with_suffix(".json")
    if not asked and path.exists() and not facts.exists():
        raise RunExistsError(f"{path} is there and was not drawn by gradlens", tip="choose another name with -o FILE")
    check_facts_place(facts)
    with write_errors(f"{path} cannot be written"):
        with whole_file(path) as temporary, open(temporary, "wb") as file, house_style(look):
            figure.savefig(file, dpi=DPI, metadata=_metadata(path, command, runs, caption), **_options(path))
        write_text(facts, to_json(figure_facts(path, command, runs, caption)) + "\n")


def check_facts_place(facts: Path) -> None:
    """Check that the JSON file of a figure may be written: the user named the figure, not the JSON file.

    Args:
        facts: The JSON file.

    Raises:
        RunExistsError: The file exists and gradlens did not write it.
    """
    if not facts.exists():
        return
    try:
        content = json.loads(facts.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not (isinstance(content, dict) and {"figure", "command", "versions"} <= content.keys()):
        raise RunExistsError(
            f"{facts} is there and was not written by gradlens", tip="choose another name with -o FILE"
        )


def _options(path: Path) -> dict[str, Any]:
    """Return the options of ``savefig``; a PNG is compressed quickly, which makes it about a tenth larger."""
    ending = path.suffix.lower().removeprefix(".")
    return {"format": ending} | ({"pil_kwargs": {"compress_level": 3}} if ending == "png" else {})


def _metadata(path: Path, command: str, runs: Sequence[Run], caption: str) -> dict[str, Any]:
    """Return the metadata inside the file: caption, command and runs, of which XML takes no hidden character."""
    texts = caption or path.stem, command, ", ".join(run.path.name for run in runs)
    title, command, names = map(visible, texts)
    if path.suffix.lower() == ".png":
        return {"Title": title, "Description": command, "Source": names, "Software": "gradlens"}
    if path.suffix.lower() == ".svg":
        return {"Title": title, "Description": command, "Source": names, "Creator": "gradlens", "Date": None}
    return {"Title": title, "Subject": command, "Keywords": names, "Creator": "gradlens", "CreationDate": None}


def figure_facts(path: Path, command: str, runs: Sequence[Run], caption: str) -> dict[str, Any]:
    """Return the content of the JSON file of a figure."""
    return {
        "figure": path.name,
        "caption": caption,
        "command": command,
        "drawn": time.strftime("%Y-%m-%d"),
        "runs": [_run_facts(run) for run in runs],
        "versions": versions(),
        "commit": commit(),
    }


def _run_facts(run: Run) -> dict[str, Any]:
    finals = {name: round(float(values[-1]), 6) for name, values in run.epochs.items() if len(values)}
    facts = {
        "file": run.path.name,
        "model": run.model,
        "seed": run.seed if run.seed >= 0 else None,
        "status": run.status,
        "rows": len(run.steps),
        "last_epoch": finals,
        "config": dict(run.config),
        "environment": run.info.get("environment", {}),
    }
    return dict(json.loads(jsonable(facts)))
