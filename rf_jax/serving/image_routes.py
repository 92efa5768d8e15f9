"""/v1/images/generations and /v1/images/edits."""

import time
import uuid
from collections.abc import Sequence

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rf_jax.data.messages import user as user_message
from rf_jax.generation import inputs
from rf_jax.generation.chat_engine import Said, Settings
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.serving import forms
from rf_jax.serving.chat_route import row_of
from rf_jax.serving.errors import invalid
from rf_jax.serving.reply import png_base64
from rf_jax.serving.server import Server, choice_seed, events_of, queue_of, read_body, read_json
from rf_jax.serving.worker import Drawing, Job, Talk


async def generate(server: Server, request: Request) -> Response:
    asked = forms.image_generation(await read_json(server, request), server.model)
    _check_draws(server)
    seed = asked.seed if asked.seed is not None else uuid.uuid4().int % 2**31
    queue, gives = queue_of(asked.count)
    deadline = time.monotonic() + server.limits.seconds
    size = server.size(asked.size)
    jobs = [
        Drawing(give, deadline,
                request=inputs.request(server.sampler.config, asked.prompt, seed, i, size))
        for i, give in enumerate(gives)
    ]  # fmt: skip
    return await _drawn(server, request, queue, jobs)


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
            give, deadline, draw=True, row=await to_thread.run_sync(row_of, server, [message]),
            settings=Settings(seed=choice_seed(seed, i), size=size,
                              sampling=server.sampler.options()),
        )
        for i, give in enumerate(gives)
    ]  # fmt: skip
    return await _drawn(server, request, queue, jobs)


async def _drawn(server: Server, request: Request, queue, jobs: Sequence[Job]) -> Response:
    images: dict[int, GeneratedImage] = {}
    server.worker.add(jobs)
    async for number, thing in events_of(request, queue, jobs):
        image = thing.image if isinstance(thing, Said) else thing
        if image is None:
            raise invalid('prompt', 'there is no room for an image after this prompt')
        images[number] = image
        server.metrics.images.inc()
    data = [
        {'b64_json': await to_thread.run_sync(png_base64, images[number].image)}
        for number in sorted(images)
    ]
    for image in images.values():
        server.sent.keep(image)
    return JSONResponse({'created': int(time.time()), 'data': data})


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
