"""A hub on loopback: what `huggingface_hub` asks of one, with faults to inject."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

PREFIX = "/api/datasets/UCSC-VLAA/VLAA-Thinking"
COMMIT, OTHER = "1" * 40, "2" * 40


class Hub:
    """The release: files by name, revisions, the names of files served, and faults.

    Attributes:
        faults: path -> list of faults, each used up by one request for that file: an int is a
            status, bytes are served instead of the file's.
        listing_fault: (status, headers, body) of the answer to every question about the repository.
        listing_changes: path -> keys of its row in the listing that a hostile hub changes.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files, self.faults, self.downloads = files, {}, []
        self.revisions = {"main": COMMIT, COMMIT: COMMIT, "old": OTHER, OTHER: OTHER}
        self.listing_fault, self.listing_changes = None, {}
        self.chunked = False  # say no length: a body goes on until the connection ends

    def siblings(self) -> list[dict]:
        """Return the listing: git's sha1 for texts, sha256 for what is in LFS."""
        rows = []
        for name, data in self.files.items():
            row = {"rfilename": name, "size": len(data)}
            row["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if not name.endswith(".md"):
                digest = hashlib.sha256(data).hexdigest()
                row["lfs"] = {"size": len(data), "sha256": digest, "pointerSize": 130}
            rows.append(row | self.listing_changes.get(name, {}))
        return rows


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        """Say what a file is, as the hub does: commit, digest, size."""
        name = unquote(urlsplit(self.path).path).split("/resolve/")[1].partition("/")[2]
        (row,) = (row for row in self.hub.siblings() if row["rfilename"] == name)
        digest = row["lfs"]["sha256"] if "lfs" in row else row["blobId"]
        headers = {"X-Repo-Commit": self.hub.revisions["main"], "ETag": f'"{digest}"'}
        self.answer(200, headers, self.hub.files[name], keep=0)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api"):
            return self.describe(path)
        name = path.split("/resolve/")[1].partition("/")[2]
        self.hub.downloads.append(name)
        fault = self.hub.faults[name].pop(0) if self.hub.faults.get(name) else self.hub.files[name]
        return self.answer(fault) if isinstance(fault, int) else self.answer(200, {}, fault)

    def describe(self, path):
        if not path.startswith(PREFIX):
            return self.answer(404)
        if self.hub.listing_fault:
            return self.answer(*self.hub.listing_fault)
        revision = path.removeprefix(PREFIX).removeprefix("/revision/")
        if revision not in self.hub.revisions:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        about = {"id": "UCSC-VLAA/VLAA-Thinking", "sha": self.hub.revisions[revision]}
        return self.answer(200, {}, json.dumps(about | {"siblings": self.hub.siblings()}).encode())

    def answer(self, status, headers=None, body=b"", keep=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status != 200 or keep is not None or not self.hub.chunked:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:keep])
        self.close_connection = True


@contextmanager
def serve(files: dict[str, bytes]):
    """Serve a release on loopback; yields its Hub, with `url`."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
