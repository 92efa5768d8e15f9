"""Which images a server still knows when they come back."""

import numpy as np
import pytest

pytest.importorskip('starlette')

from rf_jax.data.messages import assistant, user
from rf_jax.generation.generated_image import GeneratedImage, token_map
from rf_jax.serving.sent_images import SentImages


def image(number):
    """An image of its own, with 1,024 bytes of continuous tokens."""
    pixels = np.full((4, 4, 3), number, np.uint8)
    return GeneratedImage(pixels, np.zeros((4, 4, 16), np.float32), '', 0)


def known(sent, number):
    (found,) = sent.restored(assistant(image(number).image)).images
    return isinstance(found, GeneratedImage)


def test_memory_is_bounded_in_bytes_and_the_oldest_is_forgotten():
    sent = SentImages(most_bytes=3 * 1024)
    for number in range(5):
        sent.keep(image(number))
        sent.keep(image(number))  # the same again takes nothing
    assert [known(sent, number) for number in range(5)] == [False, False, True, True, True]


def test_an_image_that_comes_back_is_not_forgotten_before_one_that_does_not():
    sent = SentImages(most_bytes=3 * 1024)
    for number in range(3):
        sent.keep(image(number))
    assert known(sent, 0)
    sent.keep(image(3))
    assert known(sent, 0) and not known(sent, 1)
    sent.keep(image(2))
    sent.keep(image(4))
    assert known(sent, 2) and not known(sent, 3)


def test_an_image_of_the_user_is_only_read():
    sent = SentImages()
    sent.keep(image(0))
    message = user(image(0).image)
    assert sent.restored(message) is message


def test_tokens_that_are_kept_keep_no_batch():
    batch = np.zeros((32, 17, 8), np.float32)
    found = token_map(batch[3], (64, 64), 16, 1)
    assert found.shape == (4, 4, 8) and not np.shares_memory(found, batch)
