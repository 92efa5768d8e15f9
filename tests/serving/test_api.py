"""The endpoint with a client that others wrote, and with requests that are wrong in every way."""

import asyncio
import base64
import concurrent.futures
import dataclasses
import importlib
import io
import json
import random
import re
import socket
import sys
from pathlib import Path

import httpx
import numpy as np
import pydantic
import pytest
from PIL import Image
from waiting import until

from rf_jax.generation import image_run, inputs

openai = pytest.importorskip('openai')

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def client(serving):
    return openai.OpenAI(base_url=f'{serving.url}/v1', api_key='none', max_retries=0)


def encoded(kind='PNG', size=(64, 64), seed=0):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def url(kind='PNG', **more):
    data = base64.b64encode(encoded(kind, **more)).decode()
    return f'data:image/{kind.lower()};base64,{data}'


def image_part(kind='PNG', **more):
    return {'type': 'image_url', 'image_url': {'url': url(kind, **more)}}


def ask(client, content='a red heart', **more):
    messages = content if isinstance(content, list) else [{'role': 'user', 'content': content}]
    return client.chat.completions.create(
        model='tiny', messages=messages, **{'temperature': 0, 'max_tokens': 8} | more
    )


def compilations(serving):
    text = httpx.get(f'{serving.url}/metrics').text
    return float(re.search(r'^rf_jax_compilations_total (\S+)', text, re.M)[1])


def test_models(client):
    assert [model.id for model in client.models.list()] == ['tiny']
    found = client.models.retrieve('tiny')
    assert found.id == 'tiny' and found.draws and found.chats
    assert found.guidance == {'guidance_representation': 2.0, 'guidance_pixels': 3.0}


def test_a_greedy_answer_is_that_of_the_sampler(client, serving):
    pixels = np.array(Image.open(io.BytesIO(encoded())))
    text = {'type': 'text', 'text': 'flag'}
    reply = ask(client, [{'role': 'user', 'content': [image_part(), text]}],
                extra_body={'modalities': ['text']})  # fmt: skip
    from rf_jax.data.messages import user

    sampler = serving.server.sampler
    said = sampler.chat([user(pixels, 'flag')], max_tokens=8, images=False)
    assert reply.choices[0].message.content == said.text
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
def test_images_in_all_formats(client, kind):
    content = [image_part(kind), image_part(kind, seed=1), {'type': 'text', 'text': 'flag'}]
    assert ask(client, [{'role': 'user', 'content': content}]).choices[0].finish_reason


def test_a_streamed_answer_is_the_whole_answer(client):
    more = {'seed': 5, 'temperature': 1.0, 'max_tokens': 12}
    whole = ask(client, 'draw a flag', **more)
    events = list(
        ask(client, 'draw a flag', stream=True, stream_options={'include_usage': True}, **more)
    )
    assert events[-1].usage == whole.usage and not events[-1].choices
    deltas = [event.choices[0].delta for event in events[:-1]]
    text = ''.join(delta.content or '' for delta in deltas)
    assert text == whole.choices[0].message.content
    images = [i for delta in deltas for i in getattr(delta, 'images', None) or []]
    assert images == (getattr(whole.choices[0].message, 'images', None) or [])
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def drawn(client, **more):
    """A reply with an image."""
    for seed in range(30):
        reply = ask(client, 'draw', seed=seed, temperature=1.0, max_tokens=16, **more)
        if getattr(reply.choices[0].message, 'images', None):
            return reply
    raise AssertionError('no image in 30 answers')


def test_an_image_of_the_assistant_stands_as_generated_when_it_comes_back(client, serving):
    image = drawn(client).choices[0].message.images[0]
    history = [
        {'role': 'user', 'content': 'draw'},
        {'role': 'assistant', 'content': [image]},
        {'role': 'user', 'content': 'flag'},
    ]
    known = ask(client, history).usage.prompt_tokens
    serving.server.sent._tokens.clear()
    assert ask(client, history).usage.prompt_tokens == known - 5  # only encoded: no representation


