from __future__ import annotations

import http.server
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from spikecl.data import library


@pytest.fixture
def arrays():
    """Valid arrays: 6 + 3 samples of 4x4 bytes, 3 classes."""
    values = np.arange(9 * 16, dtype=np.uint8).reshape(9, 4, 4)
    return {
        "x_train": values[:6],
        "y_train": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "x_test": values[6:],
        "y_test": np.array([0, 1, 2], np.uint8),
    }


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user's and no SPIKECL_DATA."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(library, "cache_dir", lambda: folder)
    monkeypatch.delenv("SPIKECL_DATA", raising=False)
    return folder


@pytest.fixture
def files():
    """Official files by their place below the address, which a test fills."""
    return {}


@pytest.fixture
def lengths():
    """Content lengths that the server claims instead of the true ones."""
    return {}


@pytest.fixture
def server(files, lengths, monkeypatch):
    """A loopback server of the files; ``.asked`` lists the names asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/data/")
            httpd.asked.append(name)
            if name not in files:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(lengths.get(name, len(files[name]))))
            self.end_headers()
            return self.wfile.write(files[name])

        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.asked = []
        httpd.url = f"http://127.0.0.1:{httpd.server_port}/data/"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture
def real_folder():
    """The folder of the real files."""
    folder = os.environ.get("SPIKECL_DATA")
    if not folder:
        pytest.skip("SPIKECL_DATA is not set")
    return Path(folder)
