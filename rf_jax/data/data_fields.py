"""Config fields of the data that must fit together."""

from collections.abc import Sequence

from rf_jax.data import maps, patch_grid, spans
from rf_jax.runtime.errors import UserError, require

CONVERSING = ('conversation', *maps.TASKS)  # tasks whose examples are conversations
TASKS = ('text_to_image', 'image_to_text', 'text_only', *CONVERSING)


def asked_maps(config) -> list[str]:
    """The maps that a run learns to draw."""
    return [name for task, name in maps.TASKS.items() if config.data.tasks.get(task, 0) > 0]


def talks(config) -> bool:
    """Whether a run learns to answer messages that may have images with images and text."""
    return any(config.data.tasks.get(task, 0) > 0 for task in CONVERSING)


def check(config) -> None:
    """Raises UserError for capacities, image sizes and text lengths that do not fit together."""
    data, capacity, pool = config.data, config.data.capacity, spans.pool_of(config)
    unit = patch_grid.unit(pool) * data.patch_size
    unknown = set(data.tasks) - set(TASKS)
    if unknown:
        raise UserError(f'data.tasks has {sorted(unknown)}; known: {", ".join(TASKS)}')
    for name, weight in data.tasks.items():
        require(weight >= 0, f'data.tasks.{name}={weight} must be at least 0')
    for name in ('threads', 'prefetch', 'workers'):
        require(data[name] >= 0, f'data.{name}={data[name]} must be at least 0')
    busy = data.threads <= max(data.prefetch, 1)  # each thread makes whole batches
    require(busy, f'data.threads={data.threads} is more than data.prefetch={data.prefetch}')
    for name in (
        'label_prob',
        'question_prob',
        'text_dropout',
        'representation_dropout',
        'image_dropout',
        'joint_dropout',
    ):
        require(0 <= data[name] <= 1, f'data.{name}={data[name]} must be a probability in [0, 1]')
    if not data.sizes:
        raise UserError('data.sizes is empty; the default is ((64, 1.0),)')
    for entry in data.sizes:
        match entry:
            case [int(longest), int(weight) | float(weight)] if weight > 0:
                pass
            case _:
                raise UserError(
                    f'data.sizes={data.sizes!r}: expected pairs (whole pixels, weight above 0) as '
                    "in --config.data.sizes='((64, 0.7), (32, 0.3))'"
                )
        if longest < unit or longest % unit:
            near = max(unit, longest // unit * unit)
            raise UserError(
                f'data.sizes has {longest} px, which is not a multiple of {unit} '
                f'({unit // data.patch_size} x data.patch_size = {unit}); use {near}'
            )
    largest = max(longest for longest, _ in data.sizes)
    position_grid = config.model.representation.position_grid
    side = largest // data.patch_size // max(pool, 1)
    if pool and side > position_grid:
        raise UserError(
            f'data.sizes has {largest} px, {side} representation tokens per side; '
            f'model.representation.position_grid={position_grid} must be at least that'
        )
    patches = (largest // data.patch_size) ** 2
    wanted = {}
    if data.tasks.get('text_to_image', 0) > 0:
        wanted |= {'pixels': patches, 'pixel_images': 1}
        wanted |= {'representation': patches // pool**2 + 1} if pool else {}
    if data.tasks.get('image_to_text', 0) > 0:
        wanted |= {'vision': patches // 4, 'vision_images': 1}
    if asked_maps(config):  # an image to read, and one to generate and then read
        wanted |= {'pixels': patches, 'pixel_images': 1}
        wanted |= {'vision': patches // 2, 'vision_images': 2}
        wanted |= {'representation': patches // pool**2 + 1} if pool else {}
    if data.max_text_tokens < 8:
        raise UserError(
            f'data.max_text_tokens={data.max_text_tokens} leaves no room for a question, its '
            'answer and the special tokens around them: use at least 8'
        )
    wanted['text'] = data.max_text_tokens
    for name, need in wanted.items():
        if capacity[name] < need:
            raise UserError(
                f'data.capacity.{name}={capacity[name]} cannot hold one example, which may '
                f'need {need}: raise it, or lower '
                f'{"data.max_text_tokens" if name == "text" else "data.sizes"}'
            )
    group = patch_grid.unit(pool) ** 2
    if capacity['pixels'] % group:
        raise UserError(f'data.capacity.pixels={capacity["pixels"]} is not a multiple of {group}')


def check_template(config, tokenizer) -> None:
    """Raises UserError if the tokens around a question and its answer leave no room for both."""
    marks, most = tokenizer.chat.question_and_answer, config.data.max_text_tokens
    require(
        most >= marks + 2,
        f'data.max_text_tokens={most}: with {tokenizer.file}, {marks} tokens are around a question '
        f'and its answer; use at least {marks + 2}',
    )


def unserved(sources: str, empty: Sequence[str]) -> str:
    """The error for tasks without examples."""
    text = (
        f'no example of {sources!r} can serve {empty}: set data.tasks.{empty[0]}=0 or add a source '
        'that can (data.sources)'
    )
    name = maps.TASKS.get(empty[0])
    if name not in maps.DRAWN:
        return text
    return f'{text}; in captions.jsonl, "{name}" names the file of the map of each image'
