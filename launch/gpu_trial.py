"""One table about one GPU: training, attention, sampling and memory. See gpu_trial.sh.

Each item is a process of its own (launch/gpu_items.py): its peak memory is its own, and what fails,
crashes or hangs costs its line only. Items come in the order of their worth; one that would not end
within the time left is not started, and the table says so.
"""

import argparse
import datetime
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

ITEMS = Path(__file__).resolve().parent / 'gpu_items.py'
# (item, seconds that it may take), the most valuable first. gpu_items.py tells what each does.
PLAN = (
    ('train 0.6B', 150),
    ('train 0.3B', 100),
    ('attention cudnn', 60),
    ('attention blockwise', 60),
    ('packed cudnn', 45),
    ('packed triton', 45),
    ('train 1.7B', 150),
    ('sample 0.3B', 90),
    ('packed tokamax-mosaic', 45),
    ('packed tokamax-triton', 45),
    ('packed blockwise', 45),
    ('attention reference', 45),
    ('attention pallas', 20),
    ('train 0.6B tokens=16384', 120),
    ('train 0.6B form=blockwise', 120),
)
LEAST = 0.4  # share of its seconds that must be left for an item to be started
COLUMNS = ('what', 'settings', 'time', 'rate', 'share of peak', 'peak memory, measured',
           'counted: arguments, outputs, temporaries', "counted: compiler's peak",
           'largest error')  # fmt: skip


def run(item: str, tiny: bool, seconds: float) -> tuple[list[dict], bool]:
    """(lines of an item, whether it came to its end): a failure is a line as well."""
    command = [sys.executable, str(ITEMS), item, *(['--tiny'] if tiny else [])]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors='replace'
    )
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr))
    reader.start()
    lines, began = [], time.monotonic()
    for text in process.stdout:
        if text.startswith('{'):
            lines.append(json.loads(text))
    code = process.wait()
    reader.join()
    timer.cancel()
    if code and not any('failed' in line for line in lines):
        late = time.monotonic() - began >= seconds
        said = next((x.strip() for x in reversed(errors) if x.strip()), '')
        why = f'not finished in {seconds:.0f} s' if late else f'ended with {code}: {said}'
        lines.append({'what': item, 'failed': why})
    return lines, code == 0


def cell(line: dict, column: str) -> str:
    if column == 'settings' and 'failed' in line:
        return ' '.join(f'{line.get("settings", "")} **{line["failed"]}**'.split())[:200]
    return str(line.get(column, ''))


def table(head: str, lines: list[dict]) -> str:
    """Markdown: a sentence about the machine, and one table."""
    rows = [COLUMNS, ['---'] * len(COLUMNS), *([cell(x, c) for c in COLUMNS] for x in lines)]
    escaped = (' | '.join(text.replace('|', '/') for text in row) for row in rows)
    return '\n'.join([head, '', *(f'| {row} |' for row in escaped)])


def recorded(path: Path | None, card: str) -> dict[str, list[dict]]:
    """{item: its lines} of the items that came to their end on this card."""
    found = {}
    if path and path.exists():
        for text in path.read_text(encoding='utf-8').splitlines():
            entry = json.loads(text)
            if entry['card'] == card:
                found[entry['item']] = entry['lines']
    return found


def chosen(only: str) -> list[tuple[str, int]]:
    """Items whose names begin with one of the comma-separated words, in their order."""
    words = [word.strip() for word in only.split(',') if word.strip()]
    found = [entry for word in words for entry in PLAN if entry[0].startswith(word)]
    if words and not found:
        sys.exit(f'gpu_trial.py: --only={only}: no item begins so; known: '
                 f'{", ".join(name for name, _ in PLAN)}')  # fmt: skip
    return list(dict.fromkeys(found)) or list(PLAN)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=570.0, help='for everything')
    parser.add_argument('--only', default='', help='beginnings of items, in the order wanted')
    parser.add_argument('--record', type=Path, help='file that results are kept in, line by line')
    parser.add_argument(
        '--tiny', action='store_true', help='small shapes, to try the script on CPU'
    )
    asked = parser.parse_args()
    began = time.monotonic()

    def left() -> float:
        return asked.seconds - (time.monotonic() - began)

    about, there = run('machine', asked.tiny, left())
    if not there:
        print(f'gpu_trial.py: {about[-1]["failed"]}', file=sys.stderr)
        return 1
    card, head = about[0]['card'], about[0]['about']
    known, lines = recorded(asked.record, card), []
    for item, seconds in chosen(asked.only):
        if item in known:
            lines += known[item]
            continue
        if left() < LEAST * seconds:
            lines.append({'what': item, 'failed': f'not started: {left():.0f} s were left'})
            continue
        limit = left() if asked.tiny else min(seconds, left())
        found, ended = run(item, asked.tiny, limit)
        print(*(json.dumps(line) for line in found), sep='\n', file=sys.stderr, flush=True)
        lines += found
        if asked.record and ended:
            with asked.record.open('a', encoding='utf-8') as file:
                file.write(json.dumps({'card': card, 'item': item, 'lines': found}) + '\n')
    print(table(f'{head}, {datetime.date.today()}', lines))
    return 0


if __name__ == '__main__':
    sys.exit(main())
