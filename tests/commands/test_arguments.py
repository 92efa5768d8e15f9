"""Command lines: positional arguments, home folders, URLs, numbers and configs of all commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Runs each case in a fork of one process that has done the slow imports.
FORKS = """
import json, os, runpy, sys, tempfile, traceback, warnings
from rf_jax.runtime import environment
environment.prepare()
import rf_jax.planning.compile_report, rf_jax.evaluation.run_report, rf_jax.study.runner
import rf_jax.study.ladder
warnings.simplefilter('ignore')
for name, (module, *arguments) in json.loads(sys.argv[1]).items():
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if not pid:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.argv[:] = [module, *arguments]
            code = 0
            try:
                runpy.run_module(f'rf_jax.{module}', run_name='__main__', alter_sys=True)
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
                code = 99
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output.seek(0)
        print(json.dumps([name, code, output.read().decode()]))
"""
# Valid arguments of each command, so that only what is added is wrong, and its path flags.
COMMANDS = {
    'benchmark': ((), ()),
    'benchmarks': (
        ('--workdir=run', '--name=folder', '--prompts=a', '--out=b'),
        ('workdir', 'prompts', 'out'),
    ),
    'chat': (('--workdir=run',), ('workdir', 'image', 'out')),
    'compile_check': (('--topology=cpu:1',), ('json', 'table')),
    'data.tokenizer': ((), ('out',)),
    'data_benchmark': ((), ()),
    'drafts': (('--workdir=run', '--out=drafts'), ('workdir', 'out')),
    'describe': (('--workdir=run', '--image=a.png'), ('workdir', 'image')),
    'export': (('--workdir=run', '--to=hf:a'), ('workdir',)),
    'evaluate': (('--workdir=run',), ('workdir', 'out')),
    'image_scores': (
        ('--images=a',),
        ('images', 'reference', 'inception', 'clip', 'prompts'),
    ),
    'packing_report': ((), ()),
    'prepare': (('--source=webdataset:a', '--out=b', '--size=32'), ('out',)),
    'reinforce': (('--workdir=run',), ('workdir',)),
    'sample': (('--workdir=run', '--prompt=red'), ('workdir', 'out', 'prompts')),
    'serve': (('--workdir=run',), ('workdir',)),
    'study.conversations': (('--run=run',), ('run', 'out')),
    'study.post_training': (('--arm=a=run',), ('out',)),
    'study.glance': (('--rf=run', '--pixels=other'), ('rf', 'pixels', 'out')),
    'study': (('--workdir=run',), ('workdir', 'studies')),
    'train': (('--workdir=run',), ('workdir',)),
    'unified_bench': (('--workdir=run',), ('workdir', 'captioner', 'images', 'out')),
}
NUMBERS = [
    ('sample', 'temperature', 'nan'),
    ('sample', 'temperature', '-1'),
    ('sample', 'guidance_pixels', 'inf'),
    ('sample', 'guidance_representation', 'nan'),
    ('sample', 'number', '0'),
    ('sample', 'seed', '-1'),
    ('sample', 'checkpoint', '-1'),
    ('describe', 'checkpoint', '-1'),
    ('evaluate', 'checkpoint', '-1'),
    ('evaluate', 'seed', '-1'),
    ('packing_report', 'row_tokens', '-1'),
    ('data_benchmark', 'hosts', '0'),
    ('data_benchmark', 'step_seconds', 'nan'),
    ('data.tokenizer', 'vocabulary', '0'),
    ('prepare', 'workers', '0'),
    ('train', 'config.seed', '-1'),
    ('train', 'config.optimizer.learning_rate', 'nan'),
    ('packing_report', 'config.data.text_dropout', 'nan'),
]


def file_of(module):
    """The file of a command: a module, or `__main__` of a package."""
    file = ROOT / f'rf_jax/{module.replace(".", "/")}.py'
    return file if file.exists() else file.with_suffix('') / '__main__.py'


ON_A_MESH = [name for name in COMMANDS if 'model_flags.placement' in file_of(name).read_text()]
WITH_CONFIG = [name for name in COMMANDS if 'DEFINE_config_file' in file_of(name).read_text()]


def cases():
    """{name: [module, arguments...]}"""
    found = {}
    for module, (needed, paths) in COMMANDS.items():
        found[f'word {module}'] = [module, *needed, 'apple']
        found[f'dash {module}'] = [module, '–config.steps=2']
        for flag in paths:
            found[f'url {module} {flag}'] = [module, *needed, f'--{flag}=hdfs://b/run']
    found['user error'] = ['train', '--workdir=run', '--no_such_flag']
    found['empty'] = ['train', '--workdir=']
    for module, flag, value in NUMBERS:
        found[f'number {module} {flag} {value}'] = [
            *(module, *COMMANDS[module][0], f'--{flag}={value}')
        ]
    for module in WITH_CONFIG:
        found[f'default {module}'] = [module, *COMMANDS[module][0], '--config.no_such_field=1']
    packaged = '--config=configs/paper.py:joint/0.6B'
    found['packaged'] = ['train', '--workdir=run', packaged, '--config.no_such_field=1']
    found['quotes'] = ['sample', '--workdir=run', '--prompt=red', 'apple', 'pie', '--number=2']
    for module in ON_A_MESH:
        found[f'help {module}'] = [module, '--helpshort']
    found['home sample'] = ['sample', '--workdir=~/runs/a', '--prompt=x']
    found['home out'] = ['data.tokenizer', '--sources=text:~/words.txt', '--out=~/t/t.model',
                         '--vocabulary=300']  # fmt: skip
    found['home train'] = ['train', '--workdir=~/runs/b', '--config.data.sources=folder:~/none']
    return found


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    here, home = tmp_path_factory.mktemp('here'), tmp_path_factory.mktemp('home')
    (home / 'words.txt').write_text('an apple a day keeps everyone away\n')
    return here, home


@pytest.fixture(scope='module')
def results(folders):
    """{name: (exit code, output)} of all cases, run in an empty folder."""
    here, home = folders
    done = subprocess.run(
        [sys.executable, '-c', FORKS, json.dumps(cases())],
        cwd=here,
        env=os.environ
        | {'HOME': str(home), 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not done.returncode, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {name: (code, output) for name, code, output in lines}


def error(results, name):
    """The error line of a case, which must exit with the code of user errors."""
    code, output = results[name]
    assert code == results['user error'][0] != 0, output
    (line,) = output.splitlines()
    assert line.startswith('error: '), output
    return line


def test_every_command_is_covered():
    modules = {path.stem for path in (ROOT / 'rf_jax').glob('*.py')} - {'__init__'}
    modules |= {path.parent.name for path in (ROOT / 'rf_jax').glob('*/__main__.py')}
    parts = {
        'data.tokenizer',
        *(f'study.{n}' for n in ('conversations', 'glance', 'post_training')),
    }
    assert modules | parts == set(COMMANDS)


@pytest.mark.parametrize('module', COMMANDS)
def test_every_flag_of_a_file_or_folder_is_a_path(module):
    text = file_of(module).read_text()
    found = re.findall(r"cli\.(?:ANY_)?PATH,[^']*'(\w+)'", text)
    assert sorted(found) == sorted(COMMANDS[module][1])
    strings = re.findall(
        r"DEFINE_(?:multi_)?string\(\s*'(\w+)',[^']*'[^']*\b([Ff]olders?|[Ff]ile)\b", text
    )
    assert not strings


@pytest.mark.parametrize('module', COMMANDS)
def test_a_positional_argument_is_named_and_nothing_starts(results, folders, module):
    assert "'apple' is not a flag" in error(results, f'word {module}')
    line = error(results, f'dash {module}')
    assert "'–config.steps=2'" in line and 'write --config.steps=2' in line
    assert not list(folders[0].iterdir())


def test_a_missing_quote_is_shown_in_place(results):
    assert error(results, 'quotes').endswith("--prompt='red apple pie'")


@pytest.mark.parametrize('module', COMMANDS)
def test_a_path_flag_refuses_a_url(results, folders, module):
    for flag in COMMANDS[module][1]:
        line = error(results, f'url {module} {flag}')
        assert f'--{flag}=hdfs://b/run' in line and 'is a URL' in line
    assert '--workdir=: is empty' in error(results, 'empty')
    assert not list(folders[0].iterdir())


@pytest.mark.parametrize(('module', 'flag', 'value'), NUMBERS)
def test_a_number_out_of_bounds_names_its_flag(results, folders, module, flag, value):
    line = error(results, f'number {module} {flag} {value}')
    assert f'{flag.removeprefix("config.")}={value}' in line
    assert not list(folders[0].iterdir())


@pytest.mark.parametrize('module', WITH_CONFIG)
def test_the_default_config_is_found_from_any_folder(results, module):
    line = error(results, f'default {module}')
    assert f'{ROOT}/configs/' in line and 'has no such field' in line


def test_a_packaged_config_is_found_from_any_folder(results):
    assert f'{ROOT}/configs/paper.py has no such field' in error(results, 'packaged')


@pytest.mark.parametrize('module', ON_A_MESH)
def test_the_short_help_lists_flags_that_commands_share(results, module):
    _, output = results[f'help {module}']
    assert '--mesh' in output and '--dtype' in output and '--workdir' in output
    assert ('--sampling' in output) == ('model_flags.sampling' in file_of(module).read_text())


def test_a_tilde_is_expanded(results, folders):
    here, home = folders
    assert f'{home}/runs/a has no config.json' in error(results, 'home sample')
    assert results['home out'][0] == 0, results['home out'][1]
    assert (home / 't/t.model').is_file()
    code, output = results['home train']
    assert code and f'looked for {home}/none/captions.jsonl' in output
    assert (home / 'runs/b').is_dir() and not list(here.iterdir())
