"""Flags of the commands that load a trained model, as arguments of `Sampler.load`."""

import ast
import re
from collections.abc import Callable

from absl import flags

from rf_jax.runtime.errors import require

flags.disclaim_key_flags()  # --helpshort of a command lists what is defined here for it


class _Mesh(flags.ArgumentParser):
    """Devices along axes, as in tensor:4,expert:2; gives a dictionary."""

    def parse(self, argument: str) -> dict[str, int]:
        pairs = re.findall(r'(\w+):(\d+)(?:,|$)', argument)
        sizes = dict(pairs)
        if not pairs or ','.join(map(':'.join, sizes.items())) != argument:
            raise ValueError('expected devices along axes, as in tensor:4,expert:2')
        return {axis: int(size) for axis, size in sizes.items()}


MESH = _Mesh()  # flags.DEFINE(model_flags.MESH, name, ...)


def placement() -> Callable[[], dict]:
    """Defines --mesh and --dtype; the function gives them as arguments of `Sampler.load`."""
    mesh = flags.DEFINE(
        MESH,
        'mesh',
        None,
        'Devices that share the model, as in tensor:4 or tensor:4,expert:2; the rest generate rows '
        'of their own. One device by default.',
    )
    dtype = flags.DEFINE_enum(
        'dtype', None, ['bfloat16'], 'Of parameters and activations; that of the run by default.'
    )
    return lambda: {'mesh': mesh.value, 'dtype': dtype.value}


def sampling() -> Callable[[], dict]:
    """Defines --sampling; the function gives it as an argument of `Sampler.load`."""
    given = flags.DEFINE_multi_string(
        'sampling',
        [],
        'FIELD=VALUE, several times: fields of config.sampling in place of those of the run, as in '
        '--sampling=steps=50 --sampling=guidance_pixels=2.',
    )

    def parsed() -> dict:
        found = {}
        for text in given.value:
            name, equals, value = text.partition('=')
            require(equals, f'--sampling={text}: expected FIELD=VALUE, as in steps=50')
            try:
                found[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):  # a word
                found[name] = value
        return {'sampling': found}

    return parsed
