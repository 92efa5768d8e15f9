"""A chat with a cache is the training forward; batched, streamed and whole answers are the same."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_sampler import full_forward, make_sampler

from rf_jax.data import conversation
from rf_jax.data.messages import ImagePart, Message, assistant, user
from rf_jax.generation import chat, chat_engine, text_sampling
from rf_jax.generation.generated_image import GeneratedImage, PartialImage
from rf_jax.runtime.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def sampler():
    """Begins images and ends answers in some contexts: their logits vary more than others'."""
    made = make_sampler('ffn')
    made.config.data.capacity.update(text=160, vision=80, representation=80, vision_images=10)
    kernel = made.params['text_head']['kernel']
    eos, image = made.tokenizer.eos, made.tokenizer.image
    kernel = kernel.at[:, image].multiply(4.0)
    made.params['text_head']['kernel'] = kernel.at[:, eos].multiply(3.0)
    return made


@pytest.fixture(scope='module')
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (32, 64))]


def test_images_of_urls_are_opened_or_refused():
    def shown(url):
        part = {'type': 'image_url', 'image_url': {'url': url}}
        return chat.parsed([{'role': 'user', 'content': [part]}])[0].images

    assert shown('data:image/png;base64,UE5H') == [b'PNG']
    assert shown('file:///a/b%20c.png') == ['/a/b c.png'] and shown('b.png') == ['b.png']
    for url, message in (('https://a.b/c.png', 'is a URL'), ('data:image/png;base64,@', 'base64')):
        with pytest.raises(UserError, match=message):
            shown(url)


HOW = {'max_tokens': 12, 'temperature': 1.0, 'steps': 2}


def turns(images):
    return [
        [user(images[0], 'a red heart')],
        [user('draw two small dogs')],
        [user('flag', images[1], images[0], 'a blue square')],
        [user('again')],
        [user('a red flag with big eyes')],
    ]


@pytest.fixture(scope='module')
def talked(sampler, images):
    """(conversation after five turns, {number of text tokens before: logits of the next})."""
    talk, seen = sampler.conversation(), {}
    engine, decode = talk._engine, talk._engine.programs.decode

    def noted(params, fields, context, place, left, rule, forbidden):
        seen[int(place[0])] = np.asarray(context.logits[0])
        return decode(params, fields, context, place, left, rule, forbidden)

    engine.programs.decode = noted
    for number, turn in enumerate(turns(images)):
        talk.send(turn, seed=number, **HOW)
    engine.programs.decode = decode
    return talk, seen


def test_five_turns_with_a_cache_equal_the_full_forward(sampler, talked):
    talk, seen = talked
    assert len(talk._row.generated) >= 2, 'the test needs generated images'
    assert len(talk.messages) == 10 and len(seen) >= 7
    right = full_forward(sampler)(talk._row)
    for before, logits in seen.items():
        np.testing.assert_allclose(logits, right[before - 1], atol=1e-5, err_msg=str(before))
    assert np.ptp(right, 0).max() > 0.1


def test_tokens_of_a_later_image_follow_from_all_before(sampler, images):
    """Greedy and without guidance: the most likely by the training forward at every place."""
    options = sampler.options(temperature=0.0, guidance_representation=1.0, steps=1)
    first = GeneratedImage(images[0], np.array([[3, 1], [4, 1]], np.int32), 'a flag', 0)
    engine, row = sampler.chat_engine(1), sampler.chat_row()
    row.say([user(images[1], 'draw a flag'), assistant(first), user('draw two small dogs')])
    engine.start(0, row, chat_engine.Settings(size=(64, 64), sampling=options))
    row.wrote([sampler.tokenizer.image])
    engine.answers[0].wants_image = True
    while (image := engine.step()[0].image) is None:
        pass
    logits = full_forward(sampler, 'representation_logits')(row)
    np.testing.assert_array_equal(image.tokens.reshape(-1), logits[5:9].argmax(-1))
    assert len(np.unique(image.tokens)) > 1


def test_what_is_said_is_the_most_likely(sampler, images):
    """Greedy, without a cache: every token anew from the whole conversation so far."""
    (said,) = sampler.chat([[user(images[0], 'a red heart')]], max_tokens=6, images=False)
    row, forward, special = sampler.chat_row(), full_forward(sampler), sampler.tokenizer
    row.say([user(images[0], 'a red heart')])
    words = []
    for _ in range(6):
        logits = forward(row)[row.size()['text'] - 1]
        logits[[special.pad, special.bos, special.answer, special.image]] = -np.inf
        if (word := int(logits.argmax())) == special.eos:
            break
        words.append(word)
        row.wrote([word])
    assert words and said.text == special.decode(words).strip()


