"""/v1/chat/completions."""

import json
import time
import uuid
from collections.abc import Sequence

from anyio import to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from rf_jax.data.messages import Message
from rf_jax.generation.chat import Reader
from rf_jax.generation.chat_answer import LENGTH, Said, Settings
from rf_jax.generation.chat_row import ChatRow
from rf_jax.generation.generated_image import GeneratedImage, PartialImage
from rf_jax.runtime.errors import UserError
from rf_jax.serving import forms
from rf_jax.serving.errors import ApiError, invalid
from rf_jax.serving.reply import (
    Answered,
    StopText,
    chunk,
    completion,
    image_url,
    partial_image,
    png_base64,
)
from rf_jax.serving.server import Server, choice_seed, events_of, queue_of, read_json
from rf_jax.serving.worker import Job, Talk


async def answer(server: Server, request: Request) -> Response:
    body = await read_json(server, request)
    asked = await to_thread.run_sync(
        forms.chat, body, server.model, server.limits.pixels, server.sampler.config.data.capacity
    )
    seed = asked.seed if asked.seed is not None else uuid.uuid4().int % 2**31
    size = server.size(asked.size)
    settings = [
        Settings(
            *(asked.temperature, asked.top_k, asked.top_p, choice_seed(seed, i), asked.most, size),
            images=asked.images and server.chats, partial_images=asked.partial_images,
            sampling=server.sampling(asked.guidance),
        )
        for i in range(asked.count)
    ]  # fmt: skip
    return await _answered(server, request, asked, settings)


async def _answered(server, request, asked: forms.Chat, settings: Sequence[Settings]) -> Response:
    known = [server.sent.restored(message) for message in asked.messages]
    rows = [await to_thread.run_sync(row_of, server, known) for _ in settings]
    queue, gives = queue_of(len(rows))
    deadline = time.monotonic() + server.limits.seconds
    jobs = [
        Talk(give, deadline, row=row, settings=how) for give, row, how in zip(gives, rows, settings)
    ]
    prompt = rows[0].size()
    answers = [Answered(Reader(server.sampler.tokenizer), StopText(asked.stops)) for _ in jobs]
    server.worker.add(jobs)
    about = {'id': f'chatcmpl-{uuid.uuid4().hex}', 'created': int(time.time()),
             'model': server.model}  # fmt: skip
    tokens = prompt['text'] + prompt['vision'] + prompt['representation']
    events = _said(server, events_of(request, queue, jobs), answers, jobs)
    if asked.stream:
        first = await anext(events, None)  # an error before the first word is an HTTP error
        stream = _stream(events, first, answers, about, tokens, asked.usage)
        return StreamingResponse(stream, media_type='text/event-stream')
    async for _ in events:
        pass
    return JSONResponse(completion(answers, about, tokens))


def row_of(server: Server, messages: Sequence[Message], field: str = 'messages') -> ChatRow:
    """A row of the messages. Raises ApiError about this `field` of the request."""
    row = server.sampler.chat_row()
    try:
        row.say(messages)
        if row.left() < 1:
            most = server.sampler.config.data.capacity.text
            raise UserError(
                f'the conversation leaves no room for an answer (data.capacity.text={most})'
            )
    except UserError as error:
        raise invalid(field, str(error), 'context_length_exceeded') from None
    return row


async def _said(server: Server, events, answers: Sequence[Answered], jobs: Sequence[Job]):
    """(choice, delta) of everything that is said; deltas are text or images in base64."""
    async for number, said in events:
        answer = answers[number]
        if answer.done:
            continue
        assert isinstance(said, Said)
        server.metrics.tokens.inc(len(said.tokens))
        for part in answer.read(said):
            if isinstance(part, GeneratedImage):
                server.metrics.images.inc()
                text = await to_thread.run_sync(png_base64, part.image)
                server.sent.keep(part)
                yield number, {'images': [image_url(len(answer.images), text)]}
                answer.images.append(text)
            elif isinstance(part, PartialImage):
                yield number, {'partial_image': await to_thread.run_sync(partial_image, part)}
            else:
                yield number, {'content': part}
        if said.ended or answer.stop.found:
            cut = said.ended == LENGTH and not answer.stop.found
            answer.done = 'length' if cut else 'stop'
            jobs[number].cancelled = answer.stop.found
            yield number, {}


async def _stream(events, first, answers, about, tokens: int, usage: bool):
    """Server-sent events."""
    for number in range(len(answers)):
        yield chunk(about, number, {'role': 'assistant', 'content': ''})
    try:
        while first is not None:
            number, delta = first
            yield chunk(about, number, delta, None if delta else answers[number].done)
            first = await anext(events, None)
        if usage:
            yield chunk(about, None, {}, usage=Answered.usage(answers, tokens))
    except ClientDisconnect:
        return
    except ApiError as error:
        yield f'data: {json.dumps(error.body)}\n\n'
    finally:
        await events.aclose()
    yield 'data: [DONE]\n\n'