def test_choices_stop_and_seeds(client):
    reply = ask(client, n=3, temperature=1.5, seed=1)
    texts = [choice.message.content for choice in reply.choices]
    again = ask(client, n=3, temperature=1.5, seed=1)
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    whole = ask(client, extra_body={'modalities': ['text']}).choices[0].message.content
    stop = whole[len(whole) // 2 :][:2]
    cut = ask(client, stop=stop, extra_body={'modalities': ['text']}).choices[0]
    assert cut.message.content == whole[: whole.index(stop)].strip()
    assert cut.finish_reason == 'stop'


def test_no_share_of_the_probability_is_the_likeliest_token(client):
    """As some tasks of lmms-eval ask: POPE and MathVerse among them."""
    text = {'modalities': ['text']}
    likeliest = ask(client, extra_body=text).choices[0].message.content
    found = ask(client, n=3, temperature=1.5, top_p=0, seed=1, extra_body=text)
    assert {choice.message.content for choice in found.choices} == {likeliest}


def test_a_stop_text_long_before_the_end(client):
    """The rest of the answer is cancelled, and that is no error."""
    more = {'max_tokens': 40, 'extra_body': {'modalities': ['text']}, 'temperature': 1.5}
    for seed in range(40):
        whole = ask(client, seed=seed, **more)
        if whole.usage.completion_tokens > 30:
            break
    else:
        pytest.fail('no answer of more than 30 tokens')
    text = whole.choices[0].message.content
    cut = ask(client, stop=[text[1]], seed=seed, **more)
    assert cut.choices[0].message.content == text[: text.index(text[1])].strip()
    assert cut.choices[0].finish_reason == 'stop'
    assert len(ask(client, stop=[text[1]], n=3, seed=seed, **more).choices) == 3


def test_a_reply_can_be_sent_back_as_it_came(client):
    """Also with its images beside the text, and when it is empty."""
    reply = drawn(client).choices[0].message.model_dump(exclude_none=True)
    history = [{'role': 'user', 'content': 'draw'}, reply, {'role': 'user', 'content': 'flag'}]
    assert ask(client, history).usage.prompt_tokens > 10
    silent = {'role': 'assistant', 'content': ''}
    history[1] = silent
    assert ask(client, history).choices


def test_images_from_prompts_and_edits(client):
    def arrays(reply):
        return [array(each.b64_json) for each in reply.data]

    more = {'model': 'tiny', 'response_format': 'b64_json'}
    found = arrays(client.images.generate(prompt='flag', n=2, extra_body={'seed': 3}, **more))
    assert [image.shape for image in found] == [(64, 64, 3)] * 2
    assert (found[0] != found[1]).any()
    again = arrays(client.images.generate(prompt='flag', n=2, extra_body={'seed': 3}, **more))
    np.testing.assert_array_equal(found, again)
    image = ('a.png', encoded(), 'image/png')
    edited = arrays(client.images.edit(image=image, prompt='a red heart', **more))
    assert edited[0].shape == (64, 64, 3)


def test_a_prompt_that_is_truncated_is_in_the_log(client, monkeypatch):
    seen = []
    monkeypatch.setattr(inputs.logging, 'warning', lambda text, *given: seen.append(text % given))
    for words in (5, 60):
        client.images.generate(model='tiny', prompt='flag ' * words)
    assert len(seen) == 1 and '1 of 1 prompt(s) were truncated to 38 tokens' in seen[0]


def test_an_edit_without_room_names_its_prompt(client):
    image = ('a.png', encoded(), 'image/png')
    with pytest.raises(openai.BadRequestError, match=r'data\.capacity\.text=64') as error:
        client.images.edit(model='tiny', image=image, prompt='a ' * 100)
    assert error.value.param == 'prompt'


def test_guidance_of_a_request(client, serving):
    """The images of the sampler at these scales, without new programs."""
    before = compilations(serving)

    def image(**scales):
        more = {'extra_body': {'seed': 3} | scales}
        return array(client.images.generate(model='tiny', prompt='flag', **more).data[0].b64_json)

    given = [{}, {'guidance_pixels': 1}, {'guidance_pixels': 7.5, 'guidance_representation': 1}]
    found = [image(**scales) for scales in given]
    edited = [
        client.images.edit(
            image=('a.png', encoded(), 'image/png'),
            prompt='flag',
            **{'model': 'tiny', 'extra_body': {'seed': 3, 'guidance_pixels': scale}},
        )
        for scale in (1, 7.5)
    ]
    assert edited[0].data[0].b64_json != edited[1].data[0].b64_json
    assert drawn(client, extra_body={'guidance_pixels': 1})
    assert compilations(serving) == before, 'something was compiled after the warm-up'
    for image, scales in zip(found, given):
        (right,) = serving.server.sampler.generate('flag', 3, **scales)
        np.testing.assert_allclose(image.astype(int), right.image, atol=1)
    assert len({image.tobytes() for image in found}) == 3


# Images while they are generated


def watched(client, route, **more):
    """The events of a streamed image, each checked to be what OpenAI's client expects."""
    from openai.types import image_edit_stream_event, image_gen_stream_event

    if route == 'edit':
        more['image'] = ('a.png', encoded(), 'image/png')
    known = {'generate': image_gen_stream_event.ImageGenStreamEvent,
             'edit': image_edit_stream_event.ImageEditStreamEvent}[route]  # fmt: skip
    call = getattr(client.images, route)
    events = list(call(model='tiny', prompt='a red heart', stream=True, **more))
    for event in events:
        if not event.type.endswith('partial_tokens'):
            pydantic.TypeAdapter(known).validate_python(event.model_dump())
    return events


def array(text):
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize('route', ['generate', 'edit'])
@pytest.mark.parametrize('count', [0, 3])
def test_a_streamed_image_is_the_whole_image(client, serving, route, count):
    before = compilations(serving)
    image = {'image': ('a.png', encoded(), 'image/png')} if route == 'edit' else {}
    call, seed = getattr(client.images, route), {'extra_body': {'seed': 3}}
    whole = call(model='tiny', prompt='a red heart', **image, **seed).data[0].b64_json
    *partial, last = watched(client, route, partial_images=count, **seed)
    assert last.b64_json == whole and last.size == '64x64' and last.type.endswith('.completed')
    assert last.usage.output_tokens == 4 + 16
    assert last.usage.input_tokens_details.image_tokens == (4 if route == 'edit' else 0)
    assert last.usage.input_tokens > 2
    assert [event.partial_image_index for event in partial] == list(range(count))
    assert all(event.tokens == last.tokens for event in partial)
    assert np.shape(last.tokens) == (2, 2) and np.min(last.tokens) >= 0
    apart = [np.abs(array(e.b64_json).astype(int) - array(whole)).mean() for e in partial]
    assert sorted(apart, reverse=True) == apart and all(apart)
    assert compilations(serving) == before, 'something was compiled after the warm-up'


def test_tokens_are_shown_before_the_image_if_they_are_asked_for(client):
    more = {'partial_images': 1, 'extra_body': {'partial_tokens': True, 'seed': 3}}
    first, second, last = watched(client, 'generate', **more)
    assert first.type == 'image_generation.partial_tokens' and first.tokens == last.tokens
    assert second.type == 'image_generation.partial_image'


def test_several_streamed_images(client):
    events = watched(client, 'generate', n=3, partial_images=2, extra_body={'seed': 3})
    assert len(events) == 9
    assert sorted(e.index for e in events if e.type.endswith('completed')) == [0, 1, 2]


def test_a_streamed_answer_shows_its_image_if_that_is_asked_for(client):
    more = {'temperature': 1.0, 'max_tokens': 16, 'stream': True}
    for seed in range(30):
        deltas = [
            [event.choices[0].delta for event in ask(client, 'draw', seed=seed, **more, **asked)]
            for asked in ({}, {'extra_body': {'partial_images': 2}})
        ]
        plain, shown = ([getattr(d, 'images', None) for d in each] for each in deltas)
        assert [each for each in plain if each] == [each for each in shown if each]
        if any(plain):
            break
    partial = [each.partial_image for each in deltas[1] if hasattr(each, 'partial_image')]
    assert [each['partial_image_index'] for each in partial[:3]] == [0, 0, 1]
    assert [each['b64_json'] is None for each in partial[:3]] == [True, False, False]
    assert not any(hasattr(each, 'partial_image') for each in deltas[0])


@pytest.mark.parametrize('route', ['generations', 'edits'])
def test_an_image_that_never_ends_keeps_nobody_waiting(client, serving, route, monkeypatch):
    """Text is answered meanwhile; when its client goes, its row is free."""
    monkeypatch.setattr(image_run.ImageRun, 'step', lambda self: None)
    worker, body = serving.server.worker, {'prompt': 'flag', 'stream': 'true'}
    sent = {'data': body, 'files': {'image': encoded()}} if route == 'edits' else {
        'json': body}  # fmt: skip
    request = httpx.Request('POST', f'{serving.url}/v1/images/{route}', **sent)
    head = ''.join(f'{name}: {value}\r\n' for name, value in request.headers.items())
    with socket.create_connection((request.url.host, request.url.port)) as raw:
        raw.sendall(f'POST {request.url.path} HTTP/1.1\r\n{head}\r\n'.encode() + request.read())
        until(lambda: worker.running)
        assert ask(client, extra_body={'modalities': ['text']}).choices[0].finish_reason
        assert worker.running
    until(lambda: not worker.running and not worker.waiting)
    monkeypatch.undo()
    assert watched(client, 'generate')[-1].b64_json


# What is wrong with a request


def post(serving, body, route='/v1/chat/completions', **more):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {'content-type': 'application/json'}
    return httpx.post(f'{serving.url}{route}', content=content, headers=headers, timeout=60, **more)


def message(content):
    return {'messages': [{'role': 'user', 'content': content}]}


BOUNDARY = {'content-type': 'multipart/form-data; boundary=x'}
WRONG = [
    (b'{"messages": ', 'not valid JSON'),
    (b'[' * 100_000, 'not valid JSON'),
    (b'\xff\xfe', 'not valid JSON'),
    ([], 'must be a JSON object, not a list'),
    ({}, 'messages must be a list'),
    ({'messages': []}, 'messages must be a list'),
    ({'messages': ['a']}, 'message 1 is a str'),
    ({'messages': [{'role': 'robot', 'content': 'a'}]}, "role 'robot'"),
    ({'messages': [{'role': 'assistant', 'content': 'a'}]}, 'expected the user'),
    (message(5), 'content is a int'),
    (message([{'type': 'audio'}]), 'expected'),
    (message([{'type': 'image_url', 'image_url': {'url': 'https://a.b/c.png'}}]), 'only data URLs'),
    (message([{'type': 'image_url', 'image_url': {'url': 'file:///etc/passwd'}}]), 'only data'),
    (message([{'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,@@'}}]), 'base64'),
    (message([{'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,AAAA'}}]), 'read'),
    (message([{'type': 'image_url', 'image_url': {}}]), 'the URL of an image is null'),
    (message([{'type': 'image', 'image': '/etc/passwd'}]), 'only data URLs'),
    (message('a ' * 100), 'data.capacity.text=64'),
    (message('a') | {'temperature': 'hot'}, "temperature='hot' must be a number"),
    (message('a') | {'temperature': float('nan')}, 'temperature=nan'),
    (message('a') | {'temperature': -1}, 'temperature=-1'),
    (message('a') | {'top_p': -0.1}, 'top_p=-0.1'),
    (message('a') | {'n': 10**9}, 'n=1000000000 must be an integer from 1 to 8'),
    (message('a') | {'n': True}, 'n=True'),
    (message('a') | {'n': '9' * 5000}, 'n='),
    (message('a') | {'max_tokens': 0}, 'max_tokens=0'),
    (message('a') | {'\ud800': 1}, 'unrecognized'),
    (message('a') | {'stop': ['a' * 10**5]}, 'of up to 200 characters'),
    (message([{'type': 'text', 'text': 'a'}] * 5000), 'needs at least'),
    (message('a') | {'max_tokens': -5}, 'max_tokens=-5'),
    (message('a') | {'seed': 1.5}, 'seed=1.5'),
    (message('a') | {'stop': ['']}, 'stop must be'),
    (message('a') | {'stop': ['a'] * 9}, 'stop must be'),
    (message('a') | {'stream': 'yes'}, "stream='yes'"),
    (message('a') | {'tools': [{'type': 'function'}]}, 'tools is not supported'),
    (message('a') | {'nonsense': 1}, "unrecognized request argument: 'nonsense'"),
    (message('a') | {'modalities': ['smell']}, 'modalities must be'),
    (message('a') | {'size': '7x7'}, 'size=7x7 is not served; sizes: 64x64'),
    (message('a') | {'stream_options': 5}, 'stream_options must'),
    (message('a') | {'guidance_pixels': 'high'}, "guidance_pixels='high' must be a number"),
    (message('a') | {'guidance_pixels': 1000}, 'from 0 to 100'),
    (message('a') | {'guidance_text': 5}, 'start it: --sampling=guidance_text=5'),
]