def pixels(message):
    return [np.asarray(image) for image in message.images]


def assert_same(one, other):
    assert [type(part) for part in one.parts] == [type(part) for part in other.parts]
    assert one.text == other.text
    for a, b in zip(pixels(one), pixels(other)):
        np.testing.assert_allclose(a.astype(int), b.astype(int), atol=1)


@pytest.fixture(scope='module')
def conversations(images):
    history = user('a blue square'), assistant('a red heart')
    return [
        [user(images[0], 'a red heart')],
        [user('draw a flag')],
        [*history, user(images[1], images[0], 'again')],
    ]


@pytest.fixture(scope='module')
def together(sampler, conversations):
    return sampler.chat(conversations, seed=3, **HOW)


def test_a_batch_says_what_its_conversations_say_one_by_one(sampler, conversations, together):
    assert len({message.text for message in together}) == 3
    assert any(message.images for message in together)
    for conversation_, message in zip(conversations, together):
        assert_same(sampler.chat(conversation_, seed=3, **HOW), message)


def test_a_streamed_answer_is_the_whole_answer(sampler, conversations, together):
    for said, message in zip(conversations, together):
        talk = sampler.conversation()
        parts = list(talk.stream(said, seed=3, **HOW))
        assert_same(talk.messages[-1], message)
        text = ''.join(part for part in parts if isinstance(part, str))
        assert ''.join(text.split()) == ''.join(message.text.split())
        shown = [part for part in parts if isinstance(part, GeneratedImage)]
        assert len(shown) == len(message.images)


def drawing_engine(sampler, rows, **more):
    """An engine whose row 0 draws an image, in as many chunks as steps and one of tokens."""
    engine = sampler.chat_engine(rows)
    row = sampler.chat_row()
    row.say([user('draw a flag')])
    how = chat_engine.Settings(sampling=sampler.options(steps=5), size=(64, 64), seed=4, **more)
    engine.start(0, row, how, draw=True)
    return engine


def drawn(engine):
    """What row 0 says until it ends."""
    said = []
    while not engine.answers[0].ended:
        said.append(engine.step()[0])
    return said


@pytest.fixture(scope='module')
def whole(sampler):
    """The image of `drawing_engine`, without anything to be seen before."""
    said = drawn(drawing_engine(sampler, 1))
    assert all(each.partial is None and each.image is None for each in said[:-1])
    return said[-1].image


@pytest.mark.parametrize('count', [1, 3])
def test_an_image_that_is_watched_is_the_same(sampler, whole, count):
    """First its tokens, then as many images as are asked for, each nearer to it."""
    said = drawn(drawing_engine(sampler, 1, partial_images=count))
    np.testing.assert_array_equal(said[-1].image.image, whole.image)
    np.testing.assert_array_equal(said[-1].image.tokens, whole.tokens)
    first, *others = [each.partial for each in said if each.partial]
    assert first.image is None and [each.index for each in others] == list(range(count))
    for each in (first, *others):
        np.testing.assert_array_equal(each.tokens, whole.tokens)
    apart = [np.abs(each.image.astype(int) - whole.image).mean() for each in others]
    assert sorted(apart, reverse=True) == apart and apart[-1] > 0


def test_text_goes_on_between_the_chunks_of_an_image(sampler, whole):
    """The row that joins in the middle of the image has its first words before it is finished."""
    engine = drawing_engine(sampler, 2)
    said = [engine.step() for _ in range(2)]
    row = sampler.chat_row()
    row.say([user('flag')])
    engine.start(1, row, chat_engine.Settings(images=False, max_tokens=3))
    said.append(engine.step())
    assert said[-1][1].ended and all(each[0].image is None for each in said)
    np.testing.assert_allclose(drawn(engine)[-1].image.image.astype(int), whole.image, atol=1)


