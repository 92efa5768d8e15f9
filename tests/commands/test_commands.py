"""The commands as a user runs them: train, sample, describe, evaluate, and their errors."""

import json
import re
import shutil
import socket
import subprocess
import sys
from ast import literal_eval

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from command_line import ROOT, command, environment, relative
from PIL import Image

from configs import debug
from rf_jax import sample
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.evaluation import run_report
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import errors
from rf_jax.runtime.cli import explain
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.workdir import lock
from rf_jax.training import train_loop

pytestmark = pytest.mark.slow

DEBUG = '--config=configs/debug.py'


LATENTS = {'model.space': 'vae', 'optimizer.freeze': ('^autoencoder/',)}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    output = command(
        *('train', DEBUG, f'--workdir={folder}'),
        *('--config.log.samples_every=8', '--config.seed=1'),
    )
    assert 'captioned: exact label' in output
    assert 'of the prototypes are used over an epoch' in output
    assert f'grid: {folder}/grid.png' in output
    return folder


def test_training_writes_what_a_notebook_needs(workdir):
    names = {path.name for path in workdir.iterdir()}
    assert names >= {
        *('config.json', 'tokenizer.model', 'version.json', 'parameters.txt', 'metrics.jsonl'),
        *('checkpoints', 'tensorboard', 'samples', 'grid.png', 'result.json'),
    }
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [4, 8, 12]
    assert all(np.isfinite(line['loss']) for line in lines)
    assert {'loss/flow_t0', 'loss/flow_t3', 'fill', 'codes_used'} <= lines[-1].keys()


def test_sample_generates_a_image_for_every_prompt(workdir, tmp_path):
    prompts = tmp_path / 'prompts.txt'
    prompts.write_text('green tea\n\n' + 'very ' * 200 + 'long\n', encoding='utf-8')
    command(
        'sample', f'--workdir={relative(workdir)}', '--prompt=red apple', f'--prompts={prompts}',
        f'--out={tmp_path}/out', '--number=2', '--size=32x64', '--steps=2',
    )  # fmt: skip
    images = sorted(path.name for path in (tmp_path / 'out').glob('*.png'))
    assert len(images) == 7
    assert '000-red-apple-seed0-0.png' in images
    assert Image.open(tmp_path / 'out' / '000-red-apple-seed0-1.png').size == (64, 32)


def test_every_png_can_be_regenerated_from_its_own_text_and_none_is_overwritten(workdir, tmp_path):
    out = tmp_path / 'out'
    ask = ['--prompt=Piñata 🪅', '--number=1', '--steps=2', '--temperature=0.5', f'--out={out}']
    command('sample', f'--workdir={workdir}', *ask, '--seed=1')
    before = {path: path.read_bytes() for path in out.iterdir()}
    printed = [
        command('sample', f'--workdir={workdir}', *ask, '--seed=2'),
        command('sample', f'--workdir={workdir}', *ask, '--seed=2', '--guidance_pixels=1'),
    ]
    assert all(path.read_bytes() == data for path, data in before.items())
    assert [f'{out}/grid-{i}.png' in text for i, text in zip((2, 3), printed)] == [True] * 2
    images = sorted(path for path in out.iterdir() if 'grid' not in path.name)
    assert [path.name for path in images] == [
        '000-piñata-seed1-0.png', '000-piñata-seed2-0-2.png', '000-piñata-seed2-0.png'
    ]  # fmt: skip
    sampler = Sampler.load(workdir)
    for path in images:
        with Image.open(path) as image:
            text, size, shown = image.text, image.size[::-1], np.asarray(image)
        assert text['prompt'] == 'Piñata 🪅' and int(text['checkpoint']) == sampler.step == 12
        fields = {name: text[name] for name in sampler.options().__dataclass_fields__}
        options = {k: v if k == 'method' else literal_eval(v) for k, v in fields.items()}
        (again,) = sampler.generate(
            text['prompt'], int(text['seed']), size, int(text['number']), **options
        )
        np.testing.assert_array_equal(again.image, shown)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_prompt_files_of_any_encoding_and_line_ending_are_read(encoding, end, tmp_path):
    prompts = ['a cat\u2028on a mat', 'red apple', 'sail\x85boat']
    file = tmp_path / 'prompts.txt'
    file.write_bytes(end.join([*prompts, '', '']).encode(encoding))
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(prompts=str(file)):
        assert sample._prompts() == prompts


@pytest.mark.nightly
def test_evaluate_does_not_name_a_grid_that_it_could_not_write(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / 'run', ignore=shutil.ignore_patterns('.lock', 'grid.png'))
    (tmp_path / 'run/grid.png').mkdir()  # cannot be written, even by root
    output = command('evaluate', f'--workdir={tmp_path}/run', '--samples=4')
    assert 'captioned: exact label' in output and 'Cannot write' in output
    assert 'grid: ' not in output
    output = command('evaluate', f'--workdir={tmp_path}/run', '--samples=4', f'--out={tmp_path}/o')
    assert f'grid: {tmp_path}/o/grid.png' in output
    assert Image.open(tmp_path / 'o/grid.png').text['step'] == '12'


