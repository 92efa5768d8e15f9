"""A model that writes before an image, or looks at it afterwards: `think` and `redraw`, on top of
the chat, for runs trained on such conversations (configs/posttraining/think.py).

from rf_jax.generation.thinking import redraw, think

for text, image in think(sampler, ['the shape of a wheel, ...']): ...
for draft, critique, image in redraw(sampler, ['a red circle left of a blue ring']): ...
"""

from collections.abc import Sequence
from dataclasses import replace

from rf_jax.data.messages import Message, assistant, user
from rf_jax.generation import arguments, chat
from rf_jax.generation.chat_row import ChatRow
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.runtime.errors import require
from rf_jax.runtime.rng import fold

Drawn = tuple[GeneratedImage, str, GeneratedImage]


def think(
    sampler, prompts: str | Sequence[str], thoughts: Sequence[str] = (), seed: int = 0, **settings
) -> list[tuple[str, GeneratedImage | None]]:
    """What the model writes about each prompt, '' if it writes nothing, and the image that follows;
    None if none does. `thoughts` are taken in place of its own, and an image always follows.

    `settings` as in `Sampler.chat`. The randomness of an image depends only on (seed, prompt), and
    on how often the prompt occurs before it. Raises UserError.
    """
    prompts = arguments.strings(prompts, 'prompts')
    thoughts = _for_each(prompts, 'thoughts', arguments.strings(thoughts, 'thoughts'))
    begun = [(each,) for each in thoughts] if thoughts else [()] * len(prompts)
    said = _answers(sampler, prompts, begun, seed, bool(thoughts), settings)
    texts = thoughts or [message.text for message in said]
    return [(text, _last_image(message)) for text, message in zip(texts, said, strict=True)]


def draw(sampler, prompts: str | Sequence[str], seed: int = 0, **settings) -> list[GeneratedImage]:
    """The first image of each prompt, as `think` generates it without a text before it. Raises
    UserError, also for a prompt after which there is no room for it.
    """
    prompts = arguments.strings(prompts, 'prompts')
    said = _answers(sampler, prompts, [()] * len(prompts), seed, True, settings)
    for prompt, message in zip(prompts, said):
        require(
            message.images,
            f'prompt {prompt!r:.80}: a row of the model (data.capacity) has no room for an image '
            'after it; give a shorter prompt',
        )
    return [message.images[0] for message in said]


def redraw(
    sampler,
    prompts: str | Sequence[str],
    drafts: Sequence[GeneratedImage] = (),
    critiques: Sequence[str] = (),
    seed: int = 0,
    **settings,
) -> list[Drawn]:
    """The first image of each prompt, what the model writes about it, and the image that it then
    generates; the first again if it generates no other.

    `drafts` are taken in place of its own first images; `critiques` in place of what it writes, and
    another image always follows. Otherwise as `think`.
    """
    prompts = arguments.strings(prompts, 'prompts')
    critiques = _for_each(prompts, 'critiques', arguments.strings(critiques, 'critiques'))
    drafts = [drafts] if isinstance(drafts, GeneratedImage) else drafts
    drafts = _for_each(prompts, 'drafts', drafts) or draw(sampler, prompts, seed, **settings)
    if critiques:
        begun = list(zip(drafts, critiques, strict=True))
    else:
        begun = [(draft,) for draft in drafts]
    said = _answers(sampler, prompts, begun, seed, bool(critiques), settings)
    texts = critiques or [message.text for message in said]
    return [
        (draft, text, _last_image(message) or draft)
        for draft, text, message in zip(drafts, texts, said, strict=True)
    ]


def _for_each(prompts: Sequence[str], name: str, given: Sequence) -> Sequence:
    """What is `given`: nothing, or one for each prompt. Raises UserError."""
    require(
        len(given) in (0, len(prompts)),
        f'{len(given)} {name} and {len(prompts)} prompts: give one for each prompt, or none',
    )
    return given


def _answers(sampler, prompts, begun, seed: int, draw: bool, settings) -> list[Message]:
    """How the answers go on that begin with `begun`; `draw`: with one image and no text."""
    how = chat.settings_of(sampler, settings)
    rows: list[ChatRow] = []
    for prompt, parts in zip(prompts, begun, strict=True):
        rows.append(sampler.chat_row())
        rows[-1].say([user(f'draw {prompt}')])
        rows[-1].begin(assistant(*parts))
    numbers, seed = arguments.occurrences(list(prompts)), arguments.integer('seed', seed)
    seeds = [fold(seed, prompt, n) % 2**32 for prompt, n in zip(prompts, numbers)]
    return chat.continued(sampler, rows, [replace(how, seed=each) for each in seeds], draw)


def _last_image(message: Message) -> GeneratedImage | None:
    return message.images[-1] if message.images else None
