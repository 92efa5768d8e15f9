"""/v1/images/generations and /v1/images/edits.

A streamed reply has the events of OpenAI's API: `partial_image` and `completed`, after the prefix
`image_generation.` or `image_edit.`. The fields `tokens` and `index`, and the events
`partial_tokens`, are our own.
"""

import contextlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence

from anyio import to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from rf_jax.data.messages import user as user_message
from rf_jax.generation import inputs
from rf_jax.generation.chat_answer import Said, Settings
from rf_jax.generation.generated_image import GeneratedImage, PartialImage
from rf_jax.serving import forms
from rf_jax.serving.chat_route import row_of
from rf_jax.serving.errors import ApiError, invalid
from rf_jax.serving.reply import codes, png_base64
from rf_jax.serving.server import Server, choice_seed, events_of, queue_of, read_body, read_json
from rf_jax.serving.worker import Drawing, Job, Talk


async def generate(server: Server, request: Request) -> Response:
    asked = forms.image_generation(await read_json(server, request), server.model)
    _check_draws(server)
    config, tokenizer = server.sampler.config, server.sampler.tokenizer
    seed = asked.seed if asked.seed is not None else uuid.uuid4().int % 2**31
    queue, gives = queue_of(asked.count)
    deadline = time.monotonic() + server.limits.seconds
    size = server.size(asked.size)
    jobs = [
        Drawing(give, deadline, partial_images=asked.partial_images,
                sampling=server.sampling(asked.guidance),
                request=inputs.request(config, asked.prompt, seed, i, size))
        for i, give in enumerate(gives)
    ]  # fmt: skip
    inputs.warn_of_long_prompts(config, tokenizer, [jobs[0].request.prompt])
    # Begin and end are read too.
    read = len(tokenizer.encode(jobs[0].request.prompt)) + 2
    read = {'text': min(read, config.data.max_text_tokens), 'vision': 0}
    events = _images(request, queue, jobs, server)
    return await _answered(asked, events, 'image_generation', read, server)


async def edit(server: Server, request: Request) -> Response:
    body, files = await _form(server, request)
    asked = await to_thread.run_sync(
        forms.image_edit, body, files, server.model, server.limits.pixels
    )
    if not server.chats:
        raise invalid(None, 'this model was not trained on conversations and cannot edit images')
    seed = asked.seed if asked.seed is not None else uuid.uuid4().int % 2**31
    message = user_message(*asked.images, asked.prompt)
    queue, gives = queue_of(asked.count)
    deadline, size = time.monotonic() + server.limits.seconds, server.size(asked.size)
    jobs = [
        Talk(
            give, deadline, draw=True,
            row=await to_thread.run_sync(row_of, server, [message], 'prompt'),
            settings=Settings(seed=choice_seed(seed, i), size=size,
                              partial_images=asked.partial_images,
                              sampling=server.sampling(asked.guidance)),
        )
        for i, give in enumerate(gives)
    ]  # fmt: skip
    events = _images(request, queue, jobs, server)
    return await _answered(asked, events, 'image_edit', jobs[0].row.size(), server)


async def _images(request: Request, queue, jobs: Sequence[Job], server: Server):
    """(number, GeneratedImage or PartialImage) of everything that there is to see."""
    server.worker.add(jobs)
    async with contextlib.aclosing(events_of(request, queue, jobs)) as events:
        async for number, thing in events:
            if isinstance(thing, Said):
                if thing.ended and thing.image is None:
                    raise invalid('prompt', 'there is no room for an image after this prompt')
                thing = thing.image or thing.partial
            if isinstance(thing, GeneratedImage):
                server.metrics.images.inc()
                server.sent.keep(thing)
            if thing is not None:
                yield number, thing


async def _answered(
    asked: forms.Images, events, kind: str, read: Mapping[str, int], server: Server
) -> Response:
    """The reply, with the images as they come or all at once; `read`: tokens of the input."""
    if asked.stream:
        first = await anext(events, None)  # an error before the first event is an HTTP error
        stream = _stream(events, first, asked, kind, read, server)
        return StreamingResponse(stream, media_type='text/event-stream')
    found = {number: image async for number, image in events}
    data = [
        {'b64_json': await to_thread.run_sync(png_base64, found[number].image)}
        for number in sorted(found)
    ]
    return JSONResponse({'created': int(time.time()), 'data': data})


async def _stream(events, first, asked: forms.Images, kind: str, read, server: Server):
    """Server-sent events."""
    try:
        while first is not None:
            number, thing = first
            if thing.image is not None or asked.partial_tokens:
                body = await to_thread.run_sync(_event, kind, number, thing, read, server)
                yield f'event: {body["type"]}\ndata: {json.dumps(body)}\n\n'
            first = await anext(events, None)
    except ClientDisconnect:
        return
    except ApiError as error:
        yield f'event: error\ndata: {json.dumps(error.body)}\n\n'
    finally:
        await events.aclose()


def _event(kind: str, number: int, thing, read: Mapping[str, int], server: Server) -> dict:
    """One event; `number` of the image among those of the request."""
    body = {'type': f'{kind}.partial_tokens', 'created_at': int(time.time()), 'index': number,
            'tokens': codes(thing.tokens)}  # fmt: skip
    if thing.image is None:
        return body
    height, width = thing.image.shape[:2]
    body |= {'b64_json': png_base64(thing.image), 'size': f'{width}x{height}', 'quality': 'auto',
             'background': 'opaque', 'output_format': 'png'}  # fmt: skip
    if isinstance(thing, PartialImage):
        return body | {'type': f'{kind}.partial_image', 'partial_image_index': thing.index}
    patches = height * width // server.sampler.config.data.patch_size**2
    drawn = patches + (0 if thing.tokens is None else thing.tokens.shape[0] * thing.tokens.shape[1])
    usage = {
        'input_tokens': read['text'] + read['vision'], 'output_tokens': drawn,
        'total_tokens': read['text'] + read['vision'] + drawn,
        'input_tokens_details': {'text_tokens': read['text'], 'image_tokens': read['vision']},
    }  # fmt: skip
    return body | {'type': f'{kind}.completed', 'usage': usage}


def _check_draws(server: Server) -> None:
    if not server.draws:
        raise invalid(None, 'this model was not trained to generate images')


async def _form(server: Server, request: Request) -> tuple[dict, list[bytes]]:
    """(fields, image files) of a form. Raises ApiError."""
    if not request.headers.get('content-type', '').startswith('multipart/form-data'):
        raise invalid(None, 'the body must be multipart/form-data with a file `image`')
    data = await read_body(server, request)

    async def receive():
        return {'type': 'http.request', 'body': data, 'more_body': False}

    fields, files = {}, []
    try:
        form = await Request(request.scope, receive).form(max_files=16, max_fields=64)
    except Exception as error:
        detail = getattr(error, 'detail', error)
        raise invalid(None, f'the form cannot be read: {detail}') from None
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields[name] = value
        elif name in ('image', 'image[]'):
            files.append(await value.read())
        else:
            raise invalid(name, f'the file {name!r} is not supported', 'unsupported_parameter')
    await form.close()
    return fields, files
