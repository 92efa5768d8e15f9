"""What all routes share: the model's worker, limits, bodies, and what comes of jobs."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request

from rf_jax.serving.errors import ApiError, invalid
from rf_jax.serving.metrics import Metrics
from rf_jax.serving.sent_images import SentImages
from rf_jax.serving.worker import Job, Worker


@dataclass
class Limits:
    """`body` in bytes, `pixels` of one image, `seconds` of one request."""

    body: int = 20_000_000
    pixels: int = 16_000_000
    seconds: float = 300.0


@dataclass
class Server:
    """What the routes share. `sizes` (height, width) of the images that can be generated; `draws`:
    the model generates images.
    """

    worker: Worker
    model: str
    sizes: Sequence[tuple[int, int]]
    draws: bool = True
    key: str = ''
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    sent: SentImages = field(default_factory=SentImages)

    @property
    def sampler(self):
        """Of the worker."""
        return self.worker.sampler

    def size(self, given: tuple[int, int] | None) -> tuple[int, int]:
        """A size that is served. Raises ApiError."""
        if given is None:
            return self.sizes[0]
        if given not in self.sizes:
            known = ', '.join(f'{width}x{height}' for height, width in self.sizes)
            raise invalid('size', f'size={given[1]}x{given[0]} is not served; sizes: {known}')
        return given


async def read_body(server: Server, request: Request) -> bytes:
    """The body, read only up to the limit. Raises ApiError."""
    found = bytearray()
    most = server.limits.body
    declared = request.headers.get('content-length', '0')
    async for piece in request.stream() if int(declared or 0) <= most else _nothing():
        found += piece
        if len(found) > most:
            break
    if int(declared or 0) > most or len(found) > most:
        raise ApiError(413, f'the body is larger than {most} bytes', code='body_too_large')
    return bytes(found)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b''


async def read_json(server: Server, request: Request):
    data = await read_body(server, request)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise invalid(None, 'the body is not valid JSON') from None


def queue_of(count: int):
    """(queue, give of each of `count` jobs): what job i gives arrives as (i, thing)."""
    queue, loop = asyncio.Queue(), asyncio.get_running_loop()

    def give_of(number: int):
        return lambda thing: loop.call_soon_threadsafe(queue.put_nowait, (number, thing))

    return queue, [give_of(number) for number in range(count)]


async def events_of(request: Request, queue: asyncio.Queue, jobs: Sequence[Job]):
    """(number of the job, thing) until all jobs have ended. Raises ApiError; jobs whose client has
    gone are cancelled.
    """
    left = len(jobs)
    try:
        while left:
            try:
                number, thing = await asyncio.wait_for(queue.get(), 1.0)
            except TimeoutError:
                if await request.is_disconnected():
                    raise ClientDisconnect from None
                continue
            if isinstance(thing, ApiError):
                raise thing
            if thing is None:
                left -= 1
            else:
                yield number, thing
    finally:
        for job in jobs:
            job.cancelled = True
