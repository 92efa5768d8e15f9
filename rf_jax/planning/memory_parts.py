"""What a program spends its memory on, and the config field that makes each part smaller."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rf_jax.planning.hlo_memory import Buffer

_LOOP = r'/backbone/(while|broadcast_in_dim)$'  # what the loop over layers fills or sums up
# (regex on the path of an operation or of an argument, what its arrays are, the field that makes
# them smaller and the one to turn to where that is spent); the first row that matches counts.
PARTS = (
    (r'(state\.)?params\b', 'parameters and their casts', 'mesh.fsdp', ''),
    (r'(state\.)?ema\b', 'average of the parameters', 'offload', 'mesh.fsdp'),
    (r'(state\.)?opt_state\b', 'optimizer state', 'offload', 'mesh.fsdp'),
    (r'batch\b', 'batch', 'data.capacity', ''),
    (r'.*(loss_text|text_head)', 'text logits, head and gradients', 'mesh.tensor', ''),
    (r'.*(loss_representation|representation_head)', 'representation logits, head and gradients',
     'mesh.tensor', ''),
    (r'.*\bautoencoder\b', 'autoencoder', 'model.autoencoder.remat', 'data.capacity.pixels'),
    (r'.*Unified\.features/', 'encoder of targets', 'data.capacity.pixels', ''),
    (r'.*\bencoder/', 'encoder', 'model.encoder.remat', 'data.capacity.vision'),
    (rf'.*/jvp\(Unified\){_LOOP}', 'what layers keep for the backward',
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
    """Buffers, the largest first, summed by kind. `fields`: {dotted name: value} of a config."""
    found: dict[str, Part] = {}
    for buffer in buffers:
        _, what, field, then = next(row for row in PARTS if re.match(row[0], buffer.op_name))
        spent = fields.get(field) == 'full' or (field == 'offload' and len(fields[field]) == 2)
        new = Part(what, 0.0, buffer.shape, then if spent else field)
        old = found.get(what, new)
        found[what] = replace(old, bytes=old.bytes + buffer.bytes)
    return tuple(sorted(found.values(), key=lambda part: -part.bytes))
