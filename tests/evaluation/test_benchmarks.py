"""benchmarks.py: prompts as each benchmark ships them, images where its scorer looks."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rf_jax.evaluation import benchmarks
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.generation.image_sampling import Options
from rf_jax.runtime.errors import UserError

GENEVAL = [
    {'tag': 'single_object', 'include': [{'class': 'bench', 'count': 1}], 'prompt': 'a bench'},
    {'tag': 'two_object', 'include': [], 'prompt': 'a bench and a cow'},
]


def jsonl(path, entries):
    path.write_text('\n'.join(map(json.dumps, entries)) + '\n')


def geneval(root):
    jsonl(root / 'p.jsonl', GENEVAL)
    return root / 'p.jsonl', [f'0000{i}/samples/000{n}.png' for i in (0, 1) for n in range(4)]


def dpg(root):
    (root / 'prompts').mkdir()
    for name in ('COCOval2014000000025560', 'partiprompts12'):
        (root / 'prompts' / f'{name}.txt').write_text(f'a long\n prompt of {name}\n')
    return root / 'prompts', ['COCOval2014000000025560.png', 'partiprompts12.png']


def wise(root):
    (root / 'wise').mkdir()
    for file, ids in (('cultural.json', (2, 1)), ('science.json', (10,))):
        entries = [{'prompt_id': i, 'Prompt': f'prompt {i}', 'Explanation': 'x'} for i in ids]
        (root / 'wise' / file).write_text(json.dumps(entries))
    return root / 'wise', ['1.png', '2.png', '10.png']


def geneval2(root):
    jsonl(root / 'p.jsonl', [{'prompt': 'two cats', 'atom_count': 2, 'vqa_list': []}])
    return root / 'p.jsonl', ['00000.png']


def oneig(root):
    (root / 'p.csv').write_text(
        'category,id,prompt_en,type\nPortrait,007,"a man, a dog",T\nAnime_Stylization,001,b,T\n'
    )
    return root / 'p.csv', ['images/human/mine/007.webp', 'images/anime/mine/001.webp']


def unigenbench(root):
    (root / 'p.csv').write_text('index,prompt_en,sub_dims\n12,"a, b",x\n')
    return root / 'p.csv', [f'12_{n}.png' for n in range(4)]


def folder(root):
    (root / 'p.txt').write_text('a cat\n\na dog\n')
    return root / 'p.txt', [f'0000{i}_{n}.png' for i in (0, 1) for n in range(4)]


MAKE = {f.__name__: f for f in (geneval, dpg, wise, geneval2, oneig, unigenbench, folder)}


class Colours:
    """Images whose colour is their (seed, prompt, number); `dies`: after so many calls."""

    def __init__(self, dies=10**9, step=100, **sampling):
        self.asked, self.dies, self.step, self.sampling = [], dies, step, sampling

    def options(self):
        return Options(**self.sampling)

    def generate(self, prompts, seed, size, number):
        if not self.dies:
            raise KeyboardInterrupt
        self.dies -= 1
        self.asked += [(seed, *each) for each in zip(prompts, number)]
        assert len(prompts) <= 32
        found = []
        for each in zip(prompts, number):
            rng = np.random.default_rng(abs(hash((seed, *each))))
            image = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
            found.append(GeneratedImage(image, None, each[0], seed))
        return found


def run(name, prompts, out, sampler, **more):
    found = benchmarks.read(name, prompts)
    benchmarks.generate(sampler, name, found, out, 'mine', **more)


def files(out):
    return sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.is_file())


def images(out):
    names = [name for name in files(out) if name.endswith(('png', 'webp'))]
    return {name: (out / name).read_bytes() for name in names}


def test_every_benchmark_is_covered():
    assert set(MAKE) == set(benchmarks.BENCHMARKS)


@pytest.mark.parametrize('name', MAKE)
def test_images_are_where_the_scorer_looks(tmp_path, name):
    prompts, expected = MAKE[name](tmp_path)
    out = tmp_path / 'out'
    run(name, prompts, out, Colours())
    assert sorted(images(out)) == sorted(expected)
    for data in expected:
        image = Image.open(out / data)
        grid = benchmarks.BENCHMARKS[name].grid
        assert image.size == ((32, 32) if grid else (16, 16))
        colours = {image.convert('RGB').getpixel((x, y)) for x in (0, image.width - 1)
                   for y in (0, image.height - 1)}  # fmt: skip
        assert len(colours) == (4 if grid else 1)
    assert len(set(images(out).values())) == len(expected), 'all images differ'


@pytest.mark.parametrize('name', MAKE)
def test_an_interrupted_run_goes_on_and_ends_with_the_same_images(tmp_path, monkeypatch, name):
    prompts, expected = MAKE[name](tmp_path)
    whole, out = Colours(), tmp_path / 'out'
    run(name, prompts, tmp_path / 'whole', whole)
    monkeypatch.setattr(benchmarks, 'ROWS', 4 if benchmarks.BENCHMARKS[name].grid else 1)
    with pytest.raises(KeyboardInterrupt):
        run(name, prompts, out, Colours(dies=min(1, len(expected) - 1)))
    assert len(images(out)) < len(expected)
    rest = Colours()
    run(name, prompts, out, rest)
    assert images(out) == images(tmp_path / 'whole')
    assert len(rest.asked) < len(whole.asked) or len(expected) == 1
    run(name, prompts, out, again := Colours())
    assert not again.asked


def test_genevals_own_loader_finds_everything(tmp_path):
    """As evaluate_images.py walks the folder: digits only, one JSON object a file."""
    prompts, _ = geneval(tmp_path)
    out = tmp_path / 'out'
    run('geneval', prompts, out, Colours())
    found = []
    for name in os.listdir(out):
        if not (out / name).is_dir() or not name.isdigit():
            continue
        with open(out / name / 'metadata.jsonl') as file:
            metadata = json.load(file)
        for image in os.listdir(out / name / 'samples'):
            if re.match(r'\d+\.png', image):
                found.append((metadata['tag'], image))
    assert len(found) == 8 and {tag for tag, _ in found} == {'single_object', 'two_object'}


def test_geneval2_has_a_table_of_paths(tmp_path):
    prompts, _ = geneval2(tmp_path)
    run('geneval2', prompts, tmp_path / 'out', Colours())
    table = json.loads((tmp_path / 'out' / 'image_paths.json').read_text())
    assert list(table) == ['two cats'] and (tmp_path / 'out' / table['two cats']).exists()


def test_a_folder_has_images_of_one_checkpoint(tmp_path):
    prompts, _ = folder(tmp_path)
    run('folder', prompts, tmp_path / 'out', Colours())
    with pytest.raises(UserError, match='images with checkpoint=100, and these would have 200'):
        run('folder', prompts, tmp_path / 'out', Colours(step=200))
    (tmp_path / 'other.txt').write_text(prompts.read_text().upper())
    with pytest.raises(UserError, match='images with prompts='):
        run('folder', tmp_path / 'other.txt', tmp_path / 'out', Colours())


def test_a_folder_has_images_of_one_run_though_another_has_its_name_and_step(tmp_path):
    prompts, _ = folder(tmp_path)
    run('folder', prompts, tmp_path / 'out', Colours(), weights='a1')
    run('folder', prompts, tmp_path / 'out', Colours(), weights='a1')
    with pytest.raises(UserError, match="images with weights='a1', and these would have 'b2'"):
        run('folder', prompts, tmp_path / 'out', Colours(), weights='b2')


def test_the_folder_may_be_the_current_one_but_not_the_root(tmp_path, monkeypatch):
    prompts, expected = folder(tmp_path)
    (tmp_path / 'out').mkdir()
    monkeypatch.chdir(tmp_path / 'out')
    run('folder', prompts, Path('.'), Colours())
    assert files(tmp_path / 'out') == expected and (tmp_path / 'out.json').is_file()
    with pytest.raises(UserError, match='--out=/: expected a folder that has a name'):
        run('folder', prompts, Path('/'), Colours())


def test_a_folder_of_that_name_is_left_alone(tmp_path):
    (tmp_path / 'b.json').mkdir()
    prompts, _ = folder(tmp_path)
    with pytest.raises(UserError, match=r'b\.json is of something else: give another --out'):
        run('folder', prompts, tmp_path / 'b', Colours())


def test_a_folder_has_images_of_one_way_of_sampling(tmp_path):
    prompts, _ = folder(tmp_path)
    run('folder', prompts, tmp_path / 'out', Colours(guidance_interval=(0.2, 0.8)))
    run('folder', prompts, tmp_path / 'out', Colours(guidance_interval=(0.2, 0.8)))
    with pytest.raises(UserError, match=r'images with sampling\.guidance_interval=\[0\.2, 0\.8\]'):
        run('folder', prompts, tmp_path / 'out', Colours())
    path = tmp_path / 'out.json'  # as it was before it said how
    kept = {k: v for k, v in json.loads(path.read_text()).items() if 'sampling' not in k}
    path.write_text(json.dumps(kept))
    run('folder', prompts, tmp_path / 'out', Colours())


def test_lines_are_those_of_the_file(tmp_path):
    """Not those of str.splitlines."""
    (tmp_path / 'p.txt').write_text('a\u2028cat\n\na\x85dog\n')
    found = benchmarks.read('folder', tmp_path / 'p.txt')
    assert [prompt.text for prompt in found] == ['a\u2028cat', 'a\x85dog']


def test_the_same_text_twice_gives_different_images(tmp_path):
    (tmp_path / 'p.txt').write_text('a cat\na cat\n')
    run('folder', tmp_path / 'p.txt', tmp_path / 'out', Colours())
    assert len(set(images(tmp_path / 'out').values())) == 8


@pytest.mark.parametrize('text', ['[]', '{"images": [', '3'])
def test_another_file_of_that_name_is_left_alone(tmp_path, text):
    """As of COCO's annotations beside a folder of images."""
    (tmp_path / 'b.json').write_text(text)
    jsonl(tmp_path / 'p.jsonl', GENEVAL)
    with pytest.raises(UserError, match=r'b\.json is of something else: give another --out'):
        run('geneval', tmp_path / 'p.jsonl', tmp_path / 'b', Colours())
    assert (tmp_path / 'b.json').read_text() == text