@pytest.mark.parametrize('number', range(len(WRONG)))
def test_what_is_wrong_is_said(serving, number):
    body, said = WRONG[number]
    reply = post(serving, body)
    error = reply.json()['error']
    assert reply.status_code == 400 and said in error['message'], reply.text
    assert error['type'] == 'invalid_request_error'


def test_errors_of_the_other_routes(serving):
    assert post(serving, message('a') | {'model': 'gpt'}).status_code == 404
    assert httpx.get(f'{serving.url}/v1/nothing').json()['error']['message'].startswith('no route')
    assert httpx.get(f'{serving.url}/v1/chat/completions').status_code == 405
    for body, said in (({'prompt': ''}, 'prompt must'), ({'prompt': 'a', 'n': 99}, 'n=99'),
                       ({'prompt': 'a', 'response_format': 'url'}, 'b64_json'),
                       ({'prompt': 'a', 'partial_images': 4}, 'partial_images=4'),
                       ({'prompt': 'a', 'stream': 'yes'}, "stream='yes'"),
                       ({'prompt': 'a', 'size': 'big'}, 'size=')):  # fmt: skip
        reply = post(serving, body, '/v1/images/generations')
        assert reply.status_code == 400 and said in reply.text
    edits = f'{serving.url}/v1/images/edits'
    form = {'data': {'prompt': 'a'}}
    for sent, said in (
        ({'json': {}}, 'multipart'), ({'files': {'x': b'a'}, **form}, "file 'x'"),
        ({'files': {'image': b'not an image'}, **form}, 'cannot be read'),
        ({'files': {'image': encoded()}}, 'prompt must'),
        ({'files': {'image': encoded(), 'mask': encoded()}, **form}, "'mask' is not supported"),
        ({'content': b'--x\r\nbroken', 'headers': BOUNDARY}, 'no image'),
    ):  # fmt: skip
        reply = httpx.post(edits, timeout=60, **sent)
        assert reply.status_code == 400 and said in reply.text, reply.text


