"""Load on a running server: `python launch/load_trial.py --url=http://127.0.0.1:8000`.

One client for a minute, then `--clients` for `--minutes`, with the same mix of requests: questions
about an image, and an image from a prompt one time in `--images`. Meanwhile a streaming client is
killed every ten seconds. Prints requests per second, latencies, errors, what the server compiled,
its memory, and the requests that are still running at the end.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import re
import subprocess
import sys
import time

import httpx
import numpy as np
from PIL import Image

QUESTIONS = 'what colour is it?', 'how many things are there?', 'what is on the left?'
PROMPTS = 'a red circle', 'a blue square and a green ring', 'two yellow crosses'


def data_url(seed: int) -> str:
    """A random image as a PNG data URL."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()


def question(rng: random.Random, model: str, **more) -> dict:
    image = {'type': 'image_url', 'image_url': {'url': data_url(rng.randrange(1000))}}
    text = {'type': 'text', 'text': rng.choice(QUESTIONS)}
    messages = [{'role': 'user', 'content': [image, text]}]
    answer = {'max_tokens': 32, 'temperature': 1.0, 'modalities': ['text']}
    return {'model': model, 'messages': messages, **answer, **more}


async def client(http, model: str, number: int, until: float, images: int, found: list) -> None:
    """Sends one request after another; adds (seconds, status) of each to `found`."""
    rng = random.Random(number)
    while time.monotonic() < until:
        path, body = '/v1/chat/completions', question(rng, model, seed=rng.randrange(2**31))
        if images and rng.randrange(images) == 0:
            path, body = '/v1/images/generations', {'model': model, 'prompt': rng.choice(PROMPTS)}
        began = time.monotonic()
        try:
            status = (await http.post(path, json=body)).status_code
        except httpx.HTTPError as error:
            status = type(error).__name__
        found.append((time.monotonic() - began, status))


async def killed(url: str, model: str, until: float) -> int:
    """Starts a streaming client every ten seconds and kills it: how many there were."""
    count = 0
    while time.monotonic() + 10 < until:
        process = subprocess.Popen([sys.executable, __file__, f'--url={url}', f'--stream={model}'])
        await asyncio.sleep(10)
        process.kill()
        process.wait()
        count += 1
    return count


def stream(url: str, model: str) -> None:
    """Reads long streamed answers until it is killed."""
    rng = random.Random(time.time_ns())
    with httpx.Client(base_url=url, timeout=600) as http:
        while True:
            body = question(rng, model, stream=True, max_tokens=64)
            with http.stream('POST', '/v1/chat/completions', json=body) as reply:
                for _ in reply.iter_lines():
                    pass


async def phase(url: str, model: str, clients: int, seconds: float, images: int) -> list:
    until, found = time.monotonic() + seconds, []
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        own = [client(http, model, number, until, images, found) for number in range(clients)]
        others = [killed(url, model, until)] if clients > 1 else []
        await asyncio.gather(*own, *others)
    return found


def metrics(url: str) -> dict[str, float]:
    lines = httpx.get(f'{url}/metrics').text.splitlines()
    pairs = (re.fullmatch(r'(\w+) ([\d.e+-]+)', line) for line in lines)
    return {match[1]: float(match[2]) for match in pairs if match}


def show(what: str, found: list, seconds: float) -> float:
    """Prints a phase; gives requests per second."""
    took = sorted(each for each, status in found if status == 200)
    if not took:
        raise SystemExit(f'{what}: no request was answered within {seconds:.0f} s')
    median, slow = took[len(took) // 2], took[int(len(took) * 0.99)]
    wrong = [status for _, status in found if status != 200]
    rate = len(took) / seconds
    print(
        f'{what}: {len(found)} requests, {rate:.2f} per second, median {median:.2f} s, '
        f'p99 {slow:.2f} s, errors {len(wrong)} {sorted(set(map(str, wrong)))}',
        flush=True,
    )
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--url', default='http://127.0.0.1:8000')
    parser.add_argument('--clients', type=int, default=32)
    parser.add_argument('--minutes', type=float, default=5)
    parser.add_argument('--images', type=int, default=20)
    parser.add_argument('--stream', default='', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stream:
        stream(given.url, given.stream)
    model = httpx.get(f'{given.url}/v1/models').json()['data'][0]['id']
    one = show('1 client', asyncio.run(phase(given.url, model, 1, 60, given.images)), 60)
    before, seconds = metrics(given.url), 60 * given.minutes
    found = asyncio.run(phase(given.url, model, given.clients, seconds, given.images))
    many = show(f'{given.clients} clients', found, seconds)
    time.sleep(2)  # the last killed client is noticed
    after = metrics(given.url)
    print(f'throughput: {many / one:.1f} x that of one client')
    for name in ('rf_jax_compilations_total', 'process_resident_memory_bytes'):
        print(f'{name}: {before[name]:.0f} before, {after[name]:.0f} after')
    print(f'still running at the end: {after["rf_jax_running"]:.0f}')
    print(json.dumps({'one': one, 'many': many, 'ratio': many / one}))


if __name__ == '__main__':
    main()
