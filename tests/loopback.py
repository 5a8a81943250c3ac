"""HTTP servers in the process of a test, on this machine only."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler], end: Callable[[], Any] = lambda: None) -> Iterator[str]:
    """Answer requests in threads of this process; the URL. `end` is called before the server stops."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        end()
        server.shutdown()
        server.server_close()
        thread.join()