def test_bodies_and_images_that_are_too_large(serving):
    assert post(serving, message('a' * 400_000)).status_code == 413
    for mode, size in (('RGB', (1200, 1000)), ('1', (20_000, 20_000))):  # few bytes, many pixels
        file = io.BytesIO()
        Image.new(mode, size).save(file, 'PNG')
        data = base64.b64encode(file.getvalue()).decode()
        part = {'type': 'image_url', 'image_url': {'url': f'data:image/png;base64,{data}'}}
        reply = post(serving, message([part]))
        assert reply.status_code == 400 and 'cannot be read' in reply.text, reply.text

    def endless():
        for _ in range(10_000):
            yield b'a' * 10_000

    reply = httpx.post(f'{serving.url}/v1/chat/completions', content=endless(), timeout=60)
    assert reply.status_code == 413


def test_random_requests_never_break_the_server(serving):
    """Fields with values of the wrong kind at random: 4xx in OpenAI's form, or an answer."""
    rng = random.Random(0)
    values = [None, True, -1, 0, 10**30, 1.5, '', 'a', '\0', [], {}, [[]], {'a': 1}, 'é' * 50]
    names = [
        'messages',
        'model',
        'temperature',
        'top_p',
        'n',
        'seed',
        'stop',
        'stream',
        'tools',
        'max_tokens',
        'modalities',
        'size',
        'logit_bias',
        'user',
        'extra',
        'response_format',
    ]
    with httpx.Client() as client:
        for _ in range(300):
            body = message('a') | {'max_tokens': 1} if rng.random() < 0.7 else {}
            for _ in range(rng.randint(1, 3)):
                body[rng.choice(names)] = rng.choice(values)
            data = json.dumps(body).encode()
            data = data[: rng.randint(1, len(data))] if rng.random() < 0.2 else data
            reply = client.post(f'{serving.url}/v1/chat/completions', content=data, timeout=60)
            assert reply.status_code == 200 or 400 <= reply.status_code < 500, (body, reply.text)
            if reply.status_code != 200:
                assert reply.json()['error']['message']
    assert httpx.get(f'{serving.url}/health').json() == {'status': 'ok'}


