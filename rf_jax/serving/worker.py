"""The thread that owns the model: it answers all requests together, as they come.

Conversations take the free rows of a `ChatEngine` in the order of their arrival; images from plain
prompts are generated in batches, a chunk between its steps.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from absl import logging

from rf_jax.generation import chat_images, guidance, image_sampling, inputs
from rf_jax.generation.chat_answer import Said, Settings
from rf_jax.generation.chat_engine import buckets
from rf_jax.generation.chat_images import padded_count
from rf_jax.generation.chat_row import STREAMS, ChatRow
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.generation.image_run import ImageRun
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.errors import UserError
from rf_jax.serving.errors import ApiError


@dataclass(eq=False)
class Job:
    """Work for the thread. `give` gets what comes of it, and at the end None or an ApiError; it is
    called by the thread and must return at once. `deadline` as `time.monotonic`.
    """

    give: Callable[[object], None]
    deadline: float
    cancelled: bool = False


@dataclass(eq=False)
class Talk(Job):
    """A conversation to be answered: gives `Said`s. `draw`: the answer is an image."""

    row: ChatRow = field(kw_only=True)
    settings: Settings = field(kw_only=True)
    draw: bool = field(default=False, kw_only=True)


@dataclass(eq=False)
class Drawing(Job):
    """An image from a prompt: gives a GeneratedImage, before it PartialImages: its tokens as they
    come, and `partial_images` images; for 0 nothing.
    """

    request: inputs.Request = field(kw_only=True)
    sampling: image_sampling.Options = field(kw_only=True)
    partial_images: int = field(default=0, kw_only=True)


class Worker:
    """Answers jobs from any thread; `rows` conversations at once, `most_waiting` jobs in line."""

    def __init__(self, sampler: Sampler, rows: int, most_waiting: int):
        self.sampler, self.rows, self.most_waiting = sampler, rows, most_waiting
        self.engine = sampler.chat_engine(rows)
        self.talks: list[Talk | None] = [None] * rows
        self._waiting: deque[Talk] = deque()
        self._drawings: deque[Drawing] = deque()
        self._run: ImageRun | None = None  # of images from prompts
        self._drawn: dict[int, Drawing] = {}  # by their place in the run
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name='model', daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; jobs that are not done get an error."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Conversations and images from prompts that are being answered."""
        return sum(talk is not None for talk in self.talks) + len(self._drawn)

    @property
    def waiting(self) -> int:
        """Jobs that wait for a row or a batch."""
        return len(self._waiting) + len(self._drawings)

    def add(self, jobs: Sequence[Job]) -> None:
        """Takes the jobs of a request. Raises ApiError if too many wait already."""
        with self._wake:
            if self._closed or not self.alive:
                raise ApiError(503, 'the model is not running')
            if self.waiting + len(jobs) > self.most_waiting:
                raise ApiError(
                    429, f'{self.waiting} answers and images wait already: try again later'
                )
            for job in jobs:
                (self._waiting if isinstance(job, Talk) else self._drawings).append(job)
            self._wake.notify()

    def _work(self) -> None:
        try:
            while self._wait():
                failed = False
                try:
                    self._turn()
                except Exception:
                    logging.exception('The model failed; all requests get an error')
                    failed = True
                if failed:  # only now, as the traceback holds the caches
                    self._fail(ApiError(500, 'the model failed to answer this request'))
        finally:  # also where starting anew fails
            with self._wake:
                self._closed = True
            self._fail(ApiError(503, 'the server is shutting down'))

    def _wait(self) -> bool:
        """Waits for work; False if the worker is to end."""
        with self._wake:
            while not (self._closed or self.waiting or self.running):
                self._wake.wait()
            return not self._closed

    def _turn(self) -> None:
        """One chunk of everything."""
        self._drop()
        self._admit()
        if any(self.talks):
            for number, said in self.engine.step().items():
                self._deliver(number, said)
        self._draw()

    def _drop(self) -> None:
        """Frees the rows of clients that have gone, or whose time is over."""
        now = time.monotonic()
        for number, talk in enumerate(self.talks):
            if talk is not None and (talk.cancelled or now > talk.deadline):
                self._free(number)
                talk.give(None if talk.cancelled else _late())
        for number, job in list(self._drawn.items()):
            if job.cancelled or now > job.deadline:
                del self._drawn[number]
                job.give(None if job.cancelled else _late())
        if not self._drawn:
            self._run = None
        with self._wake:  # `add` appends from the event loop
            for line in (self._waiting, self._drawings):
                for job in [job for job in line if job.cancelled or now > job.deadline]:
                    line.remove(job)
                    job.give(None if job.cancelled else _late())

    def _admit(self) -> None:
        for number, talk in enumerate(self.talks):
            if talk is not None or not self._waiting:
                continue
            self.talks[number] = talk = self._waiting.popleft()
            try:
                self.engine.start(number, talk.row, talk.settings, draw=talk.draw)
            except UserError as error:
                self.talks[number] = None
                talk.give(ApiError(400, str(error), 'messages', 'context_length_exceeded'))

    def _deliver(self, number: int, said: Said) -> None:
        talk = self.talks[number]
        talk.give(said)
        if said.ended:
            self._free(number)
            talk.give(None)

    def _free(self, number: int) -> None:
        self.engine.stop(number)
        self.talks[number] = None

    def _draw(self) -> None:
        """One chunk of a batch of images of one size from prompts."""
        if self._run is None and not self._begin_images():
            return
        run = self._run
        run.step()
        for number, job in self._drawn.items():
            if run.done:
                found = run.image(number), run.tokens(number)
                job.give(GeneratedImage(*found, job.request.prompt, job.request.seed))
                job.give(None)
            elif (partial := run.partial(number, job.partial_images)) is not None:
                job.give(partial)
        if run.done:
            self._run, self._drawn = None, {}

    def _begin_images(self) -> bool:
        """Begins a batch, if any image is waited for."""
        with self._wake:
            if not self._drawings:
                return False
            first = self._drawings[0].request
            size = first.height, first.width
            fit = [j for j in self._drawings if (j.request.height, j.request.width) == size]
            self._drawn = dict(enumerate(fit[: self.rows]))
            for job in self._drawn.values():
                self._drawings.remove(job)
        jobs = self._drawn.values()
        self._run = self._run_of([job.request for job in jobs], [job.sampling for job in jobs])
        return True

    def _run_of(
        self, requests: Sequence[inputs.Request], each: Sequence[image_sampling.Options]
    ) -> ImageRun:
        """Images of prompts, by programs whose shapes depend on their size alone; `each`: options,
        which differ in scales only.
        """
        sampler, config = self.sampler, self.sampler.config
        count = sampler.placement.full(padded_count(len(requests), self.rows))
        missing = count - len(requests)
        padded, each = ([*those, *those[:1] * missing] for those in (requests, each))
        rows = inputs.generation_rows(
            config, sampler.tokenizer, sampler.model.channels, padded, config.data.max_text_tokens
        )
        size, seeds = (requests[0].height, requests[0].width), [each.seed for each in padded]
        options = sampler.options().without_images()
        weights = guidance.stacked(
            [one.without_images().weights() for one in each], options.weights()
        )
        return ImageRun(self.engine.programs, sampler.params, rows, seeds, size, options, weights)

    def _fail(self, error: ApiError) -> None:
        """Gives an error to every job and starts anew."""
        jobs = [talk for talk in self.talks if talk is not None]
        jobs += self._drawn.values()
        self.talks, self._run, self._drawn = [None] * self.rows, None, {}
        with self._wake:
            jobs += [*self._waiting, *self._drawings]
            self._waiting.clear()
            self._drawings.clear()
        for job in jobs:
            job.give(error)
        if not self._closed:
            self.engine = None  # frees its cache first
            self.engine = self.sampler.chat_engine(self.rows)

    def warm_up(self, sizes: Sequence[tuple[int, int]], draws: bool, chats: bool) -> None:
        """Compiles all programs that requests can need, before the thread starts.

        `draws`: the model generates images; `chats`: in conversations too.
        """
        capacity = self.sampler.config.data.capacity
        for stream in STREAMS:
            for count in buckets(capacity[stream]):
                self.engine.warm_up(stream, count)
        self.engine.warm_up_text()
        counts = sorted({padded_count(n, self.rows) for n in range(1, self.rows + 1)})
        for size in sizes if draws or chats else ():
            for count in counts:
                if draws:
                    request = inputs.request(self.sampler.config, 'warm up', 0, 0, size)
                    _compile(self._run_of([request] * count, [self.sampler.options()] * count))
                if chats:
                    self._warm_up_images(size, count)

    def _warm_up_images(self, size: tuple[int, int], count: int) -> None:
        options = self.sampler.options()
        for chosen in {options, options.without_images()}:
            rows = [self.sampler.chat_row() for _ in range(count)]
            rows[0].check_image(size)
            seeds = [0] * count
            _compile(
                chat_images.begin(
                    *(self.engine.programs, self.sampler.params, rows, seeds, size),
                    *([chosen] * count, self.rows),
                )
            )


def _compile(run: ImageRun) -> None:
    """Runs each program of images once."""
    while not run.moved:
        run.step()
    run.image(0)


def _late() -> ApiError:
    return ApiError(408, 'the request took longer than this server allows', code='timeout')
