"""The pages in a real browser: nothing is wider than the screen, nothing is loaded, light and dark are told apart.

Each page stands in a frame of the size of a screen; a script outside, which the page itself would not allow, measures.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import store_at
from tasks.report.publishing import make_page
from tasks.report.runs_page import runs_page
from tests.tasks.report.made_run import make_run
from tests.tasks.report.test_runs_page import record

BROWSER = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="chromium is not installed (Debian's package chromium)"),
]
SCREENS = {"desktop": (1280, 800), "phone": (390, 844)}
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=5000",
)
MEASURE = """
const measured = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement, own = frame.contentWindow;
  page.querySelectorAll("details").forEach(each => each.open = true);
  const beyond = [...page.querySelectorAll("body *")].filter(each =>
    each.getBoundingClientRect().right > root.clientWidth + 1 && !each.closest(".scroll"));
  measured[frame.id] = {
    width: root.clientWidth,
    scroll_width: root.scrollWidth,
    beyond: beyond.map(each => each.outerHTML.slice(0, 80)),
    verdict_ends: page.querySelector("h1").getBoundingClientRect().bottom,
    loaded: own.performance.getEntriesByType("resource").map(each => each.name).filter(name => !/^data:/.test(name)),
    background: own.getComputedStyle(page.body).backgroundColor,
    curves: [...page.querySelectorAll("svg.plot")].map(each => each.getBoundingClientRect().width),
    colours: [...page.querySelectorAll("svg.plot [style*=series-1]")].map(each => own.getComputedStyle(each).stroke),
    small: [...page.querySelectorAll("p, td, th, dd, dt, li, a, summary")]
      .filter(each => parseFloat(own.getComputedStyle(each).fontSize) < 12).map(each => each.outerHTML.slice(0, 80)),
  };
}
document.getElementById("measured").textContent = JSON.stringify(measured);
"""


def seen(page: str, folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """What the browser measured of the page on each screen."""
    content = html.escape(page, quote=True)
    frames = [
        f'<iframe id="{name}" width="{width}" height="{height}" srcdoc="{content}"></iframe>'
        for name, (width, height) in SCREENS.items()
    ]
    script = f'<pre id="measured"></pre><script>onload = () => {{ {MEASURE} }}</script>'
    around = folder / "around.html"
    around.write_text(
        f'<!doctype html><meta charset="utf-8"><style>iframe {{ border: 0 }}</style>{"".join(frames)}{script}'
    )
    command = [str(BROWSER), *QUIET, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", around.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    [found] = re.findall(r'<pre id="measured">(.*?)</pre>', done.stdout)
    measured: dict[str, dict[str, Any]] = json.loads(html.unescape(found))
    return measured


@pytest.fixture
def pages(tmp_path: Path) -> dict[str, str]:
    """A run's page with long words in it, and the comparison of many runs."""
    store = store_at(f"file://{tmp_path}/store")
    words = {"prompt": "W" * 300, "after": "https://" + "x" * 400, "before": "日本語" * 200, "champion": "a\n" * 30}
    error = "Traceback " + "/folder" * 60
    run = make_page(store, make_run(store, tmp_path, sample=words, error=error, config={"long": ["word"] * 60}))
    return {"run": run, "runs": runs_page("nightly", [record(number) for number in range(1, 10)], store.uri)}


@pytest.mark.parametrize("name", ["run", "runs"])
def test_a_page_fits_the_screen_and_loads_nothing(name: str, pages: dict[str, str], tmp_path: Path) -> None:
    measured = seen(pages[name], tmp_path)
    assert set(measured) == set(SCREENS)
    for screen, (width, height) in SCREENS.items():
        found = measured[screen]
        assert width - 20 <= found["width"] <= width
        assert (found["scroll_width"], found["beyond"]) == (found["width"], [])
        assert found["verdict_ends"] < height / 2
        assert found["loaded"] == []
        assert found["small"] == []
        assert len(found["curves"]) == {"run": 5, "runs": 5}[name]
        assert min(found["curves"]) >= 250


def test_a_page_suits_light_and_dark(pages: dict[str, str], tmp_path: Path) -> None:
    light = seen(pages["run"], tmp_path, "--blink-settings=preferredColorScheme=1")["phone"]
    dark = seen(pages["run"], tmp_path, "--blink-settings=preferredColorScheme=0")["phone"]

    def brightness(colour: str) -> float:
        return sum(map(float, re.findall(r"\d+", colour)[:3])) / 3

    assert brightness(light["background"]) > 200
    assert brightness(dark["background"]) < 50
    assert light["colours"]
    assert set(light["colours"]) != set(dark["colours"])