def test_a_row_that_is_stopped_in_an_image_is_free(sampler, whole):
    """For a conversation that has nothing of it; an image that another row began meanwhile is the
    next."""
    engine = drawing_engine(sampler, 2)
    engine.step()
    row = sampler.chat_row()
    row.say([user('draw a flag')])
    engine.start(1, row, engine.answers[0].settings, draw=True)
    assert engine.step()[1] == chat_engine.Said()
    engine.stop(0)
    said = [engine.step() for _ in range(6)]  # a chunk of tokens, five of the flow
    assert all(set(each) == {1} for each in said)
    np.testing.assert_allclose(said[-1][1].image.image.astype(int), whole.image, atol=1)


def test_a_conversation_gives_partial_images_if_it_is_asked_for_them(sampler):
    for seed in range(20):
        talk, watched = sampler.conversation(), sampler.conversation()
        talk.send('draw two small dogs', seed=seed, **HOW)
        parts = list(watched.stream('draw two small dogs', seed=seed, partial_images=1, **HOW))
        partial = [part for part in parts if isinstance(part, PartialImage)]
        (one,), (other,) = (
            [m for m in t.messages if m.role == 'assistant'] for t in (talk, watched)
        )
        assert one.text == other.text and len(one.images) == len(other.images)
        for a, b in zip(one.images, other.images):
            np.testing.assert_array_equal(a.image, b.image)
        if one.images:
            break
    assert one.images, 'the test needs a generated image'
    assert [part.image is None for part in partial] == [True, False] * len(one.images)


def test_a_stream_that_is_left_in_an_image_ends_the_turn(sampler):
    """The row goes on without an <image> token that has no image."""
    left = False
    for seed in range(20):
        talk = sampler.conversation()
        for part in talk.stream('draw two small dogs', seed=seed, partial_images=1, **HOW):
            if left := isinstance(part, PartialImage):
                break
        if left:
            break
    assert left
    learned = [p for p in talk._row.pieces if isinstance(p, conversation.Tokens) and p.learned]
    ids = [token for piece in learned for token in piece.ids]
    assert talk.messages[-1].text == sampler.tokenizer.decode(ids).strip()
    with pytest.raises(UserError, match='size=7x7'):  # and says nothing
        talk.send('again', seed=0, **HOW, size=(7, 7))
    talk.send('again', seed=0, **HOW)
    pieces = [piece for piece in talk._row.pieces if isinstance(piece, conversation.Tokens)]
    begun = sum(piece.ids.count(sampler.tokenizer.image) for piece in pieces)
    assert begun == len(talk._row.generated)
    logits = talk._engine._context.logits[0]
    right = full_forward(sampler)(talk._row)[talk._row.cached['text'] - 1]
    np.testing.assert_allclose(logits, right, atol=1e-5)
    assert [each.role for each in talk.messages] == ['user', 'assistant'] * 2


def test_images_that_were_generated_may_be_sent_back(sampler, talked):
    """They stand in the conversation as they were generated; an array is only read."""
    talk, _ = talked
    (image, *_) = [i for m in talk.messages if m.role == 'assistant' for i in m.images]
    for given, count in ((image, 1), (image.image, 0)):
        row = sampler.chat_row()
        row.say([user('draw two small dogs'), assistant(given), user('again')])
        assert len(row.generated) == count and len(row.images) == 1
    original = talk._row.generated[0]
    np.testing.assert_array_equal(original.tokens, image.tokens.reshape(-1))
    np.testing.assert_array_equal(original.image, image.image)


def test_a_seed_decides(sampler, conversations, together):
    (again,) = sampler.chat(conversations[:1], seed=3, **HOW)
    assert_same(again, together[0])
    assert any(
        sampler.chat(conversations[0], seed=seed, **HOW).text != again.text for seed in (4, 5, 6)
    )


def test_text_alone_when_images_are_off(sampler, conversations):
    message = sampler.chat(conversations[1], seed=3, images=False, **HOW)
    assert not message.images


def test_a_size_that_no_row_holds_is_one_line(sampler, request):
    capacity = sampler.config.data.capacity
    request.addfinalizer(lambda: capacity.update(representation=80))
    capacity.update(representation=16)
    with pytest.raises(UserError, match=r'size=128x128: a row of this model .* holds no image of'):
        sampler.chat('a', size=(128, 128))


def test_more_than_all_tokens_may_be_kept(sampler, conversations):
    said = [sampler.chat(conversations[0], seed=3, top_k=k, **HOW) for k in (0, 2**40)]
    assert_same(*said)


