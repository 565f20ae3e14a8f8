"""A Hugging Face hub on this machine: HEAD and GET of /OWNER/REPO/resolve/REVISION/FILE.

It answers as the real one does (huggingface_hub's documentation and what its client reads): a large
file is a redirect to another host, with its sha256 and size in X-Linked-ETag and X-Linked-Size; a
small one comes from the hub itself, with git's sha1 as ETag; errors are named by X-Error-Code.
"""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "c" * 40


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """What the server has, and what it was asked.

    Attributes:
        files: (repository, revision, file) -> its bytes.
        small: Of these, the files that are not stored as large ones.
        sent: (repository, revision, file) -> what is sent in place of its bytes.
        cut: Whether a connection ends halfway.
        refused: Repository -> (status, X-Error-Code).
        asked: (method, path, authorization) of every request.
        url: Where it is, once it runs.
    """

    def __init__(self):
        self.files, self.small, self.sent, self.refused = {}, set(), {}, {}
        self.cut = False
        self.asked, self.url = [], ""

    def gets(self):
        """How many requests asked for bytes of a file."""
        return sum(method == "GET" and "/resolve/" in path for method, path, _ in self.asked)

    @contextmanager
    def running(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def log_message(self, *_):
        pass

    def answer(self, with_body):
        hub, path = self.hub, self.path.removeprefix("/storage")
        hub.asked.append((self.command, self.path, self.headers.get("Authorization")))
        owner, name, _, revision, file = unquote_parts(path)
        repo = f"{owner}/{name}"
        if repo in hub.refused:
            return self.refuse(*hub.refused[repo])
        if repo not in {known for known, _, _ in hub.files}:
            return self.refuse(404, "RepoNotFound")
        if revision not in {known for of, known, _ in hub.files if of == repo}:
            return self.refuse(404, "RevisionNotFound")
        content = hub.files.get((repo, revision, file))
        if content is None:
            return self.refuse(404, "EntryNotFound")
        sent = hub.sent.get((repo, revision, file), content)
        large = file not in hub.small
        if large and not self.path.startswith("/storage"):
            self.send_response(302)
            self.send_header(
                "Location", hub.url.replace("127.0.0.1", "localhost") + "/storage" + path
            )
            self.send_header("X-Linked-ETag", f'"{sha256(content)}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("ETag", '"the-pointer"')
        else:
            self.send_response(200)
            self.send_header("ETag", '"the-storage"' if large else f'"{git_sha1(content)}"')
        self.send_header(
            "X-Repo-Commit", COMMIT if revision == "main" else sha256(revision.encode())[:40]
        )
        body = b"" if large and not self.path.startswith("/storage") else sent
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if hub.cut else body)

    def refuse(self, status, code):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def unquote_parts(path):
    """(owner, name, "resolve", revision, file) of a path."""
    parts = path.strip("/").split("/", 4)
    return [unquote(part) for part in parts] + [""] * (5 - len(parts))