def test_chat_in_the_terminal(workdir, tmp_path):
    """Lines in, answers out; an error is printed and the conversation goes on."""
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / 'a.png')
    lines = f'/image {tmp_path}/none.png\n/image {tmp_path}/a.png\nflag\n/new\nflag\n/help\n'
    found = subprocess.run(
        [sys.executable, '-m', 'rf_jax.chat', f'--workdir={workdir}', '--max_tokens=3',
         f'--out={tmp_path}/out'],
        input=f'{lines}/quit\nflag\n', capture_output=True, text=True, cwd=ROOT, env=environment(),
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert 'did not train conversations' in found.stderr and 'Traceback' not in found.stderr
    said = found.stdout.splitlines()
    assert len(said) == 4
    assert said[0].startswith('error: /image') and 'none.png' in said[0]
    assert said[3].startswith("error: '/help' is no command; known: /image")
    arguments = 'chat', f'--workdir={workdir}', '--message=flag', f'--image={tmp_path}/none.png'
    assert 'none.png' in command(*arguments, code=errors.USER_ERROR)


@pytest.mark.nightly
def test_serve_refuses_what_it_cannot_do(workdir):
    """Before anything is compiled."""
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        for argument, said in (
            (f'--port={taken.getsockname()[1]}', 'Address already in use'),
            ('--host=no.such.host.invalid', '--host=no.such.host.invalid'),
            ('--size=large', 'expected HEIGHTxWIDTH'),
            ('--size=7x7', 'both sides must be multiples'),
        ):
            output = command('serve', f'--workdir={workdir}', argument, code=errors.USER_ERROR)
            assert said in output and 'Traceback' not in output


def test_describe_answers(workdir, tmp_path):
    for name, image in {
        'a.png': Image.new('RGBA', (90, 40), (200, 0, 0, 90)),
        'dot.png': Image.new('L', (1, 1)),
    }.items():
        image.save(tmp_path / name)
    output = command(
        'describe', f'--workdir={relative(workdir)}', f'--image={tmp_path}/a.png',
        f'--image={tmp_path}/dot.png', '--question=What is this?',
    )  # fmt: skip
    assert f'{tmp_path}/a.png: ' in output
    assert f'{tmp_path}/dot.png: ' in output


@pytest.mark.nightly
def test_one_bad_image_does_not_affect_the_answers_for_the_others(workdir, tmp_path):
    for name in ('a.png', 'c.png'):
        Image.new('RGB', (64, 64), 'red').save(tmp_path / name)
    (tmp_path / 'b.png').write_text('<html>not found</html>')
    images = [f'--image={tmp_path}/{name}.png' for name in 'abc']
    output = command('describe', f'--workdir={workdir}', *images, code=errors.USER_ERROR)
    assert f'{tmp_path}/a.png: ' in output and f'{tmp_path}/c.png: ' in output
    assert output.count('b.png') == 1 and f'error: --image={tmp_path}/b.png: an HTML page' in output


@pytest.mark.nightly
@pytest.mark.parametrize('stdout', ['ascii', 'closed', 'without a reader'])
def test_answers_end_quietly_whatever_stdout_is(workdir, tmp_path, stdout):
    Image.new('RGB', (64, 64)).save(tmp_path / 'piñata.png')
    shown = ' >&-' if stdout == 'closed' else ''
    coding = {'PYTHONIOENCODING': 'ascii'} if stdout == 'ascii' else {}
    process = subprocess.Popen(
        ['bash', '-c', f'exec "$@"{shown}', 'bash', sys.executable, '-m', 'rf_jax.describe',
         f'--workdir={workdir}', f'--image={tmp_path}/piñata.png'],
        cwd=ROOT, env=environment(**coding),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if stdout == 'without a reader':
        process.stdout.close()
    else:
        answer = process.stdout.read()
        assert stdout == 'closed' or answer.startswith(f'{tmp_path}/pi\\xf1ata.png: ')
    errors = process.stderr.read()
    assert process.wait() == 0 and 'Error' not in errors and 'Traceback' not in errors, errors


@pytest.mark.nightly
def test_a_run_not_trained_on_the_task_is_reported(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / 'run')
    config = json.loads((workdir / 'config.json').read_text())
    config['data']['tasks'] = {'text_to_image': 0.0, 'image_to_text': 0.0, 'text_only': 1.0}
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
    Image.new('RGB', (64, 64)).save(tmp_path / 'a.png')
    arguments = '--prompt=x', '--number=1', '--steps=1'
    output = command('sample', f'--workdir={tmp_path}/run', *arguments)
    assert output.count('did not train generation (data.tasks.text_to_image=0.0') == 1
    output = command('describe', f'--workdir={tmp_path}/run', f'--image={tmp_path}/a.png')
    assert output.count('did not train captioning (data.tasks.image_to_text=0.0)') == 1


@pytest.mark.nightly
def test_a_benchmark_takes_no_images_of_another_run_of_the_same_name(workdir, tmp_path):
    (tmp_path / 'prompts.txt').write_text('red apple')
    other = tmp_path / workdir.name
    shutil.copytree(workdir, other, ignore=shutil.ignore_patterns('.lock'))
    given = ['--name=folder', f'--prompts={tmp_path}/prompts.txt', f'--out={tmp_path}/out']
    command('benchmarks', f'--workdir={workdir}', *given)
    assert 'all images are' in command('benchmarks', f'--workdir={other}', *given), 'a copy'
    (other / 'checkpoints' / '12' / 'changed').write_text('')
    output = command('benchmarks', f'--workdir={other}', *given, code=errors.USER_ERROR)
    assert 'images with weights=' in output


@pytest.mark.nightly
def test_other_sources_of_evaluate_are_not_those_of_the_run(workdir, tmp_path):
    for sources, expected in ((f'folder:{tmp_path}', 'captions.jsonl'), ('', 'data.sources')):
        output = command(
            *('evaluate', f'--workdir={workdir}', f'--sources={sources}'), code=errors.USER_ERROR
        )
        assert expected in output and 'config.json' not in output


def test_a_tokenizer_of_another_run_is_one_line(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / 'run', ignore=shutil.ignore_patterns('.lock'))
    SentencePieceTokenizer.train(['abc'] * 9, 300).save(tmp_path / 'run' / 'tokenizer.model')
    with pytest.raises(UserError, match=r'tokenizer has \d+ tokens, but its checkpoint \d+'):
        Sampler.load(tmp_path / 'run')


def test_evaluate_repeats_the_table(workdir):
    before = json.loads((workdir / 'result.json').read_text())
    output = command('evaluate', f'--workdir={relative(workdir)}')
    assert 'right image among' in output
    assert json.loads((workdir / 'result.json').read_text()) == before


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'data.sources': 'emojy'}, "Did you mean 'emoji'"),
        ({'data.sources': 'folder:/nowhere'}, '/nowhere'),
        ({'data.sizes': ((60, 1.0),)}, 'not a multiple of 32'),
        ({'data.sizes': (64,)}, 'expected pairs'),
        ({'data.sizes': ((128, 1.0),)}, 'data.capacity.pixels'),
        ({'data.max_text_tokens': 999}, 'data.capacity.text'),
        ({'model.backbone.split': 'fnn'}, "did you mean 'ffn'"),
        ({'model.backbone.heads': 3, 'model.backbone.kv_heads': 2}, 'kv_heads'),
        ({'model.representation.quantizer.mode': 'sink'}, 'printed, sinkhorn, nearest'),
        ({'model.backbone.rope_sections': (1, 1, 1)}, 'head_dim'),
        ({'model.encoder.heads': 3}, 'model.encoder.heads'),
        ({'mesh.fsdp': 3}, 'mesh'),
        ({'optimizer.grad_accum_steps': 3}, 'optimizer.grad_accum_steps'),
        ({'optimizer.freeze': ('nothing',)}, 'matches no parameter'),
        ({'model.encoder.unroll': 9}, 'model.encoder.unroll=9'),
        ({**LATENTS, 'model.autoencoder.heads': 3}, 'model.autoencoder.heads=3'),
        ({**LATENTS, 'model.autoencoder.remat': 'x'}, 'model.autoencoder.remat'),
        ({**LATENTS, 'optimizer.freeze': ('(x',)}, 'optimizer.freeze'),
        ({'model.denoiser.time_embed_dim': 2}, 'model.denoiser.time_embed_dim=2'),
        ({'model.denoiser.time_embed_dim': 5}, 'model.denoiser.time_embed_dim=5'),
        (
            {'model.denoiser.sinusoids': True, 'model.backbone.width': 30},
            'model.denoiser.sinusoids',
        ),
        ({'losses.kl': 1e-3}, 'losses.kl=0.001 needs losses.reconstruction'),
        ({'sampling.top_k': -1}, 'sampling.top_k=-1'),
        ({'sampling.temperature': -0.5}, 'sampling.temperature=-0.5'),
        ({'sampling.guidance_interval': (0.5,)}, 'sampling.guidance_interval=(0.5,)'),
        ({'sampling.max_answer_tokens': 0}, 'sampling.max_answer_tokens=0'),
    ],
)
def test_a_config_that_cannot_run_names_the_field(changes, expected, tmp_path):
    config = debug.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(expected)):
        train_loop.build(config, tmp_path)


