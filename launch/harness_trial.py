"""Questions about scenes in the forms of lmms-eval and VLMEvalKit, and their score by the sampler.

    python launch/harness_trial.py --workdir=runs/joint --out=harness_trial

writes what both harnesses need to ask the same questions of a server, and prints the share that is
right without one: what they report must equal it. docs/serving.md has their commands.
"""

import argparse
import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rf_jax.data.sources.scenes import ScenesSource
from rf_jax.evaluation.vqa import question_set
from rf_jax.generation.sampler import Sampler
from rf_jax.scenes.language import Question

NAME = 'rf_scenes'  # of the task and of the data set

_TASK = f"""\
task: {NAME}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {{path}}
test_split: test
output_type: generate_until
doc_to_visual: !function {NAME}.images
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
metadata:
  version: 1.0
"""

_IMAGES = """\
import base64
import io

from PIL import Image


def images(doc):
    return [Image.open(io.BytesIO(base64.b64decode(doc['image']))).convert('RGB')]
"""

# VLMEvalKit's own data set of short answers asks for them in the prompt; its `run` only finds
# classes of `vlmeval.dataset`. `GQA` in the name of the data chooses exact match.
_RUN = """\
import runpy

import vlmeval.dataset
from vlmeval.dataset.image_base import ImageBaseDataset


class Scenes(vlmeval.dataset.ImageVQADataset):
    def build_prompt(self, line):
        return ImageBaseDataset.build_prompt(self, line)


if __name__ == '__main__':
    vlmeval.dataset.Scenes = Scenes
    runpy.run_module('run', run_name='__main__')
"""


def encoded(image: np.ndarray, form: str) -> bytes:
    """uint8 [h, w, 3] as a file, with Pillow's defaults as in both harnesses."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def write(out: Path, asked: Sequence[tuple[np.ndarray, Question]], url: str, model: str) -> None:
    """Writes OUT/lmms_eval and OUT/vlmevalkit; the latter's LMUData and config among them."""
    lines = [
        {
            'index': number, 'image': base64.b64encode(encoded(image, 'PNG')).decode(),
            'question': question.question, 'answer': question.answer, 'category': question.kind,
        }
        for number, (image, question) in enumerate(asked)
    ]  # fmt: skip
    task, kit = out / 'lmms_eval', out / 'vlmevalkit'
    for folder in (task, kit / 'LMUData'):
        folder.mkdir(parents=True, exist_ok=True)
    data = task / f'{NAME}.jsonl'
    data.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (task / f'{NAME}.yaml').write_text(_TASK.format(path=json.dumps(str(data.absolute()))))
    (task / f'{NAME}.py').write_text(_IMAGES)
    with open(kit / 'LMUData' / f'{NAME}_GQA.tsv', 'w', newline='') as file:
        table = csv.DictWriter(file, list(lines[0]), delimiter='\t')
        table.writeheader()
        table.writerows(lines)
    settings = {
        'class': 'GPT4V', 'model': model, 'api_base': f'{url}/v1/chat/completions', 'key': 'none',
        'temperature': 0, 'max_tokens': 16, 'img_detail': 'high', 'retry': 2,
    }  # fmt: skip
    scenes = {f'{NAME}_GQA': {'class': 'Scenes', 'dataset': f'{NAME}_GQA'}}
    config = {'model': {model: settings}, 'data': scenes}
    (kit / 'config.json').write_text(json.dumps(config, indent=1) + '\n')
    (kit / f'run_{NAME}.py').write_text(_RUN)


def share(said: Sequence[str], asked: Sequence[tuple[np.ndarray, Question]]) -> float:
    """The share that equals the true answer up to case and white space."""
    true = [question.answer.strip().lower() for _, question in asked]
    return float(np.mean([a.strip().lower() == b for a, b in zip(said, true, strict=True)]))


def scores(sampler: Sampler, asked: Sequence[tuple[np.ndarray, Question]]) -> dict[str, float]:
    """{how it was asked: share of right answers}: by `chat`, as a server does, with the images of
    PNG, which is exact, and of JPEG, as VLMEvalKit sends them; and by `answer`.
    """
    questions = [question.question for _, question in asked]
    found = {}
    for form in ('PNG', 'JPEG'):
        files = [Image.open(io.BytesIO(encoded(image, form))) for image, _ in asked]
        said = sampler.chat([
            [{'role': 'user', 'content': [
                {'type': 'image', 'image': file}, {'type': 'text', 'text': text},
            ]}]
            for file, text in zip(files, questions)
        ], max_tokens=16)  # fmt: skip
        found[f'chat, {form}'] = share([message.text for message in said], asked)
    found['answer'] = share(sampler.answer([image for image, _ in asked], questions), asked)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', type=Path, required=True, help='folder of a run')
    parser.add_argument('--out', type=Path, required=True, help='folder to write to')
    parser.add_argument('--scenes', default='aligned/48/seed=1', help='as in data.sources')
    parser.add_argument('--count', type=int, default=8, help='questions of each kind')
    parser.add_argument('--url', default='http://127.0.0.1:8000', help='of the server')
    parser.add_argument('--model', default='rf-jax', help='name of the model of the server')
    given = parser.parse_args()
    source = ScenesSource(given.scenes, 10**8)
    asked = [(source.image(i), question) for i, question in question_set(source, given.count)]
    write(given.out, asked, given.url, given.model)
    print(f'{len(asked)} questions')
    for how, value in scores(Sampler.load(given.workdir), asked).items():
        print(f'{how}: {value:.4f}')


if __name__ == '__main__':
    main()