# Many clients


def test_many_clients_at_once_get_what_each_gets_alone(client, serving):
    prompts = [f'{word} {i}' for i in range(3) for word in ('flag', 'a red heart', 'dogs', 'big')]
    before = compilations(serving)
    alone = [ask(client, prompt, seed=1).choices[0].message.content for prompt in prompts]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda p: ask(client, p, seed=1), prompts))
    assert [reply.choices[0].message.content for reply in together] == alone
    assert compilations(serving) == before, 'something was compiled after the warm-up'


def test_the_load_trial_reads_what_this_server_gives(serving, capsys):
    sys.path.insert(0, str(Path(__file__).parents[2] / 'launch'))
    trial = importlib.import_module('load_trial')
    found = asyncio.run(trial.phase(serving.url, 'tiny', 2, 0.5, 2))
    assert {status for _, status in found} == {200}
    assert trial.show('both', [*found, (0.1, 429), (9.0, 'ReadTimeout')], 1.0) == len(found)
    assert "errors 2 ['429', 'ReadTimeout']" in capsys.readouterr().out
    names = {'rf_jax_compilations_total', 'process_resident_memory_bytes', 'rf_jax_running'}
    assert names <= trial.metrics(serving.url).keys()


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_goes_frees_its_row(serving, stream, monkeypatch):
    """No answer ends by itself here."""
    more = {'stream': stream, 'temperature': 1.0, 'n': 4}
    body = json.dumps(message('flag') | more).encode()
    host, port = serving.url.removeprefix('http://').split(':')
    worker = serving.server.worker

    def endless(number, said):
        worker.talks[number].give(dataclasses.replace(said, ended=''))

    monkeypatch.setattr(worker, '_deliver', endless)
    for _ in range(3):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(
                b'POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: '
                + str(len(body)).encode() + b'\r\n\r\n' + body
            )  # fmt: skip
            until(lambda: worker.running or worker.waiting)
    until(lambda: not worker.running and not worker.waiting, 30)


