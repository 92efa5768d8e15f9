"""Replies of /v1/chat/completions, whole and streamed."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from rf_jax.generation.chat import Delta, Reader, Trimmed
from rf_jax.generation.chat_answer import Said
from rf_jax.generation.generated_image import GeneratedImage, PartialImage


class StopText:
    """Ends text before the first of `stops`; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]):
        self.stops, self.found, self._held = tuple(stops), False, ''

    def read(self, text: str) -> str:
        """Text that may be shown, now that `text` has come."""
        if self.found:
            return ''
        held = self._held + text
        at = [held.find(stop) for stop in self.stops if stop in held]
        if at:
            self.found, self._held = True, ''
            return held[: min(at)]
        begun = max(
            (
                n
                for stop in self.stops
                for n in range(1, min(len(stop), len(held) + 1))
                if held.endswith(stop[:n])
            ),
            default=0,
        )
        self._held = held[len(held) - begun :]
        return held[: len(held) - begun]

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ''
        return '' if self.found else held


@dataclass
class Answered:
    """One choice as it comes. `done`: '', or why it ended; `images` PNG in base64; `tokens` of
    text, up to the one that completes a stop text.
    """

    reader: Reader
    stop: StopText
    text: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    tokens: int = 0
    done: str = ''
    _trimmed: Trimmed = field(default_factory=Trimmed)
    _after_image: bool = False

    def read(self, said: Said) -> Iterator[Delta]:
        """What of it is shown: together the same text as `Message.text`, up to a stop text."""
        # One by one, to know at which token it stops.
        steps = [replace(said, tokens=(token,), ended='') for token in said.tokens[:-1]]
        last = replace(said, tokens=said.tokens[-1:])
        for step in (*steps, last) if self.stop.stops else (said,):
            self.tokens += len(step.tokens)
            for part in self.reader.read(step):
                yield from self._shown(part)
                if self.stop.found:
                    return
            if step.ended:
                yield from self._show(self.stop.rest())

    def _shown(self, part: Delta) -> Iterator[Delta]:
        if isinstance(part, str):
            yield from self._show(self.stop.read(part))
            return
        if isinstance(part, GeneratedImage):
            yield from self._show(self.stop.rest())  # no stop text goes on after an image
            self._trimmed, self._after_image = Trimmed(), bool(self.text)
        yield part

    def _show(self, text: str) -> Iterator[str]:
        if text := self._trimmed.read(text):
            text = f' {text}' if self._after_image else text
            self._after_image = False
            self.text.append(text)
            yield text

    @staticmethod
    def usage(answers: Sequence['Answered'], prompt: int) -> dict:
        """Numbers of tokens."""
        written = sum(answer.tokens for answer in answers)
        return {
            'prompt_tokens': prompt,
            'completion_tokens': written,
            'total_tokens': prompt + written,
        }


def completion(answers: Sequence[Answered], about: Mapping, prompt: int) -> dict:
    """The reply to a request that is not streamed. A message with images has them in `images`."""
    choices = []
    for number, answer in enumerate(answers):
        message = {'role': 'assistant', 'content': ''.join(answer.text), 'refusal': None}
        if answer.images:
            message['images'] = [image_url(*each) for each in enumerate(answer.images)]
        choices.append({
            'index': number, 'message': message, 'finish_reason': answer.done or 'stop',
            'logprobs': None,
        })  # fmt: skip
    usage = Answered.usage(answers, prompt)
    return {**about, 'object': 'chat.completion', 'choices': choices, 'usage': usage}


def chunk(
    about: Mapping,
    number: int | None,
    delta: Mapping,
    finish: str | None = None,
    usage: Mapping | None = None,
) -> str:
    """One server-sent event; `number` None has no choice, only usage."""
    choices = []
    if number is not None:
        choices = [{'index': number, 'delta': delta, 'finish_reason': finish, 'logprobs': None}]
    body = {**about, 'object': 'chat.completion.chunk', 'choices': choices, 'usage': usage}
    return f'data: {json.dumps(body)}\n\n'


def image_url(number: int, text: str) -> dict:
    """Image `number` of an answer, a PNG in base64, as a part of a message. By its `index` clients
    that join deltas tell it from the others.
    """
    url = f'data:image/png;base64,{text}'
    return {'type': 'image_url', 'image_url': {'url': url}, 'index': number}


def partial_image(image: PartialImage) -> dict:
    """What can be seen of an image, as a delta has it; `b64_json` null while tokens are sampled."""
    text = None if image.image is None else png_base64(image.image)
    return {'partial_image_index': image.index, 'b64_json': text, 'tokens': codes(image.tokens)}


def codes(tokens: np.ndarray | None) -> list | None:
    """Representation tokens as rows of numbers, -1 where there is none yet; None if they are not
    codes.
    """
    return tokens.tolist() if tokens is not None and tokens.dtype.kind == 'i' else None


def png_base64(image: np.ndarray) -> str:
    """uint8 [h, w, 3] as a PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()
