"""Notebook 06 in JupyterLab: open it, run it, filter, step, and read the selection back."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

import chromium
from vlaa_lib import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.notebooks, pytest.mark.slow]
NOTEBOOK = "06_sft_vs_rl_traces.ipynb"
WAIT_S = 300  # for a server, a kernel or all cells; the machine may be busy
NEWS = "@jupyterlab/apputils-extension:announcements"  # asks whether to fetch news
# the page says that it is idle before the notebook has its kernel; only this is sure
READY = """async () => {
  await jupyterapp.restored;
  const context = jupyterapp.shell.currentWidget.context.sessionContext;
  await jupyterapp.shell.currentWidget.revealed;
  await context.ready;
  await context.session.kernel.info;
}"""
COUNTS = """async () => {
  await jupyterapp.commands.execute("notebook:run-all-cells");
  const cells = [...jupyterapp.shell.currentWidget.content.model.cells];
  return cells.filter((cell) => cell.type === "code").map((cell) => cell.executionCount);
}"""
ASK = """async (code) => {
  const kernel = jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
  const future = kernel.requestExecute({ code });
  let said = "";
  future.onIOPub = (message) => {
    if (message.header.msg_type === "stream") said += message.content.text;
  };
  const reply = await future.done;
  return reply.content.status === "ok" ? said : JSON.stringify(reply.content);
}"""


@contextmanager
def jupyter_lab(folder: Path):
    """Start JupyterLab on loopback with settings of its own; yield its address."""
    pytest.importorskip("jupyterlab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    homes = {key: folder / key.lower() for key in (
        "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    for home in homes.values():
        home.mkdir()
    settings = homes["JUPYTER_CONFIG_DIR"] / "labconfig" / "page_config.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"disabledExtensions": {NEWS: True}}), encoding="utf-8")
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=test",
        f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly",
    ]
    env = os.environ | {key: str(home) for key, home in homes.items()}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (folder / "server.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        try:
            wait_for(f"{base}/api?token=test", server, folder / "server.log")
            yield base
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:  # it has nothing to save
                server.kill()
                server.wait()


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")


def copied(folder: Path, run_dir: Path) -> None:
    """Copy the notebook with the parameters of a finished run in it."""
    notebook = json.loads((ROOT / "notebooks" / NOTEBOOK).read_text(encoding="utf-8"))
    cell = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    cell["source"] = f"profile = 'smoke'\nrun_dir = {str(run_dir)!r}"
    (folder / NOTEBOOK).write_text(json.dumps(notebook), encoding="utf-8")


def test_notebook_06_in_jupyterlab(request, tmp_path):
    with chromium.launched() as browser:  # first: without one, no run is made for nothing
        copied(tmp_path, request.getfixturevalue("smoke_run"))
        look_at(browser, tmp_path)


def look_at(browser, folder: Path) -> None:
    with jupyter_lab(folder) as base:
        found = chromium.Watched(browser, base)
        found.context.set_default_timeout(WAIT_S * 1000)
        page = found.page
        page.goto(f"{base}/doc/tree/{NOTEBOOK}?token=test&reset")
        page.wait_for_function("'jupyterapp' in window && jupyterapp.shell.currentWidget")
        page.evaluate(READY)
        counts = page.evaluate(COUNTS)
        assert counts == list(range(1, len(counts) + 1)), "every cell ran, in order"

        viewer = page.locator(".vlaa-traces").first  # the second shows groups of rollouts
        viewer.locator(".column").first.wait_for()
        assert viewer.locator(".column").count() == 4
        sheet = viewer.locator(".sheet img")
        sheet.wait_for()
        assert sheet.evaluate("(image) => image.naturalWidth") > 50
        everything = page.evaluate(ASK, "print(len(viewer.shown))")
        viewer.locator(".filters select").first.select_option("locate")
        ids = page.evaluate(ASK, "print(*viewer.shown)").split()
        assert 1 < len(ids) < int(everything) and all("locate" in one for one in ids)
        viewer.locator(".overview button").first.click()
        page.keyboard.press("ArrowRight")  # JupyterLab has its own use for arrows
        assert ids[1] in viewer.locator(".status").inner_text()
        assert page.evaluate(ASK, "print(viewer.selected, viewer.example['source'])").split() == [
            ids[1], "locate"]
        page.evaluate(ASK, "viewer.selected = viewer.shown[-1]")  # and the other way
        viewer.locator(".status").get_by_text(ids[-1]).wait_for()
        viewer.locator(".sheet img").wait_for()
        page.get_by_role("button", name="Answer again").click()  # a model answers, now
        page.locator(".widget-output .vlaa-traces .column").wait_for()
        shot = folder / "viewer.png"
        viewer.screenshot(path=shot)
        assert shot.stat().st_size > 10_000
        assert not [url for url in found.asked if url.startswith("http")], "no request leaves"
        assert not found.trouble, "a dialog, a popup, or an error of the page or on its console"
        found.context.close()