def test_seeds_differ_by_benchmark(tmp_path):
    jsonl(tmp_path / 'p.jsonl', GENEVAL)
    one, other = Colours(), Colours()
    run('geneval', tmp_path / 'p.jsonl', tmp_path / 'a', one)
    run('geneval2', tmp_path / 'p.jsonl', tmp_path / 'b', other)
    assert {seed for seed, *_ in one.asked}.isdisjoint(seed for seed, *_ in other.asked)


@pytest.mark.parametrize(
    'name, text, said',
    [
        ('geneval', '{"tag": "a"}', "is not the prompts of geneval: 'prompt' is missing"),
        ('geneval', 'not json', 'is not the prompts of geneval'),
        ('geneval', '{"prompt": 3}', 'is not the prompts of geneval: the prompt 3 is not text'),
        ('unigenbench', 'prompt,index\na', 'is not the prompts of unigenbench: .* has no name'),
        ('unigenbench', 'index,prompt\n1,' + 'a' * 2**18, 'is not the prompts of unigenbench'),
        ('oneig', 'category,id,prompt_cn\nPortrait,7', 'is not the prompts of oneig: the prompt'),
        ('geneval', '', 'has no prompts'),
        ('wise', '{"a": 1}', 'is not the prompts of wise'),
        ('oneig', 'a,b\n1,2\n', "'category' is missing"),
        ('oneig', 'category,id,prompt_en\nFoo,1,a\n', "unknown category 'Foo'"),
        ('unigenbench', 'index,text\n1,a\n', 'no prompt in one of the columns'),
        ('unigenbench', 'index,prompt\n1,a\n1,b\n', 'two prompts have the same id'),
        ('dpg', 'text', 'expected the folder of prompts'),
        ('unigenbench', 'index,prompt\n../x,a\n', "'../x' cannot be the name of a file"),
    ],
)
def test_files_that_are_not_the_prompts(tmp_path, name, text, said):
    (tmp_path / 'p').write_text(text)
    with pytest.raises(UserError, match=said):
        benchmarks.read(name, tmp_path / 'p')
    with pytest.raises(UserError, match='cannot be read: No such file'):
        benchmarks.read('folder', tmp_path / 'none')
