"""Peak memory of a compiled program, and the buffers that are live at the peak.

libtpu reports the size of the peak but not its buffers: `serialized_buffer_assignment_proto` of its
analysis is empty. They are estimated here from the text of the program, whose instructions are in
execution order. A buffer is live from the instruction that writes it to the last one that reads it;
loops update theirs in place. Padding to whole tiles is ignored. For the programs of
configs/paper.py the estimate is within a few percent of libtpu's figure. `parts` says what the
buffers are, and which config field reduces each part.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from rf_jax.planning import hlo
from rf_jax.planning.hlo import Instruction

# Operations that return a view of their operand and allocate no memory.
_VIEWS = {'bitcast', 'while', 'optimization-barrier', 'dynamic-update-slice'}
_SMALL = {'parameter', 'constant', 'iota', 'after-all', 'partition-id', 'replica-id'}
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
    # As XLA names them for GPUs: what a loop over parts of the batch sums, and keeps of a part.
    (r'jit\(\w+\)/broadcast_in_dim$', 'gradients, summed over parts of the batch', 'mesh.fsdp', ''),
    (r'.*/while/body/closed_call$', 'activations kept for the backward pass',
     'model.backbone.remat', 'mesh.context'),
    (r'', 'other arrays', '', ''),
)  # fmt: skip


def peak(memory, platform: str) -> float:
    """Bytes of a device's memory that a program needs, from `compiled.memory_analysis()`.

    On TPU this is libtpu's peak: a program compiles if that is below the memory of a chip, even if
    arguments, outputs and temporaries add up to more, since they share memory. It includes host
    memory, which is subtracted here. The peaks of other compilers leave out temporaries, so for
    them this is the sum of all parts, an upper bound.
    """
    if platform == 'tpu':
        return memory.peak_memory_in_bytes - host(memory)
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes


def host(memory) -> float:
    """Bytes of host memory that a program needs for one device; `memory` as for `peak`."""
    outputs = memory.host_output_size_in_bytes - memory.host_alias_size_in_bytes
    return memory.host_argument_size_in_bytes + outputs + memory.host_temp_size_in_bytes


@dataclass(frozen=True)
class Buffer:
    """One array in memory: its bytes, its shape as in f32[8,128], and its JAX operation."""

    bytes: float
    shape: str
    op_name: str


def at_peak(text: str) -> list[Buffer]:
    """Arguments and live buffers at the peak of `compiled.as_text()`, largest first."""
    computations, entry = hlo.parse(text)
    if not entry:
        return []

    @cache
    def of(name: str) -> tuple[float, tuple[Buffer, ...]]:
        aliased = _aliased(text) if name == entry else None
        return _peak(computations[name], computations, of, aliased)

    arguments = [
        Buffer(array.bytes, array.shape, i.op_name)
        for i in computations[entry].values()
        if i.op == 'parameter'
        for array in i.arrays
        if array.main
    ]
    return sorted((*arguments, *of(entry)[1]), key=lambda buffer: -buffer.bytes)


def _aliased(text: str) -> set[int]:
    """Indices of the outputs that reuse the memory of donated arguments."""
    match = re.search(r'input_output_alias=\{(.*?)\) \}', text.partition('\n')[0])
    return {int(n) for n in re.findall(r'\{(\d+)\}: \(', match[1])} if match else set()


def _peak(table, computations, of, aliased: set[int] | None) -> tuple[float, tuple[Buffer, ...]]:
    """(bytes, buffers) at the peak of a computation, including the computations it calls.

    `aliased`: indices of outputs in memory owned by the caller; None: all of them.
    """
    order = list(table.values())
    done = {i.operands[0]: i for i in order if i.op.endswith('-done')}
    sizes: dict[str, Buffer] = {}  # of every buffer allocated here
    created, values = defaultdict(list), {}
    last: dict[str, int] = {}
    for n, i in enumerate(order):
        values[i.name] = _value(i, values, table, computations, done)
        for name, buffer in _new_buffers(i, values[i.name], _op_name_of(i, table, done), done):
            if name not in sizes:
                sizes[name] = buffer
                created[n].append(name)
        part = i.op == 'get-tuple-element'  # reads no more than the part
        for operand in [i.name] if part else i.operands:
            for name in _leaves(values.get(operand, ())):
                last[name] = n
                if name in sizes and not sizes[name].op_name:  # zeros that a loop fills
                    sizes[name] = replace(sizes[name], op_name=i.op_name)
    root = next((i for i in order if i.root), None)
    outputs = values[root.name] if root else ()
    for k, part in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
        for name in _leaves(part):
            last[name] = len(order)
            if aliased is None or k in aliased:
                sizes.pop(name, None)
    return _find_peak(order, created, last, sizes, of)


def _find_peak(order, created, last, sizes, of) -> tuple[float, tuple[Buffer, ...]]:
    ends, alive, total, best = defaultdict(list), set(), 0.0, (0.0, ())
    for n, names in created.items():
        for name in names:
            ends[max(n, last.get(name, n))].append(name)
    for n, i in enumerate(order):
        new = [name for name in created[n] if name in sizes]
        ending = [name for name in ends[n] if name in alive]
        total += sum(sizes[name].bytes for name in new)
        alive |= set(new)
        reused = _reused(i, new, ending, sizes)
        inner = max((of(name) for name in _called(i)), default=(0.0, ()))
        if total - sum(sizes[name].bytes for name in reused) + inner[0] > best[0]:
            here = tuple(sizes[name] for name in alive - reused)
            best = (sum(buffer.bytes for buffer in here) + inner[0], (*here, *inner[1]))
        for name in ends[n]:
            if name in alive:
                alive.remove(name)
                total -= sizes[name].bytes
    return best


def _reused(i: Instruction, new, ending, sizes) -> set[str]:
    """Buffers whose last read is here, and whose memory an elementwise fusion reuses."""
    if 'kind=kLoop' not in i.attributes:
        return set()
    wanted = [sizes[name].bytes for name in new]
    reused = set()
    for name in ending:
        if name not in new and sizes[name].bytes in wanted:
            wanted.remove(sizes[name].bytes)
            reused.add(name)
    return reused


def _called(i: Instruction) -> list[str]:
    if i.op == 'while':
        return i.called('body')
    if i.op == 'conditional':
        return i.called('branch_computations') or [
            *i.called('true_computation'),
            *i.called('false_computation'),
        ]
    return i.called('to_apply') if i.op == 'call' else []


def _value(i: Instruction, values, table, computations, done):
    """The buffers that hold the result of an instruction: a set, or a tuple of such values."""
    if i.op in _SMALL:
        return frozenset()
    if i.op == 'tuple':
        return tuple(values.get(name, frozenset()) for name in i.operands)
    if i.op == 'get-tuple-element':
        operand, index = values[i.operands[0]], re.search(r'index=(\d+)', i.attributes)
        return operand[int(index[1])] if isinstance(operand, tuple) else operand
    if i.op in _VIEWS or i.op.endswith(('-done', '-update')):
        return values[i.operands[0]]
    if i.op == 'fusion' and (operand := _in_place(i, computations)):
        return values[operand]
    if i.op.endswith('-start'):
        return frozenset({i.name}) if i.name in done else frozenset()
    noted = re.search(r'output_to_operand_aliasing=\{(.*?)\)\}', i.attributes)
    aliased = dict(re.findall(r'\{([\d, ]*)\}: \((\d+)', noted[1])) if noted else {}
    names = [
        values[i.operands[int(aliased[key])]]
        if (key := str(k) if len(i.arrays) > 1 else '') in aliased
        else frozenset({f'{i.name} {k}'})
        for k in range(len(i.arrays))
    ]
    return names[0] if len(names) == 1 else tuple(names)


def _in_place(i: Instruction, computations) -> str | None:
    """The operand into which a fusion writes a slice."""
    body = computations.get(i.called('calls')[0], {})
    at = next((x for x in body.values() if x.root), None)
    if at is None or at.op not in ('dynamic-update-slice', 'bitcast'):
        return None
    while at is not None and at.op in ('dynamic-update-slice', 'bitcast'):
        at = body.get(at.operands[0])
    return i.operands[int(at.argument)] if at is not None and at.op == 'parameter' else None


def _op_name_of(i: Instruction, table, done) -> str:
    """JAX operation of an instruction; for a cast that the compiler moved, that of its operand."""
    name = i.op_name or (done[i.name].op_name if i.name in done else '')
    if i.op in ('convert', 'copy') and not name:
        return _op_name_of(table[i.operands[0]], table, done) if i.operands[0] in table else ''
    # A name such as broadcast.406 is not that of a JAX operation.
    return '' if re.fullmatch(r'[a-z_\-]+[.\d]*', name) else name


def _new_buffers(i: Instruction, value, op_name: str, done):
    """(name, Buffer) of each buffer that an instruction may allocate."""
    arrays = done[i.name].arrays if i.name in done else i.arrays
    if i.name in done:
        total = sum(array.bytes for array in arrays if array.main)
        if total and i.name in value:
            yield i.name, Buffer(total, arrays[0].shape, op_name)
        return
    own = set(_leaves(value))
    for k, array in enumerate(arrays):
        if array.main and array.bytes and f'{i.name} {k}' in own:
            yield f'{i.name} {k}', Buffer(array.bytes, array.shape, op_name)


def _leaves(value) -> set[str]:
    if isinstance(value, tuple):
        return set().union(*map(_leaves, value))
    return set(value)


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
