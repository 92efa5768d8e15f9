"""What all routes share: the model's worker, limits, bodies, and what comes of jobs."""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request

from rf_jax.data import data_fields
from rf_jax.generation.image_sampling import Options
from rf_jax.runtime.rng import fold
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
    def chats(self) -> bool:
        """Whether conversations may have images: the model has learned when to begin one."""
        config = self.sampler.config
        return data_fields.talks(config) and config.losses.flow > 0

    @property
    def sampler(self):
        """Of the worker."""
        return self.worker.sampler

    @property
    def guidance(self) -> dict[str, float]:
        """The scales that a request can change freely, and what they are without a change."""
        names = {'guidance_representation': self.sampler.pool, 'guidance_pixels': self.draws}
        options = self.sampler.options()
        found = {name: getattr(options, name) for name, used in names.items() if used}
        return {name: scale for name, scale in found.items() if scale != 1}

    def size(self, given: tuple[int, int] | None) -> tuple[int, int]:
        """A size that is served. Raises ApiError."""
        if given is None:
            return self.sizes[0]
        if given not in self.sizes:
            known = ', '.join(f'{width}x{height}' for height, width in self.sizes)
            raise invalid('size', f'size={given[1]}x{given[0]} is not served; sizes: {known}')
        return given

    def sampling(self, guidance: Mapping[str, float]) -> Options:
        """How images are generated, with these scales. Raises ApiError for those that need
        programs that were not compiled when the server started.
        """
        compiled, options = self.sampler.options(), self.sampler.options(**guidance)
        # Images are guided with and without others before them, by programs of their own.
        pairs = (options, compiled), (options.without_images(), compiled.without_images())
        if not all(own.weights().within(known.weights()) for own, known in pairs):
            name = next(iter(guidance))
            given = ' '.join(f'--sampling={key}={value:g}' for key, value in guidance.items())
            raise invalid(name, f'this server has no programs for this guidance; start it: {given}')
        return options


async def read_body(server: Server, request: Request) -> bytes:
    """The body, read only up to the limit. Raises ApiError."""
    found, most = bytearray(), server.limits.body
    async for piece in request.stream():
        found += piece
        if len(found) > most:
            raise ApiError(413, f'the body is larger than {most} bytes', code='body_too_large')
    return bytes(found)


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
        def give(thing: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(queue.put_nowait, (number, thing))

        return give

    return queue, [give_of(number) for number in range(count)]


async def events_of(request: Request, queue: asyncio.Queue, jobs: Sequence[Job]):
    """(number of the job, thing) until all jobs have ended. Raises ApiError; jobs whose client has
    gone are cancelled.
    """
    left = len(jobs)
    try:
        while left:
            if await request.is_disconnected():
                raise ClientDisconnect
            try:
                number, thing = await asyncio.wait_for(queue.get(), 1.0)
            except TimeoutError:
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


def choice_seed(seed: int, number: int) -> int:
    """The seed of choice `number` of a request: other choices of other seeds are different."""
    return fold(seed, number) % 2**31 if number else seed
