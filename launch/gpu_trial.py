"""Benchmarks training, attention, sampling and memory of one GPU in one table. See gpu_trial.sh.

Each item runs in its own process (launch/gpu_items.py), so that its peak memory is its own and a
failure, crash or hang only affects its line. Items run in order of importance; one that would not
finish in the time left is not started, and the table says so.
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
# (item, time limit in seconds), the most important first; gpu_items.py describes the items.
PLAN = (
    ('train 0.6B', 150),
    ('train 0.6B attention=triton', 120),
    ('train 0.3B', 100),
    ('attention triton', 60),
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
    ('train 0.6B attention=blockwise', 120),
)
LEAST = 0.4  # an item starts only if this share of its time limit is left
COLUMNS = ('what', 'settings', 'time', 'rate', 'share of peak', 'peak memory, measured',
           'counted: arguments, outputs, temporaries', "counted: compiler's peak",
           'largest error')  # fmt: skip


def run(item: str, tiny: bool, seconds: float) -> tuple[list[dict], bool]:
    """(table lines of an item, whether it finished); a failure is a line too."""
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
        last = next((x.strip() for x in reversed(errors) if x.strip()), '')
        why = f'not finished in {seconds:.0f} s' if late else f'exited with {code}: {last}'
        lines.append({'what': item, 'failed': why})
    return lines, code == 0


def cell(line: dict, column: str) -> str:
    if column == 'settings' and 'failed' in line:
        return ' '.join(f'{line.get("settings", "")} **{line["failed"]}**'.split())[:200]
    return str(line.get(column, ''))


def table(head: str, lines: list[dict]) -> str:
    """Markdown: a line about the machine, and one table."""
    rows = [COLUMNS, ['---'] * len(COLUMNS), *([cell(x, c) for c in COLUMNS] for x in lines)]
    escaped = (' | '.join(text.replace('|', '/') for text in row) for row in rows)
    return '\n'.join([head, '', *(f'| {row} |' for row in escaped)])


def recorded(path: Path | None, card: str) -> dict[str, list[dict]]:
    """{item: its lines} of the items that finished on this card."""
    results = {}
    if path and path.exists():
        for text in path.read_text(encoding='utf-8').splitlines():
            entry = json.loads(text)
            if entry['card'] == card:
                results[entry['item']] = entry['lines']
    return results


def chosen(only: str) -> list[tuple[str, int]]:
    """Items whose names start with one of the comma-separated words, in the order of the words."""
    words = [word.strip() for word in only.split(',') if word.strip()]
    items = [entry for word in words for entry in PLAN if entry[0].startswith(word)]
    if words and not items:
        sys.exit(f'gpu_trial.py: --only={only}: no item starts with that; known: '
                 f'{", ".join(name for name, _ in PLAN)}')  # fmt: skip
    return list(dict.fromkeys(items)) or list(PLAN)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=570.0, help='time limit for all items')
    parser.add_argument(
        '--only', default='', help='comma-separated prefixes of items, in the order to run'
    )
    parser.add_argument(
        '--record', type=Path, help='JSON-lines file of results; finished items are not run again'
    )
    parser.add_argument(
        '--tiny', action='store_true', help='small shapes, to test the script on CPU'
    )
    options = parser.parse_args()
    began = time.monotonic()

    def left() -> float:
        return options.seconds - (time.monotonic() - began)

    about, ok = run('machine', options.tiny, left())
    if not ok:
        print(f'gpu_trial.py: {about[-1]["failed"]}', file=sys.stderr)
        return 1
    card, head = about[0]['card'], about[0]['about']
    known, lines = recorded(options.record, card), []
    for item, seconds in chosen(options.only):
        if item in known:
            lines += known[item]
            continue
        if left() < LEAST * seconds:
            lines.append({'what': item, 'failed': f'not started: only {left():.0f} s left'})
            continue
        limit = left() if options.tiny else min(seconds, left())
        results, finished = run(item, options.tiny, limit)
        print(*(json.dumps(line) for line in results), sep='\n', file=sys.stderr, flush=True)
        lines += results
        if options.record and finished:
            with options.record.open('a', encoding='utf-8') as file:
                file.write(json.dumps({'card': card, 'item': item, 'lines': results}) + '\n')
    print(table(f'{head}, {datetime.date.today()}', lines))
    return 0


if __name__ == '__main__':
    sys.exit(main())
