"""A real headless Chromium, and what it asked for over the network."""

import shutil
from contextlib import contextmanager

import pytest

TOUCH = "globalThis.touched"
"""What the scripts in hostile texts set; it must stay undefined."""
HOSTILE = f"<img src=x onerror='{TOUCH}=1'><script>{TOUCH}=1</script>$$\\alpha$$ {{{{7*7}}}}"


@contextmanager
def chromium():
    """Open a browser with one page of 1300 x 900 pixels, whose `requested` lists every URL that it asked for."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("neither chromium nor google-chrome is on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(15_000)
        page.requested, page.faults = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("websocket", lambda socket: page.requested.append(socket.url))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("dialog", lambda dialog: page.faults.append(dialog.message))
        yield page
        browser.close()
