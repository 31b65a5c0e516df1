"""What the page does in a browser: it opens, draws, answers to mouse and keys, prints; no text of a run ever runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradlens import read_run
from gradlens.report import collect
from gradlens.report.html import make_page
from tests.conftest import SAMPLE
from tests.report.browser import CHROMIUM, Browser
from tests.report.hostile import ATTACK, write_hostile

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def write(folder: Path, *runs: Path) -> Path:
    page = folder / "page.html"
    page.write_text(make_page(collect([read_run(run) for run in runs], command="gradlens report")), encoding="utf-8")
    return page


def pair(make_run) -> list[Path]:
    return [make_run(f"{model}-s{s}", model=model, seed=s, steps=60) for model in ("plain8", "resnet8") for s in (0, 1)]


def colours_in(path: Path, box: tuple[float, float, float, float]) -> int:
    x, y, width, height = box
    image = Image.open(path).convert("RGB").crop((int(x), int(y), int(x + width), int(y + height)))
    return len(np.unique(np.asarray(image).reshape(-1, 3), axis=0))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_the_texts_of_a_hostile_run_stay_texts(browser: Browser, width: int, dark: bool, tmp_path: Path) -> None:
    page = write(tmp_path, *(write_hostile(tmp_path / f"h-s{seed}.h5", seed) for seed in (0, 1)))
    browser.messages.clear()
    browser.open(page, width=width, dark=dark)
    assert ATTACK in browser.ask("document.body.innerText")
    assert browser.ask("document.scripts.length") == 3
    assert browser.ask("document.images.length") == 0
    assert browser.ask("document.documentElement.scrollWidth") <= width
    x, y, w, h = browser.place("#left")
    browser.mouse("mouseMoved", x + 0.6 * w, y + 0.05 * h)
    browser.wait(200)
    assert ATTACK in browser.ask("document.getElementById('readout').innerText")
    assert ATTACK in browser.ask("document.querySelector('#left .bubble').innerText")
    assert browser.ask("document.querySelector('#left .bubble').querySelectorAll('script, img').length") == 0
    assert browser.complaints == []


def test_a_page_opens_and_paints_its_heatmaps_at_once(browser: Browser, make_run, tmp_path: Path) -> None:
    browser.messages.clear()
    browser.open(write(tmp_path, SAMPLE, *pair(make_run)))
    assert int(browser.ask("document.documentElement.dataset.ready")) < 5000  # a slow machine; about 700 on an idle one
    for name in ("left", "right"):
        box = browser.place(f"#{name}")
        browser.picture(tmp_path / "a.png", whole=False)
        left, top, width, height = box
        assert colours_in(tmp_path / "a.png", (left + 0.5 * width, top + 0.5 * height, 0.3 * width, 0.25 * height)) > 10
    assert browser.complaints == []


def test_pointing_tells_layer_step_and_value(browser: Browser, make_run, tmp_path: Path) -> None:
    browser.open(write(tmp_path, *pair(make_run)))
    x, y, w, h = browser.place("#left")
    browser.mouse("mouseMoved", x + 0.6 * w, y + 0.4 * h)
    browser.wait(300)
    layer, step, value = browser.ask("document.querySelector('#left .bubble').innerText").split("\n")
    run = read_run(Path("runs/plain8-s0.h5"))
    row = int(step.split(",")[0].removeprefix("step "))
    column = [one.name for one in run.layers].index(layer)
    assert float(value) == pytest.approx(run.metric("activation_grad_norm")[row, column], rel=0.01)
    readout = browser.ask("document.getElementById('readout').innerText").split("\n")
    assert readout[0] == f"plain8, seed 0: {layer}, {step}: {value}"
    assert readout[1].startswith(f"resnet8, seed 0: {layer}, {step}: ")


def test_dragging_chooses_steps_and_escape_shows_all(browser: Browser, make_run, tmp_path: Path) -> None:
    browser.open(write(tmp_path, *pair(make_run)))
    x, y, w, h = browser.place("#left")
    browser.drag((x + 0.45 * w, y + 0.4 * h), (x + 0.75 * w, y + 0.4 * h))
    first, last = browser.ask("[+document.getElementById('from').value, +document.getElementById('to').value]")
    assert 0 < first < last < 59
    assert browser.ask("document.getElementById('step').min") == str(first)
    browser.ask("document.getElementById('left').focus()")
    browser.press("Escape")
    assert browser.ask("[document.getElementById('from').value, document.getElementById('to').value]") == ["0", "59"]


def test_arrow_keys_move_the_cursor(browser: Browser, make_run, tmp_path: Path) -> None:
    browser.open(write(tmp_path, *pair(make_run)))
    browser.ask("document.getElementById('right').focus()")
    place = "[document.getElementById('step').value, document.getElementById('layer-value').textContent]"
    assert browser.ask(place) == ["0", "stage0.0"]
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    assert browser.ask(place) == ["1", "stage0.1"]
    browser.press("ArrowRight", shift=True)
    assert browser.ask(place) == ["11", "stage0.1"]
    browser.press("End")
    browser.press("ArrowUp")
    browser.press("ArrowUp")
    assert browser.ask(place) == ["59", "stage0.0"]
    assert "stage0.0, step 59" in browser.ask("document.getElementById('readout').innerText")


def test_metric_and_runs_can_be_changed(browser: Browser, make_run, tmp_path: Path) -> None:
    browser.messages.clear()
    browser.open(write(tmp_path, *pair(make_run)))
    choose = (
        "(() => {{ const it = document.getElementById('{}'); it.value = '{}';"
        "it.dispatchEvent(new Event('change')); }})()"
    )
    browser.ask(choose.format("metric", "update_ratio"))
    assert "1.00e-3" in browser.ask("document.getElementById('readout').innerText")
    browser.ask(choose.format("run-left", "1"))
    assert browser.ask("document.getElementById('left-title').textContent") == "plain8, seed 1"
    browser.ask(choose.format("run-right", "-1"))
    assert browser.ask("document.getElementById('right-figure').hidden")
    browser.ask("document.getElementById('per-element').click()")
    assert browser.complaints == []


def test_a_page_prints_with_its_figures(browser: Browser, make_run, tmp_path: Path) -> None:
    browser.open(write(tmp_path, *pair(make_run)), dark=True)
    browser.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.wait(300)
    box = browser.place("#left")
    browser.picture(tmp_path / "a.png", whole=False)
    assert np.median(np.asarray(Image.open(tmp_path / "a.png").convert("L"))) == 255
    assert colours_in(tmp_path / "a.png", box) > 10
    assert browser.ask("getComputedStyle(document.querySelector('.controls')).display") == "none"
