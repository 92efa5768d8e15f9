"""A sample of an example of TensorFlow Datasets."""

import json

from rf_jax.data.shards import sample
from rf_jax.data.shards.sample import Sample
from rf_jax.data.sources.tfds_features import Features


def of(features: Features, example: dict, key: str, is_talk: bool) -> Sample:
    """Its captioned image or, if `is_talk`, its conversation. Raises as `sample.from_members`."""
    if is_talk:
        images = {f'{n}.png': image for n, image in enumerate(features.encoded(example))}
        text = json.dumps({'messages': features.turns(example)})
        return sample.from_members(key, {'json': text.encode(), **images})
    text = json.dumps({'caption': features.captions(example)})
    return sample.from_members(key, {'json': text.encode(), 'png': example[features.image]})
