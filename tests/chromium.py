"""A headless Chromium for tests: the system's, driven by Playwright; its requests are recorded."""

import os
import shutil
from contextlib import contextmanager

import pytest

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
REMEDY = "pip install playwright; apt-get install chromium-headless-shell (or set VLAA_CHROMIUM)"
# root needs the first; containers have a small /dev/shm
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage"]
SITE = "http://viewer.test"  # served by the test itself, never asked for on the network
WAIT_MS = 60_000  # the machine may be busy


def missing(what: str) -> None:
    """Fail in CI, where the browser's tests must run, and skip elsewhere."""
    said = f"{what} is missing: {REMEDY}"
    pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)


def program() -> str:
    """Return the path of a Chromium."""
    found = os.environ.get("VLAA_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), "")
    if not found:
        missing("a Chromium")
    return found


@contextmanager
def launched():
    """Start a browser for the tests of a module."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright")
    path = program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page, and everything that it must not do: requests, dialogs, errors, new pages."""

    def __init__(self, browser, allowed: str, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.context.set_default_timeout(WAIT_MS)
        self.page = self.context.new_page()
        self.asked, self.trouble = [], []
        self.page.on("request", lambda request: self._note(request.url, allowed))
        self.page.on("dialog", self._dismiss)
        self.page.on("pageerror", lambda error: self.trouble.append(f"error {error}"))
        self.page.on("popup", lambda page: self.trouble.append(f"popup {page.url}"))
        self.page.on("console", self._console)

    def _note(self, url: str, allowed: str) -> None:
        if not url.startswith((allowed, "data:image/", "blob:")):
            self.asked.append(url)

    def _dismiss(self, dialog) -> None:
        self.trouble.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def _console(self, message) -> None:
        if message.type == "error":
            self.trouble.append(f"console {message.text}")

    def hits(self) -> list:
        """Return what went wrong so far; an attack that ran sets `window.hit`."""
        ran = self.page.evaluate("'hit' in window ? [String(window.hit)] : []")
        return self.asked + self.trouble + ran


def alone(browser, script: str, style: str, **options) -> Watched:
    """Open an empty page that may do anything, with the viewer's script at hand."""
    watched = Watched(browser, SITE, **options)
    page = f"<!doctype html><meta charset=utf-8><link rel=stylesheet href={SITE}/viewer.css><body>"
    served = {"/": ("text/html", page), "/viewer.js": ("text/javascript", script),
              "/viewer.css": ("text/css", style)}  # fmt: skip

    def answer(route):
        path = route.request.url.removeprefix(SITE)
        if path not in served:
            return route.abort()
        kind, body = served[path]
        return route.fulfill(content_type=f"{kind}; charset=utf-8", body=body)

    watched.context.route("**/*", answer)
    watched.page.goto(f"{SITE}/")
    return watched
