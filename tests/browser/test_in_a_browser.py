"""The widgets of the stored notebooks in JupyterLab, clicked by a real headless browser. `make
browser` runs it (needs Debian's chromium); screenshots are left in the folder that WMPO_SCREENSHOTS
names.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from wmpo_lite.report.notebooks import FOLDER

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs the `browser` extra; `make browser` installs it"
)
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.notebook,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium found; Debian: apt-get install chromium"
    ),
]


def until(source: Path, marker: str, target: Path) -> None:
    """A copy of a stored notebook that ends with its first code cell that holds `marker`, without
    outputs.
    """
    notebook = nbformat.read(source, as_version=4)
    last = next(
        i
        for i, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and marker in cell.source
    )
    notebook.cells = [cell for cell in notebook.cells[: last + 1] if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, target)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A running JupyterLab; gives (its address, its folder)."""
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "WMPO_STATIC"}
    environment |= {
        "WMPO_PROFILE": "smoke",
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--IdentityProvider.token=",
            "--ServerApp.password=",
            f"--ServerApp.root_dir={folder}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(120):
        time.sleep(0.5)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield f"http://127.0.0.1:{port}", folder
    server.terminate()
    server.wait(timeout=20)


@pytest.fixture(scope="module")
def page():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1200, "height": 1000})
        browser.close()


def screenshot(page, name: str) -> None:
    folder = os.environ.get("WMPO_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def run_all(page, address: str, name: str) -> None:
    page.goto(f"{address}/lab/tree/{name}?reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", state="attached", timeout=120_000)
    page.wait_for_timeout(3000)  # the kernel is connecting
    page.get_by_text("Run", exact=True).first.click(timeout=30_000)
    page.get_by_text("Run All Cells", exact=True).first.click(timeout=30_000)


@pytest.mark.parametrize("name", ["01_data_collection", "04_imagined_rollouts"])
def test_driving_reacts_to_clicks_and_keys(lab, page, name):
    address, folder = lab
    until(FOLDER / f"{name}.ipynb", "drive(", folder / f"{name}.ipynb")
    run_all(page, address, f"{name}.ipynb")
    pad = page.locator(".wmpo-pad").first
    pad.wait_for(timeout=300_000)
    pad.scroll_into_view_if_needed()
    seen = lambda: (
        pad.locator("img").get_attribute("src"),
        pad.locator(".wmpo-caption").inner_text(),
    )

    def changed(act):
        """What the pad shows after `act`, once it differs."""
        before = seen()
        act()
        for _ in range(200):
            if seen()[1] != before[1]:
                break
            page.wait_for_timeout(100)
        picture, caption = seen()
        assert caption != before[1] and picture != before[0], (before[1], caption)
        return caption

    steps = lambda caption: int(re.search(r"step (\d+) of", caption).group(1))
    assert steps(seen()[1]) == 0
    screenshot(page, f"{name}_before")
    hold = steps(changed(lambda: pad.locator("button[data-press=right]").click()))
    assert hold >= 1
    assert steps(changed(lambda: pad.locator("button[data-press=near]").click())) == 2 * hold
    assert steps(changed(lambda: pad.press("ArrowDown"))) == 3 * hold
    assert "gripper closed" in changed(lambda: pad.press(" "))
    assert steps(changed(lambda: pad.press("s"))) == 5 * hold
    screenshot(page, f"{name}_after")
    assert steps(changed(lambda: pad.press("r"))) == 0


def test_sliders_redraw(lab, page):
    address, folder = lab
    name = "03_reward_model"
    until(FOLDER / f"{name}.ipynb", "explore(", folder / f"{name}.ipynb")
    run_all(page, address, f"{name}.ipynb")
    handle = page.locator(".widget-slider .noUi-handle").first
    handle.wait_for(timeout=300_000)
    handle.scroll_into_view_if_needed()
    image = page.locator(".widget-vbox img, .jp-OutputArea-output .widget-output img").last
    image.wait_for(timeout=60_000)
    before = image.get_attribute("src")
    handle.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    for _ in range(100):
        if image.get_attribute("src") != before:
            break
        page.wait_for_timeout(100)
    assert image.get_attribute("src") != before
    screenshot(page, f"{name}_slider")