def test_too_many_wait(client, serving):
    def ask_one(_):
        try:
            return ask(client, 'flag', n=4, temperature=1.0) and 200
        except openai.APIStatusError as error:
            return error.status_code

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = set(pool.map(ask_one, range(16)))
    assert found == {200, 429}


def test_a_key_is_asked_for(serving, monkeypatch):
    monkeypatch.setattr(serving.server, 'key', 'secret')
    assert post(serving, message('a')).status_code == 401
    headers = {'authorization': 'Bearer secret'}
    assert httpx.get(f'{serving.url}/v1/models', headers=headers).status_code == 200
    assert httpx.get(f'{serving.url}/health').status_code == 200


def test_a_request_has_its_time(client, serving, monkeypatch):
    monkeypatch.setattr(serving.server.limits, 'seconds', 0.0)
    with pytest.raises(openai.APIStatusError) as error:
        ask(client)
    assert error.value.status_code == 408


def test_a_failing_model_is_an_error_of_the_server_and_not_its_end(client, serving, monkeypatch):
    def fails(*_):
        raise RuntimeError('out of memory')

    engine = serving.server.worker.engine
    monkeypatch.setattr(engine, 'step', fails)
    with pytest.raises(openai.InternalServerError) as error:
        ask(client)
    assert 'out of memory' not in str(error.value)
    assert ask(client).choices
