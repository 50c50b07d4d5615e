"""Take the pictures of the page on the viewer from two stores, with Chromium.

posttrace run knowledge --store runs/cities --set sets=[cities] --set max_pairs=4
posttrace run refusal --set direction_prompts=8 --set validation_prompts=4 --set test_prompts=6
python docs/examples/viewer_pictures.py runs/cities runs/refusal docs/images
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright


def take(knowledge: str, refusal: str, folder: str) -> None:
    """Take one picture of a pair's map, and one of answers side by side."""
    command = [sys.executable, "-m", "posttrace", "view", knowledge, refusal, "--port", "0", "--no-browser"]
    viewer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        found = re.search(r"http\S+", viewer.stdout.readline())
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1150, "height": 640})
            page.goto(found.group())
            choose(page, "target", "instruct")
            box = page.locator("canvas").first.bounding_box()
            page.mouse.move(box["x"] + 0.577 * box["width"], box["y"] + 0.456 * box["height"])
            save(page, Path(folder) / "viewer-pair.png")
            page.mouse.move(0, 0)
            choose(page, "Store", refusal)
            choose(page, "direction", "instruct")
            choose(page, "intervention", "ablation")
            save(page, Path(folder) / "viewer-answers.png")
            browser.close()
    finally:
        viewer.terminate()


def choose(page: Page, label: str, option: str) -> None:
    """Choose an option of a list, and wait until it is drawn."""
    page.get_by_label(label, exact=True).select_option(label=option)
    page.wait_for_timeout(1500)


def save(page: Page, file: Path) -> None:
    """Save the page with few colours, which keeps the file small."""
    page.wait_for_timeout(500)
    page.screenshot(path=file)
    Image.open(file).convert("RGB").quantize(96).save(file, optimize=True)


if __name__ == "__main__":
    take(*sys.argv[1:])