@pytest.mark.parametrize(
    ('argument', 'expected'),
    [
        ('--config.data.sorces=x', 'did you mean --config.data.sources'),
        ('--config.lerning_rate=1', 'did you mean --config.optimizer.learning_rate'),
    ],
)
def test_a_wrong_flag_names_the_nearest_field(argument, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert expected in explain(['train', DEBUG, argument], AttributeError('x'))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--config=configs/nope.py'], 'configs/nope.py: no such file'),
        (['--config', 'configs/nope.py'], 'configs/nope.py: no such file'),
        (['--config=configs/emoji.py:lng'], "did you mean 'long'"),
        (['--config=configs/debug.py:x'], 'get_config() takes 0 positional arguments'),
        ([DEBUG, '--config.steps=x'], '--config.steps=x: invalid literal for int() with base 10'),
    ],
)
def test_a_wrong_config_gets_one_line_and_leaves_no_workdir(arguments, expected, tmp_path):
    output = command('train', *arguments, f'--workdir={tmp_path}/run', code=errors.USER_ERROR)
    (line,) = [line for line in output.splitlines() if 'WARNING' not in line]
    assert line.startswith('error: ') and expected in line
    assert not (tmp_path / 'run').exists()


def test_user_errors_print_one_line_and_no_traceback(workdir, tmp_path):
    (tmp_path / 'file').write_text('not a folder')
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG nothing')
    for module, arguments, expected in [
        ('train', [DEBUG, f'--workdir={tmp_path}/file'], 'workdir'),
        ('train', [DEBUG, f'--workdir={tmp_path}', '--config.data.sorces=x'], 'data.sources'),
        (
            'train',
            [
                '--config=configs/scenes.py:pixel',
                f'--workdir={tmp_path}/few',
                '--config.steps=1',
                '--config.data.sources=scenes:aligned/48/objects=1/count=500',
            ],
            'two or more objects',
        ),
        ('train', [DEBUG, f'--workdir={workdir}', '--config.model.backbone.width=64'], 'expected'),
        ('compile_check', ['--topology=cpu:1', '--json=/nowhere/x'], 'no such folder: /nowhere'),
        ('compile_check', ['--topology=cpu:1', f'--table={tmp_path}/broken.png'], 'text file'),
        ('compile_check', ['--topology=cpu:1', f'--json={tmp_path}/file/x'], 'no such folder'),
        ('compile_check', ['--topology=cpu:1', '--only=sample,answr'], "did you mean 'answer'"),
        ('compile_check', ['--topology=cpu:1', '--only='], "--only='' is not known"),
        ('compile_check', ['--topology=cpu:1', '--sweep', '--only=sample'], '--only'),
        ('compile_check', ['--topology=cpu:1', '--slices=2'], 'omit --slices=2'),
        ('sample', [f'--workdir={tmp_path}', '--prompt=x'], 'config.json'),
        ('sample', [f'--workdir={workdir}', '--prompt=x', '--size=50x64'], 'multiples of 32'),
        ('describe', [f'--workdir={workdir}', f'--image={tmp_path}/broken.png'], 'broken.png'),
    ]:
        assert expected in command(module, *arguments, code=errors.USER_ERROR)
    assert not (tmp_path / 'few/checkpoints').exists(), 'reported before the training'
    old = tmp_path / 'old'
    shutil.copytree(workdir, old, ignore=shutil.ignore_patterns('.lock'))
    config = json.loads((old / 'config.json').read_text())
    del config['sampling']
    (old / 'config.json').write_text(json.dumps(config))
    assert 'another version' in command(
        'sample', f'--workdir={old}', '--prompt=x', code=errors.USER_ERROR
    )
    with lock(workdir):
        output = command('train', DEBUG, f'--workdir={workdir}', code=errors.FAILURE)
    assert 'Another process trains' in output


@pytest.mark.nightly
def test_a_run_with_state_offloaded_to_the_host_saves_resumes_and_samples(tmp_path):
    config = debug.get_config()
    config.steps, config.log.samples_every, config.offload = 2, 1, ('ema', 'opt_state')
    config.evaluation.samples = config.log.samples = 2
    run = train_loop.build(config, tmp_path)
    state = train_loop.train(run, run_report.while_training(run))
    assert state.ema['text_head']['kernel'].sharding.memory_kind == 'pinned_host'
    assert 'of the prototypes are used' in run_report.at_end(run, state)
    config.steps, config.initialise_from = 3, str(tmp_path)
    for folder in (tmp_path, tmp_path / 'next'):  # resumes; starts from its weights
        state = train_loop.train(train_loop.build(config, folder))
        assert state.step == 3 and int(state.skipped) == 0
