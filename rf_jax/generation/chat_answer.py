"""One answer of a chat: how it is sampled, how far it is, what it says in a step."""

from dataclasses import dataclass, field

from rf_jax.generation import image_sampling
from rf_jax.generation.chat_row import ChatRow
from rf_jax.generation.generated_image import GeneratedImage, PartialImage

LENGTH, STOP = 'length', 'stop'  # why an answer ended


@dataclass(frozen=True)
class Settings:
    """How an answer is sampled. `temperature` 0 is greedy; `max_tokens` 0 is as many as the row has
    room for; `size` (height, width) in pixels of images, None: as the last one, else a square of
    the largest training size; `images` False: text only; `partial_images`: how many of an image
    are shown before it is finished.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 0
    size: tuple[int, int] | None = None
    images: bool = True
    partial_images: int = 0
    sampling: image_sampling.Options = field(default_factory=image_sampling.Options)


@dataclass
class Answer:
    """A row that is being answered. `left`: text tokens that may still be sampled; `waited`: steps
    since it wants an image; `ended`: '', or LENGTH or STOP.
    """

    row: ChatRow
    settings: Settings
    left: int
    wants_image: bool = False
    waited: int = 0
    ended: str = ''


@dataclass(frozen=True)
class Said:
    """What a row said in a step: text tokens or an image; nothing, or what can be seen of it, while
    it is generated. `ended` as in Answer.
    """

    tokens: tuple[int, ...] = ()
    image: GeneratedImage | None = None
    partial: PartialImage | None = None
    ended: str = ''
