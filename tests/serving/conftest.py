"""A server of a tiny model, for real clients."""

import threading
import time
from types import SimpleNamespace

import pytest


@pytest.fixture(scope='session')
def serving():
    """`server`, and the `url` of it: rows for four conversations, a body limit of 300 kB."""
    import jax
    import uvicorn
    from tiny_sampler import make_sampler

    from rf_jax.serving import api
    from rf_jax.serving.server import Limits, Server
    from rf_jax.serving.worker import Worker

    sampler = make_sampler('ffn')
    sampler.config.data.tasks.conversation = 1.0
    sampler.config.sampling.steps = 6
    sampler.config.data.capacity.update(text=64, vision=16, representation=20, vision_images=4)
    # As a checkpoint is restored: committed to its device.
    sampler.params = jax.device_put(sampler.params, jax.devices()[0])
    kernel, image = sampler.params['text_head']['kernel'], sampler.tokenizer.image
    sampler.params['text_head']['kernel'] = kernel.at[:, image].multiply(3.0)
    worker = Worker(sampler, rows=4, most_waiting=16)
    limits = Limits(body=300_000, pixels=1_000_000, seconds=60.0)
    server = Server(worker, 'tiny', [(64, 64)], limits=limits)
    worker.warm_up(server.sizes, draws=True, chats=True)
    worker.start()
    config = uvicorn.Config(api.app(server), port=0, log_level='error')
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield SimpleNamespace(server=server, url=f'http://127.0.0.1:{port}')
    running.should_exit = True
    thread.join()
    worker.close()
