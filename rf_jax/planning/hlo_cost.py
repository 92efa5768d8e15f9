"""Total cost of a compiled program: each instruction times how often it runs."""

import re
from functools import cache

from rf_jax.planning import hlo
from rf_jax.planning.hlo import Instruction, Totals

# Copies in the background: where source and target stand in their results.
_COPIES = {'copy-start': (1, 0), 'slice-start': (0, 1)}


def totals(text: str) -> Totals:
    """FLOPs, bytes, collectives and kernels of `compiled.as_text()`, per device."""
    computations, entry = hlo.parse(text)

    @cache
    def of(name: str, fused: bool = False) -> Totals:
        result = Totals()
        for instruction in computations.get(name, {}).values():
            _count(result, instruction, computations, name, of, fused)
        return result

    return of(entry)


def _count(result: Totals, i: Instruction, computations, name: str, of, fused: bool) -> None:
    table = computations[name]
    kind = i.op.removesuffix('-start')
    if i.op.endswith(('-done', '-update')):
        return
    if kind in hlo.COLLECTIVES:
        _collective(result, i, kind, name)
    elif i.op == 'convolution':
        left, right = (table[o].arrays[0] for o in i.operands)
        result.flops += hlo.convolution_flops(i.arrays[0], left, right, i.attributes)
    elif i.op == 'dot':
        result.flops += hlo.dot_flops(i.arrays[0], table[i.operands[0]].arrays[0], i.attributes)
    elif i.op == 'custom-call':
        _kernel(result, i, table)
    if i.op == 'while':
        trips = _trips(i, table, computations)
        result.unknown += trips is None
        result.add(of(i.called('body')[0]), trips or 0)
    elif i.op == 'conditional':
        branches = i.called('branch_computations') or [
            *i.called('true_computation'),
            *i.called('false_computation'),
        ]
        result.add(max((of(b) for b in branches), key=lambda t: (t.flops, t.bytes)))
    elif i.op == 'fusion':
        result.add(of(i.called('calls')[0], True))
    elif i.op in ('call', 'async-start'):
        for called in i.called('to_apply') or i.called('calls'):
            result.add(of(called))
    if not fused:
        result.bytes += _traffic(i, table, computations)


