"""The application: routes, errors, the page."""

import hmac
import json
from importlib import resources

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rf_jax.data import data_fields
from rf_jax.serving import chat_route, image_routes
from rf_jax.serving.errors import ApiError
from rf_jax.serving.server import Server


def app(server: Server) -> Starlette:
    """The application; its worker must have been started."""
    routes = [
        Route('/', _page(server)),
        Route('/health', _health(server)),
        Route('/metrics', server.metrics.route(server.worker)),
        _guarded(server, '/v1/models', _models),
        _guarded(server, '/v1/models/{name:path}', _models),
        _guarded(server, '/v1/chat/completions', chat_route.answer, 'POST'),
        _guarded(server, '/v1/images/generations', image_routes.generate, 'POST'),
        _guarded(server, '/v1/images/edits', image_routes.edit, 'POST'),
    ]
    handlers = {
        404: lambda request, _: _error(ApiError(404, f'no route {request.url.path}')),
        405: lambda request, _: _error(ApiError(405, f'{request.method} is not allowed here')),
        500: lambda request, _: _error(ApiError(500, 'internal error')),
    }
    return Starlette(routes=routes, exception_handlers=handlers)


def _error(error: ApiError) -> Response:
    # Escaped: a message may quote a lone surrogate of the request.
    return Response(json.dumps(error.body), error.status, media_type='application/json')


def _guarded(server: Server, path: str, handle, method: str = 'GET') -> Route:
    """A route that checks the key, and turns ApiErrors into responses."""

    async def route(request: Request) -> Response:
        try:
            given = request.headers.get('authorization', '').removeprefix('Bearer ').strip()
            if server.key and not hmac.compare_digest(given.encode('latin-1'), server.key.encode()):
                raise ApiError(401, 'the API key is missing or wrong', code='invalid_api_key')
            response = await handle(server, request)
        except ApiError as error:
            response = _error(error)
        except ClientDisconnect:
            response = Response(status_code=499)
        server.metrics.requests.labels(path, response.status_code).inc()
        return response

    return Route(path, route, methods=[method])


async def _models(server: Server, request: Request) -> Response:
    talks = data_fields.talks(server.sampler.config)
    # The last three are our own, for the page: what the model was trained for, and scales.
    entry = {'id': server.model, 'object': 'model', 'created': 0, 'owned_by': 'rf_jax',
             'draws': server.draws, 'chats': talks, 'guidance': server.guidance}  # fmt: skip
    name = request.path_params.get('name')
    if name is None:
        return JSONResponse({'object': 'list', 'data': [entry]})
    if name != server.model:
        raise ApiError(404, f'the model {name!r} does not exist', 'model', 'model_not_found')
    return JSONResponse(entry)


def _health(server: Server):
    async def route(request: Request) -> Response:
        alive = server.worker.alive
        return JSONResponse({'status': 'ok' if alive else 'failed'}, 200 if alive else 503)

    return route


def _page(server: Server):
    text = (resources.files('rf_jax.serving') / 'page.html').read_text(encoding='utf-8')

    async def route(request: Request) -> Response:
        policy = (
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
            "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        return HTMLResponse(text, headers={'Content-Security-Policy': policy})

    return route
