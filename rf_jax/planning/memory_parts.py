"""What a program uses its memory for, and the config field that reduces each part."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rf_jax.planning.hlo_memory import Buffer

# Buffers that the loop over layers fills or accumulates.
_LOOP = r'/backbone/(while|broadcast_in_dim)$'
# (regex on the path of an operation or argument, what its arrays are, the field that reduces them,
# the next field once that one is exhausted); the first match wins.
PARTS = (
    (r'(state\.)?params\b', 'parameters and their casts', 'mesh.fsdp', ''),
    (r'(state\.)?ema\b', 'EMA of the parameters', 'offload', 'mesh.fsdp'),
    (r'(state\.)?opt_state\b', 'optimizer state', 'offload', 'mesh.fsdp'),
    (r'batch\b', 'batch', 'data.capacity', ''),
    (r'.*(loss_text|text_head)', 'text logits, head and gradients', 'mesh.tensor', ''),
    (r'.*(loss_representation|representation_head)', 'representation logits, head and gradients',
     'mesh.tensor', ''),
    (r'.*\bautoencoder\b', 'autoencoder', 'model.autoencoder.remat', 'data.capacity.pixels'),
    (r'.*Unified\.features/', 'encoder of the targets', 'data.capacity.pixels', ''),
    (r'.*\bencoder/', 'encoder', 'model.encoder.remat', 'data.capacity.vision'),
    (rf'.*/jvp\(Unified\){_LOOP}', 'activations kept for the backward pass',
     'model.backbone.remat', 'mesh.context'),
    (rf'.*transpose\(jvp\(Unified\)\){_LOOP}', 'gradients of the backbone', 'mesh.fsdp', ''),
    (r'.*/(understanding|representation|pixels|shared)/.*shard_map',
     'routed experts of one layer and their tokens', 'mesh.expert', ''),
    (r'.*/backbone/', 'one layer', 'mesh.context', ''),
    (r'.*\bpatch_(in|out)\b', 'patches of pixels', 'data.capacity.pixels', ''),
    (r'', 'other arrays', '', ''),
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Buffers of one kind. `shape`: of the largest; `field`: as model.backbone.remat, or ''."""

    what: str
    bytes: float
    shape: str
    field: str


def parts(buffers: Iterable[Buffer], fields: Mapping[str, object]) -> tuple[Part, ...]:
    """Sums buffers by kind, largest first. `fields`: {dotted name: value} of a config."""
    totals: dict[str, Part] = {}
    for buffer in buffers:
        _, what, field, fallback = next(row for row in PARTS if re.match(row[0], buffer.op_name))
        exhausted = fields.get(field) == 'full' or (field == 'offload' and len(fields[field]) == 2)
        new = Part(what, 0.0, buffer.shape, fallback if exhausted else field)
        old = totals.get(what, new)
        totals[what] = replace(old, bytes=old.bytes + buffer.bytes)
    return tuple(sorted(totals.values(), key=lambda part: -part.bytes))