def _trips(loop: Instruction, table, computations) -> int | None:
    """Trip count of a loop: as noted by XLA, or from the start, step and limit of its counter."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(noted[1])
    condition, body = (computations[loop.called(name)[0]] for name in ('condition', 'body'))
    test = next(x for x in condition.values() if x.root)
    if test.op != 'compare' or 'direction=LT' not in test.attributes:
        return None
    counter, limit = (condition[name] for name in test.operands)
    place = re.search(r'index=(\d+)', counter.attributes)
    after = next(x for x in body.values() if x.root)
    before = table.get(loop.operands[0])
    if not place or limit.op != 'constant' or after.op != 'tuple' or before is None:
        return None
    place = int(place[1])
    moved = _original(after.operands[place], body)
    steps = [body[o] for o in moved.operands if body[o].op == 'constant'] if moved else []
    if moved is None or moved.op != 'add' or len(steps) != 1:
        return None
    start = _original(before.operands[place], table) if before.op == 'tuple' else None
    first = int(start.argument) if start is not None and start.op == 'constant' else 0
    return -(-(int(limit.argument) - first) // int(steps[0].argument))


def _original(name: str, table) -> Instruction | None:
    """The instruction whose result this is a copy of."""
    found = table.get(name)
    while found is not None and found.op in ('copy', 'bitcast'):
        found = table.get(found.operands[0])
    return found


def _collective(result: Totals, i: Instruction, kind: str, name: str) -> None:
    groups = hlo.groups_of(i.attributes)
    size = len(groups[0]) if groups else 1
    if name.startswith('all-reduce-scatter'):  # a fusion in TPU programs that keeps one shard
        kind = 'reduce-scatter'
        sent = i.bytes * (size - 1) / size
    elif kind == 'collective-permute':
        sent = i.arrays[0].bytes
    elif kind in ('all-gather', 'reduce-scatter'):
        outputs = i.arrays[len(i.arrays) // 2 :] if i.op.endswith('-start') else i.arrays
        shards = (size - 1) / size if kind == 'all-gather' else size - 1
        sent = sum(a.bytes for a in outputs) * shards
    else:
        sent = i.bytes * (size - 1) / size * (2 if kind == 'all-reduce' else 1)
    if size > 1:
        result.collectives[kind, groups] += sent


def _kernel(result: Totals, i: Instruction, table) -> None:
    found = re.search(r'custom_call_target="([^"]*)"', i.attributes)
    target = found[1] if found else ''
    first = table[i.operands[0]].arrays[0] if i.operands and i.operands[0] in table else None
    if target == 'tpu_custom_call':
        reported = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', i.attributes)
        flops = float(reported[1]) if reported else 0.0
        label = re.sub(r'[.\d]+$', '', i.name) + (f' [{i.op_name}]' if i.op_name else '')
        result.kernels[label] = result.kernels[label] + (1, flops)
    elif target == '__gpu$xla.gpu.triton':  # one of ours: the name of the kernel is in its path
        kernel = re.search(r'(\w+)\)*/pallas_call$', i.op_name)
        label = f'{kernel[1] if kernel else i.name} [{i.op_name}]'
        grouped = label.startswith(('gmm', 'tgmm'))  # of all rows; others depend on the mask
        flops = 2.0 * first.bytes / first.item * i.arrays[0].dims[-1] if grouped else 0.0
        result.kernels[label] = result.kernels[label] + (1, flops)
    elif target.startswith('__cublas$'):
        result.flops += hlo.dot_flops(i.arrays[0], first, i.attributes)
    elif target.startswith('__cudnn$fmha'):
        key = table[i.operands[1]].arrays[0]
        result.flops += hlo.cudnn_attention_flops(target, first, key)


def _traffic(i: Instruction, table, computations) -> float:
    """Bytes of main memory that an instruction reads and writes.

    Reading a slice, or writing one into an operand, moves the slice only, also within a fusion.
    A copy in the background, as of weights to the memory beside the compute units, is counted where
    it starts.
    """
    if i.op in _COPIES:
        source, target = (i.arrays[n] for n in _COPIES[i.op])
        return target.bytes * (source.main + target.main)
    if i.op in hlo.FREE or i.op.endswith(('-start', '-done')):
        return 0.0
    total = _written(i, table, computations)
    for n, operand in enumerate(i.operands):
        if source := table.get(operand):
            total += _read(sum(a.bytes for a in source.arrays if a.main), i, n, computations)
    return total


def _read(size: float, i: Instruction, n: int, computations) -> float:
    """Bytes that an instruction reads of its operand n, which has `size` bytes."""
    if i.op in ('dynamic-slice', 'gather', 'slice'):
        return min(size, i.bytes)
    if i.op == 'dynamic-update-slice' and n == 0:
        return 0.0
    if i.op == 'fusion' and (body := computations.get(i.called('calls')[0])):
        parameter = next(x for x in body.values() if x.op == 'parameter' and int(x.argument) == n)
        return _read_within(size, parameter.name, body, computations)
    return size


def _read_within(size: float, name: str, body, computations) -> float:
    """Bytes that the instructions of a fusion read of the value `name` in its body."""
    total = 0.0
    for user in body.values():
        for n, operand in enumerate(user.operands):
            if operand == name:
                same = user.op == 'bitcast'
                total += (
                    _read_within(size, user.name, body, computations)
                    if same
                    else _read(size, user, n, computations)
                )
    return min(size, total)


def _written(i: Instruction, table, computations) -> float:
    """Bytes that an instruction writes to main memory."""
    while i.op == 'bitcast' and i.operands[0] in table:
        i = table[i.operands[0]]
    size = sum(a.bytes for a in i.arrays if a.main)
    if i.op == 'dynamic-update-slice':
        return min(size, table[i.operands[1]].bytes) if i.operands[1] in table else size
    body = computations.get(i.called('calls')[0]) if i.op == 'fusion' else None
    if not body:
        return size
    root = next(x for x in body.values() if x.root)
    parts = [body[o] for o in root.operands] if root.op == 'tuple' else [root]
    if len(parts) != len(i.arrays):
        return size
    written = zip(i.arrays, (_written(part, body, computations) for part in parts))
    return sum(min(array.bytes, part) for array, part in written if array.main)
