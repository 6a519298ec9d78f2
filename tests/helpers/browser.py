"""Drives a page in a real browser, where the machine has one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--dump-dom")


def driven(page: Path, script: str, folder: Path, width: int) -> dict[str, Any]:
    """Opens a page in a window of a width, runs a script once it is loaded, and returns what that put in ``said``.

    Errors of any script of the page are in ``said.errors``, the pixels that it is wider than the window in
    ``said.wide``, and the resources that it fetched in ``said.loaded``. Without a browser the test is skipped.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    copy = folder / f"{page.stem}_{width}.html"
    early, late = BEFORE, AFTER.replace("@SCRIPT@", script)
    copy.write_text(page.read_text().replace("<head>", f"<head>{early}", 1) + late)
    done = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={folder}/profile", f"--window-size={width},900", copy.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return found


BEFORE = """<script>
window.said = {errors: []};
addEventListener("error", event => said.errors.push(`${event.message} (line ${event.lineno})`));
addEventListener("securitypolicyviolation", event => said.errors.push(event.violatedDirective));
</script>"""
AFTER = """
<script>
addEventListener("load", () => {
  try { @SCRIPT@ } catch (error) { said.errors.push(String(error)); }
  said.wide = document.documentElement.scrollWidth - innerWidth;
  said.loaded = performance.getEntriesByType("resource").length;
  document.title = JSON.stringify(said);
});
</script>
"""