def test_openai_messages(sampler, images):
    parts = [{'type': 'image', 'image': images[0]}, {'type': 'text', 'text': 'a red heart'}]
    form = [{'role': 'user', 'content': parts}]
    assert_same(sampler.chat(form, **HOW), sampler.chat([user(images[0], 'a red heart')], **HOW))


def test_images_have_the_size_asked_for_or_that_of_the_last(sampler, images):
    def drawn(messages, **more):
        for seed in range(20):
            found = sampler.chat(messages, **HOW | more | {'seed': seed, 'max_tokens': 24})
            if found.images:
                return found.images[0].image.shape[:2]
        raise AssertionError('no image in 20 answers')

    assert drawn([user('draw a flag')]) == (64, 64)
    assert drawn([user(images[1], 'draw a flag')]) == (32, 64)
    assert drawn([user('draw a flag')], size=(64, 32)) == (64, 32)


@pytest.mark.parametrize(
    'messages, settings, said',
    [
        (5, {}, 'messages are a int, expected a list'),
        ([{'role': 'user'}], {}, 'message 1: the content is a NoneType'),
        ([{'role': 'dog', 'content': 'a'}], {}, "role 'dog'"),
        ([user('a ' * 300)], {}, r'data.capacity.text=160: start a new conversation'),
        ([user('/nowhere/a.png')], {'size': (30, 64)}, 'size=30x64: both sides must be'),
        (
            [Message('user', (ImagePart('/nowhere/a.png'),))],
            {},
            'message 1, image /nowhere/a.png: the file',
        ),
        ([user('a')], {'temprature': 1}, "no option 'temprature'"),
        ([user(*[np.zeros((32, 32, 3), np.uint8)] * 11)], {}, 'data.capacity.vision_images=10'),
    ],
)
def test_what_cannot_be_answered(sampler, messages, settings, said):
    with pytest.raises(UserError, match=said):
        sampler.chat(messages, **settings)


def test_an_answer_ends_where_the_row_ends(sampler):
    """Without a limit an answer may fill the row, and says why it ended."""
    engine, row = sampler.chat_engine(1), sampler.chat_row()
    row.say([user('flag')])
    engine.start(0, row, chat_engine.Settings(images=False))
    engine.tokenizer = sampler.tokenizer
    answer = engine.answers[0]
    while not answer.ended:
        engine.step()
    assert answer.ended in (chat_engine.LENGTH, chat_engine.STOP)
    assert row.size()['text'] <= 160


# Sampling


def rule(rows, **changed):
    found = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0} | changed
    types = {'temperature': np.float32, 'top_k': np.int32, 'top_p': np.float32}
    arrays = {name: np.full(rows, value, types[name]) for name, value in found.items()}
    return text_sampling.Rule(**arrays, seed=np.arange(rows, dtype=np.uint32))


LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


@pytest.mark.parametrize(
    'changed, right',
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({'temperature': 0.0}, [1, 0, 0, 0]),
        ({'top_k': 2}, [0.625, 0.375, 0, 0]),
        ({'top_p': 0.7}, [0.625, 0.375, 0, 0]),
        ({'top_p': 0.01}, [1, 0, 0, 0]),
        ({'temperature': 0.5}, np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
    ],
)
def test_tokens_follow_the_distribution(changed, right):
    rows = 4000
    logits = np.broadcast_to(LOGITS, (rows, 4))
    found = text_sampling.choose(logits, rule(rows, **changed), jnp.zeros(rows, jnp.int32))
    share = np.bincount(found, minlength=4) / rows
    np.testing.assert_allclose(share, right, atol=0.03)
    assert all(share[np.array(right) == 0] == 0)


def test_each_place_of_a_row_has_its_own_draw():
    rows = 4000
    same = rule(rows)._replace(seed=np.full(rows, 7, np.uint32))
    places = jnp.arange(rows)
    found = text_sampling.choose(jnp.broadcast_to(LOGITS, (rows, 4)), same, places)
    np.testing.assert_allclose(np.bincount(found, minlength=4) / rows, np.exp(LOGITS), atol=0.03)


def test_incomplete_characters_are_held_back(sampler):
    ids = sampler.tokenizer.encode('ä!')
    reader = chat.Reader(sampler.tokenizer)
    said = [text for i in ids for text in reader.read(chat_engine.Said((i,)))]
    assert ''.join(said) == 'ä!' and all('\N{REPLACEMENT CHARACTER}' not in text for text in said)
