"""Parses the text of compiled HLO: instructions, array sizes, FLOPs and collective groups.

XLA's own cost analysis counts the body of a loop once. Here a body counts as often as it runs,
kernels report their own cost or are listed, and collectives are grouped by the devices they join.
All figures are per device.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

_SIZES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 'token': 0, 'opaque': 0}
_ARRAY = re.compile(r'([a-z]+[\da-z]*)\[([\d,]*)\](\{[^{}]*\})?')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{')
_NAME = re.compile(r'%([\w.\-]+)')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
# Start of an instruction or of a computation's header. XLA prints JSON in the attributes of a
# kernel over several lines; further attributes follow on the last of these.
_BEGINS = re.compile(r'\n(?=\s*(?:ROOT )?%[\w.\-]+ = |(?:ENTRY )?%?[\w.\-]+ \(.*\) -> )')
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all',
               'collective-permute')  # fmt: skip
FREE = {'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant', 'while', 'conditional',
         'call', 'after-all', 'partition-id', 'replica-id', 'iota'}  # fmt: skip


@dataclass(frozen=True)
class Array:
    """One array of an HLO type."""

    item: float  # bytes per element
    dims: tuple[int, ...]
    main: bool = True  # in main memory
    kind: str = ''  # element type as XLA writes it, such as bf16

    @property
    def bytes(self) -> float:
        return self.item * math.prod(self.dims)

    @property
    def shape(self) -> str:
        """Such as bf16[8,128]."""
        return f'{self.kind}[{",".join(map(str, self.dims))}]'


@dataclass(frozen=True)
class Instruction:
    name: str
    arrays: tuple[Array, ...]
    op: str
    argument: str  # text in the parentheses
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def bytes(self) -> float:
        return sum(a.bytes for a in self.arrays)

    def called(self, attribute: str) -> list[str]:
        """Computations in an attribute such as calls=%a or branch_computations={%a, %b}."""
        match = re.search(attribute + r'=(\{[^}]*\}|%[\w.\-]+)', self.attributes)
        return _NAME.findall(match[1]) if match else []

    @property
    def op_name(self) -> str:
        """Path of the JAX operation it was lowered from; '' if the compiler created it."""
        match = _OP_NAME.search(self.attributes)
        return re.sub(r'\\(.)', r'\1', match[1]) if match else ''


@dataclass
class Totals:
    """Totals per device. `collectives`: {(kind, groups): bytes that a device sends}; `kernels`:
    {name: [runs, FLOPs that it reports]}; `unknown`: loops with a trip count known only at run
    time, such as further rounds of expert dispatch. They count as not run.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: dict = field(default_factory=lambda: defaultdict(float))
    kernels: dict = field(default_factory=lambda: defaultdict(lambda: np.zeros(2)))
    unknown: int = 0

    def add(self, other: 'Totals', times: float = 1) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.unknown += other.unknown
        for key, value in other.collectives.items():
            self.collectives[key] += times * value
        for key, value in other.kernels.items():
            self.kernels[key] = self.kernels[key] + times * value


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of an HLO type, with tuples flattened; S(n) marks other memory spaces."""
    arrays = []
    for kind, dims, layout in _ARRAY.findall(text):
        digits = re.sub(r'\D', '', kind.split('e')[0].split('fn')[0]) or '0'
        size = _SIZES.get(kind, 1 if kind.startswith('f8') else int(digits) / 8)
        shape = tuple(int(d) for d in dims.split(',') if d)
        arrays.append(Array(size, shape, 'S(' not in layout, kind))
    return tuple(arrays)


def _closing(text: str, start: int) -> int:
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {'(': 1, ')': -1}.get(text[i], 0)
        if not depth:
            return i + 1
    return len(text)


def _instruction(text: str) -> Instruction | None:
    text = text.strip()
    root = text.startswith('ROOT ')
    name, equals, rest = text.removeprefix('ROOT ').partition(' = ')
    if not equals or not name.startswith('%'):
        return None
    end = _closing(rest, 0) if rest.startswith('(') else rest.index(' ')
    kind, rest = rest[:end], rest[end:].lstrip()
    op, _, _ = rest.partition('(')
    close = _closing(rest, len(op))
    argument = rest[len(op) + 1 : close - 1]
    operands = tuple(_NAME.findall(argument))
    return Instruction(name[1:], arrays_of(kind), op, argument, operands, rest[close:], root)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """({computation: {name: instruction}}, the entry's name) of `compiled.as_text()`."""
    computations, entry, current = {}, '', None
    for part in _BEGINS.split(text):
        header = _HEADER.match(part)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (instruction := _instruction(part)):
            current[instruction.name] = instruction
    return computations, entry


def convolution_flops(out: Array, left: Array, right: Array, attributes: str) -> float:
    """2 x multiplications, leaving out padding and holes, as XLA counts them. TPU programs express
    matrix products as convolutions, with the batch as a dilated window.
    """
    a, b, o = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', attributes).groups()
    window = re.search(r'window=\{([^}]*)\}', attributes)
    options = dict(re.findall(r'(\w+)=([\d_x\-]+)', window[1])) if window else {}
    total = 2.0 * out.dims[o.index('b')] * out.dims[o.index('f')] * right.dims[b.index('i')]

    def option(name: str, i: int, default: str) -> str:
        return options[name].split('x')[i] if name in options else default

    for i in range(sum(c.isdigit() for c in o)):
        low = int(option('pad', i, '0_0').split('_')[0])
        names = ('stride', 'lhs_dilate', 'rhs_dilate')
        stride, left_dilation, right_dilation = (int(option(name, i, '1')) for name in names)
        place = np.arange(out.dims[o.index(str(i))])[:, None] * stride - low
        place = place + np.arange(right.dims[b.index(str(i))]) * right_dilation
        size = left.dims[a.index(str(i))]
        inside = (place >= 0) & (place // left_dilation < size)
        total *= np.sum(inside & (place % left_dilation == 0))
    return float(total)


def dot_flops(out: Array, left: Array, attributes: str) -> float:
    """2 x multiplications of a `dot`, or of a call of cuBLAS."""
    match = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', attributes)
    named = re.findall(r'\d+', match[1]) if match else ()
    contracted = math.prod(left.dims[int(d)] for d in named)
    return 2.0 * math.prod(out.dims) * contracted


def cudnn_attention_flops(target: str, query: Array, key: Array) -> float:
    """Two products forward and five backward, of all pairs: a mask saves nothing.

    `query`: [B, Lq, H, D]; `key`: [B, Lk, its heads, D].
    """
    products = 5 if target.endswith('Backward') else 2
    return 2.0 * products * math.prod(query.dims) * key.dims[1]


def groups_of(attributes: str) -> tuple[tuple[int, ...], ...]:
    """Groups of devices that a collective joins, from any notation of replica_groups."""
    if pairs := re.search(r'source_target_pairs=\{(.*?)\}\}', attributes):
        return tuple(tuple(map(int, p)) for p in re.findall(r'(\d+),(\d+)', pairs[1]))
    if named := re.search(
        r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? *'
        r'\{([^}]*)\}',
        attributes,
    ):
        axes = re.findall(r"'?([\w.\-]+)'?=(\d+)", named[1])
        shape = [int(size) for _, size in axes]
        ids = _iota(shape, named[2], named[3])
        used = [[name for name, _ in axes].index(n.strip(" '")) for n in named[4].split(',')]
        return _rows(np.moveaxis(ids, used, range(-len(used), 0)), [shape[i] for i in used])
    if iota := re.search(
        r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes
    ):
        shape = [int(d) for d in iota[1].split(',')]
        return _rows(_iota(shape, iota[2], iota[3]), shape[-1:])
    listed = re.search(r'replica_groups=\{((?:\{[\d,]+\},?)*)\}', attributes)
    groups = re.findall(r'\{([\d,]+)\}', listed[1]) if listed else []
    return tuple(tuple(int(d) for d in g.split(',')) for g in groups)


def _iota(shape, dims, order) -> np.ndarray:
    ids = np.arange(math.prod(shape))
    if dims:
        ids = ids.reshape([int(d) for d in dims.split(',')])
        ids = ids.transpose([int(d) for d in order.split(',')]) if order else ids
    return ids.reshape(shape)


def _rows(ids: np.ndarray, last) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, ids.reshape(-1, math.prod(last)).tolist()))
