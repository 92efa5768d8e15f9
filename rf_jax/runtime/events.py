"""TensorBoard's events of a run, without SummaryWriter: its thread dies on a full disk, and then
its queue blocks.

Only what writes metrics imports this module, and late: tensorboardX imports torch and the clients
of buckets where they are installed, which takes seconds.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


def writer(folder: Path) -> EventsWriter:
    """A writer to a new file of `folder`."""
    return EventsWriter(str(folder / 'events'), f'.{time.time_ns()}')


def start(step: int) -> Event:
    """The start of an attempt: TensorBoard drops what an earlier one wrote from `step` on."""
    return Event(step=step, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START))


def scalars(step: int, values: Mapping[str, float]) -> Event:
    """One event with all `values`."""
    merged = [found for name, v in values.items() for found in summary.scalar(name, v).value]
    return Event(step=step, wall_time=time.time(), summary=Summary(value=merged))


def image(step: int, name: str, pixels: np.ndarray) -> Event:
    """`pixels`: uint8 [height, width, 3]."""
    found = summary.image(name, np.asarray(pixels, np.uint8), dataformats='HWC')
    return Event(step=step, wall_time=time.time(), summary=found)


def text(step: int, name: str, markdown: str) -> Event:
    """A text, shown as Markdown."""
    return Event(step=step, wall_time=time.time(), summary=summary.text(name, markdown))
