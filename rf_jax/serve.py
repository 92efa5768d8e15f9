"""Serve a model: `python -m rf_jax.serve --workdir=runs/conversations --port=8000`.

The interface is that of OpenAI's API: /v1/chat/completions, /v1/images/generations and
/v1/images/edits. http://127.0.0.1:8000/ is a page to try it. Needs `pip install -e '.[serve]'`.
"""

import socket

from absl import flags, logging

from rf_jax.evaluation import scoring
from rf_jax.generation import inputs
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import cli, model_flags, paths
from rf_jax.runtime.errors import UserError

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of the run.')
_STEP = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', 0
)
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to bind to; 0.0.0.0: all of them.')
_PORT = flags.DEFINE_integer('port', 8000, 'Port; 0: any that is free.', 0, 65535)
_KEY = flags.DEFINE_string('api_key', '', 'Key that clients must send; none by default.')
_NAME = flags.DEFINE_string('model', '', 'Name of the model; that of the workdir by default.')
_ROWS = flags.DEFINE_integer('rows', 32, 'Conversations answered at once.', 1, 1024)
_WAITING = flags.DEFINE_integer('waiting', 256, 'Most answers and images in line.', 8)
_SIZE = flags.DEFINE_multi_string(
    'size', [], 'HEIGHTxWIDTH of images that can be generated; several times for several.'
)
_BODY = flags.DEFINE_integer('max_body', 20_000_000, 'Bytes of a request.', 1)
_PIXELS = flags.DEFINE_integer('max_pixels', 16_000_000, 'Pixels of an image in a request.', 1)
_SECONDS = flags.DEFINE(cli.Finite(0), 'timeout', 300.0, 'Seconds that a request may take.')
_PLACEMENT, _SAMPLING = model_flags.placement(), model_flags.sampling()


def main(argv):
    del argv
    try:
        import uvicorn

        from rf_jax.serving import api
        from rf_jax.serving.server import Limits, Server
        from rf_jax.serving.worker import Worker
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install -e '.[serve]'") from None
    sampler = Sampler.load(_WORKDIR.value, _STEP.value, **_PLACEMENT(), **_SAMPLING())
    worker = Worker(sampler, _ROWS.value, _WAITING.value)
    limits = Limits(_BODY.value, _PIXELS.value, _SECONDS.value)
    name = _NAME.value or paths.absolute(paths.anywhere(_WORKDIR.value, '--workdir')).name
    draws = scoring.generates(sampler.config)
    server = Server(worker, name, _sizes(sampler), draws, _KEY.value, limits)
    listening = _bind(_HOST.value, _PORT.value)
    logging.info('Compiling for %d conversations at once', _ROWS.value)
    worker.warm_up(server.sizes, draws, server.chats)
    logging.info('All programs are compiled; nothing is compiled from here on')
    worker.start()
    host, port = listening.getsockname()[:2]
    logging.info('Serving %s at http://%s:%d', name, host, port)
    config = uvicorn.Config(
        api.app(server),
        log_level='warning',
        timeout_keep_alive=30,
        timeout_graceful_shutdown=20,
    )
    try:
        uvicorn.Server(config).run([listening])
    finally:
        worker.close()


def _bind(host: str, port: int) -> socket.socket:
    """A socket, bound before minutes of compilation. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        raise UserError(f'--host={host} --port={port}: {error.strerror or error}') from None
    return found


def _sizes(sampler: Sampler) -> list[tuple[int, int]]:
    """(height, width) of the flags, checked; a square of the largest training size without any."""
    found = [inputs.parsed_size(text) for text in _SIZE.value]
    for size in found:
        inputs.check_size(sampler.config, *size)
    return found or [inputs.largest_square(sampler.config)]


if __name__ == '__main__':
    cli.run(main, required=['workdir'])
