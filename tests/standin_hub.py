"""A stand-in for the model hub on the loopback interface: the requests by which huggingface_hub reads a repository."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from llm_sparsity.storage.files import sha256

COMMIT = "[0-9a-f]{40}"


class Hub:
    """One repository, `owner/name`, with its commits and pull requests.

    Args:
        commits: commit -> folder of its files.
        proposals: author and commits (newest first) of each pull request.

    Attributes:
        requests: the paths requested so far.
    """

    def __init__(self, commits: Mapping[str, Path], proposals: list[tuple[str, list[str]]]) -> None:
        self.commits, self.proposals = commits, proposals
        self.requests: list[str] = []

    def answer(self, path: str) -> Any:
        """The response to a request: a JSON value, or the path of a file; None for status 404."""
        self.requests.append(path)
        if path == "/api/models/owner/name/discussions":
            proposals = [
                {
                    "title": "Adding `safetensors` variant of this model", "num": number, "author": {"name": author},
                    "createdAt": "2024-01-01T00:00:00.000Z", "status": "open", "isPullRequest": True,
                    "repo": {"name": "owner/name", "type": "model"},
                }
                for number, (author, _) in enumerate(self.proposals, 1)
            ]  # fmt: skip
            return {"discussions": proposals, "count": len(proposals), "start": 0}
        if found := re.fullmatch(r"/api/models/owner/name/commits/refs/pr/(\d+)", path):
            facts = {"authors": [], "date": "2024-01-01T00:00:00.000Z", "title": "", "message": ""}
            return [{"id": commit, **facts} for commit in self.proposals[int(found[1]) - 1][1]]
        if path == "/api/models/owner/name":
            return self._revision(list(self.commits)[-1], tree=False)
        if found := re.fullmatch(rf"/api/models/owner/name/(?:revision|tree)/({COMMIT})", path):
            return self._revision(found[1], tree="/tree/" in path)
        if found := re.fullmatch(rf"/owner/name/resolve/({COMMIT})/([^/]+)", path):
            return self.commits[found[1]] / found[2]
        return None

    def _revision(self, commit: str, *, tree: bool) -> Any:
        """The files of a commit."""
        if commit not in self.commits:
            return None
        files = sorted(self.commits[commit].iterdir())
        if tree:
            return [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40} for file in files]
        return {"id": "owner/name", "sha": commit, "siblings": [{"rfilename": file.name} for file in files]}


@contextmanager
def serving(hub: Hub, cache: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve a hub until the block ends, as the one that huggingface_hub asks in this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = hub.answer(unquote(urlsplit(self.path).path))
            if answer is None or (isinstance(answer, Path) and not answer.is_file()):
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in self.path else "RevisionNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = answer.read_bytes() if isinstance(answer, Path) else json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            if isinstance(answer, Path):
                self.send_header("ETag", f'"{sha256(answer)}"')
                self.send_header("X-Repo-Commit", answer.parent.name)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # another test may have had it imported so
            patch.setattr("huggingface_hub.constants.ENDPOINT", address)
            template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
            yield
        finally:
            server.shutdown()
            thread.join()
