"""The frozen model beside the policy: reference of the KL, decoder and encoder of rewards."""

from typing import Any

import jax
from absl import logging

from rf_jax.runtime import checkpoint, checkpoint_files, distributed, paths
from rf_jax.runtime.errors import UserError
from rf_jax.training import weight_sources
from rf_jax.training.jitted import Programs


def load(run: Programs) -> Any:
    """The EMA of `grpo.reference`, or of `initialise_from`, sharded as the run's own.

    All processes must call it. Raises UserError if it is missing or has other shapes.
    """
    name = run.config.grpo.reference
    found = [each for each in weight_sources.listed(run.config) if each.kind is weight_sources.Run]
    if name:
        found = [weight_sources.Listed(weight_sources.Run, paths.anywhere(name, 'grpo.reference'))]
    if not found:
        raise UserError('grpo.reference and initialise_from name no run: nothing to reinforce')
    field = f'grpo.reference={name}' if name else f'initialise_from={run.config.initialise_from}'
    wanted = {'ema': run.abstract.ema}

    def place(held):
        there, here = (checkpoint_files.flatten(tree) for tree in (held, wanted))
        wrong = [
            f'{path}: {there[path].shape if path in there else "absent"}, expected {leaf.shape}'
            for path, leaf in here.items()
            if path not in there or there[path].shape != leaf.shape
        ]
        if wrong:
            raise UserError(
                f'{field}: another model than that of this config ({len(wrong)} arrays '
                f'differ): {"; ".join(wrong[:5])}'
            )
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
                            wanted)  # fmt: skip

    _, folder, at = found[0]
    directory = folder / 'checkpoints'
    if at is None:  # the same on all hosts, even while that run is still saving
        at = int(distributed.broadcast(lambda: str(checkpoint.latest(directory)[0]).encode()))
    step, saved = checkpoint.restore_placed(directory, at, 'ema', place)
    logging.info('Reference: the EMA of %s at step %d', folder, step)
    return saved['ema']
