"""What documents, docstrings and comments name exists: files, modules, fields, rules, commands."""

import ast
import importlib.util
import re
import runpy
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from configs import base
from configs.posttraining import grpo
from rf_jax.data import layout
from rf_jax.models.attention.masks import visible
from rf_jax.training import checks

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ('*.md', 'docs/**/*.md', 'launch/*.md')
    for path in ROOT.glob(pattern)
)
PROGRAMS = sorted(
    path.relative_to(ROOT)
    for pattern in ('rf_jax/**/*.py', 'configs/**/*.py', 'launch/*.*')
    for path in ROOT.glob(pattern)
    if path.suffix in ('.py', '.sh', '.yaml')
)
FILES = [
    f'/{path.relative_to(ROOT)}'
    for folder in ('rf_jax', 'configs', 'launch', 'tests', 'docs', 'notebooks', '.ci')
    for path in (ROOT / folder).rglob('*')
] + [f'/{path.name}' for path in ROOT.iterdir()]
FILE = r'(?<![\w./])(?:[\w-]+/)*[\w-]+\.(?:py|md|sh|yaml|ipynb|toml)\b(?!\.\w)'
# Ends of file names, which no dotted name of the code has.
DATA = ('py', 'md', 'sh', 'yaml', 'json', 'jsonl', 'csv', 'txt', 'png', 'gz')


def text(document):
    return (ROOT / document).read_text(encoding='utf-8')


@cache
def modules():
    """{dotted module without `rf_jax`: {name at its top: names within, of a class}}."""
    found = {}
    for path in (ROOT / 'rf_jax').rglob('*.py'):
        name = '.'.join(path.relative_to(ROOT / 'rf_jax').with_suffix('').parts)
        names = defined(ast.parse(path.read_text(encoding='utf-8')).body)
        found[name.removesuffix('__init__').removesuffix('.')] = names
    return found


def defined(body):
    """{name: names within} of functions, classes, assignments and fields in a block of code."""
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = defined(node.body)
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = {}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {n.id: {} for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return found


@cache
def fields():
    """Every field and group of fields of a config, dotted."""
    names = checks.flatten(base.get_config().to_dict() | {'grpo': grpo.fields().to_dict()})
    return {'.'.join(name.split('.')[:n]) for name in names for n in range(1, 9)}


def ends(whole, part):
    return f'.{whole}'.endswith(f'.{part}')


def known(name):
    """Whether a dotted name is a module, something in a module or a class, or a config field."""
    name = name.removeprefix('rf_jax.')
    if any(ends(field, name.removeprefix('config.')) for field in fields()):
        return True
    parts = name.split('.')
    for module, names in modules().items():
        if ends(module, name) or (len(parts) == 2 and parts[1] in names.get(parts[0], ())):
            return True
        for n in range(1, len(parts)):
            within = names.get(parts[n]) if ends(module, '.'.join(parts[:n])) else None
            if within is not None and (len(parts) == n + 1 or parts[n + 1] in within):
                return True
    return False


def unknown_names(found):
    """Of dotted names those that look like ours, by one of their parts, and are not there."""
    parts = {part for module in modules() for part in module.split('.')}
    names = {name for within in modules().values() for name in within if name[0] != '_'}
    heads = parts | {name for name in names if name[0].isupper()} | {'rf_jax', 'config'}
    for name in found:
        head, *rest = name.split('.')
        ours = head in heads or (names | parts) & set(rest)
        if ours and head not in ('self', 'jax') and rest[-1] not in DATA and not known(name):
            yield name


def missing_files(found):
    """Paths that no file ends with: `masks.py` and `attention/masks.py` are both enough."""
    names = {name.split(':')[0].rstrip('/').removeprefix('WORKDIR/') for name in found}
    ours = {name for name in names if not name.startswith('my_')}  # those are the reader's
    return sorted(name for name in ours if not any(f.endswith(f'/{name}') for f in FILES))


def files_named(path):
    """In backticks files and folders of this repository; in programs files anywhere in the text."""
    folders = r'(?:rf_jax|configs|launch|docs|tests|notebooks)/[\w./-]*'
    quoted = [n for n in backticked(path) if re.fullmatch(rf'{FILE}(?::[\w./-]+)?|{folders}', n)]
    return quoted + (re.findall(FILE, text(path)) if path in PROGRAMS else [])


def names_named(path):
    """Dotted names in backticks, and below `rf_jax` anywhere."""
    quoted = [name for name in backticked(path) if re.fullmatch(r'\w+(\.\w+)+', name)]
    return {*quoted, *re.findall(r'\brf_jax(?:\.[a-z]\w+)+', text(path))}


def backticked(document):
    return re.findall(r'(?<!`)`([\w./:-]+)`(?!`)', text(document))


def rules():
    section = text('docs/design.md').split('## Rules')[1].split('\n## ')[0]
    return re.findall(r'^(\d+)\. ', section, re.MULTILINE)


def commands(document):
    """Command lines, those that go on in the next line joined."""
    lines = text(document).replace('\\\n', ' ').splitlines()
    return [line for line in lines if 'python -m rf_jax.' in line]


@pytest.mark.parametrize('document', DOCUMENTS, ids=str)
def test_every_link_leads_to_a_file(document):
    links = re.findall(r'\]\(([^)\s]+)\)', text(document))
    for target, _, heading in (link.partition('#') for link in links if '://' not in link):
        file = ROOT / document.parent / target if target else ROOT / document
        assert file.exists(), target
        if heading:
            titles = re.findall(r'^#+ (.*)', file.read_text(encoding='utf-8'), re.MULTILINE)
            anchors = [re.sub(r'[^\w -]', '', title).lower().replace(' ', '-') for title in titles]
            assert heading in anchors, f'{target}#{heading}'


@pytest.mark.parametrize('path', [*DOCUMENTS, *PROGRAMS], ids=str)
def test_every_file_that_is_named_is_there(path):
    assert not missing_files(files_named(path))


@pytest.mark.parametrize('path', [*DOCUMENTS, *PROGRAMS], ids=str)
def test_every_module_function_and_field_that_is_named_is_there(path):
    assert not [*unknown_names(names_named(path))]


@pytest.mark.parametrize('path', [*DOCUMENTS, *PROGRAMS], ids=str)
def test_every_rule_that_is_cited_is_in_the_design(path):
    cited = re.findall(r'\brules? (\d+)(?:(?:,| and) (\d+))?', text(path))
    assert {number for pair in cited for number in pair if number} <= set(rules())


def test_what_is_not_there_is_found():
    assert missing_files(['models/flash.py', 'docs/no.md']) == ['docs/no.md', 'models/flash.py']
    gone = ['learning.losses', 'models.flash', 'flow.no_such', 'data.rows', 'Unified.born']
    assert sorted(unknown_names(gone)) == sorted(gone)
    there = ['rf_jax.models.unified', 'flow.path', 'data.batch_size', 'Unified.__call__', 'jax.jit']
    assert not [*unknown_names(there)]
    assert rules()[:2] == ['1', '2']


def test_the_mask_in_the_design_is_that_of_the_code():
    capacity = dict.fromkeys(layout.SIZES, 0)
    capacity |= {'text': 1, 'representation': 2, 'pixels': 4, 'pixel_images': 1}
    spans = [layout.Text([1]), layout.Representation(2, 2), layout.Pixels(2, 2)]
    row = layout.make_batch([[spans]], capacity, channels=12)
    drawn = text('docs/design.md').split('| sees |')[1].split('\n\n')[0].splitlines()[2:]
    sees = [[cell.strip() == 'x' for cell in line.split('|')[2:7]] for line in drawn]
    # The example has two of the four patches.
    assert np.array_equal(sees, visible(row, row)[0, :5, :5])


@pytest.mark.parametrize('document', DOCUMENTS, ids=str)
def test_every_variant_of_a_config_is_there(document):
    for name in backticked(document):
        file, _, variant = name.partition(':')
        if variant and file.startswith('configs/'):
            runpy.run_path(str(ROOT / file))['get_config'](variant)


@pytest.mark.parametrize('document', [d for d in DOCUMENTS if commands(d)], ids=str)
def test_every_command_is_of_a_module_and_fields_that_are_there(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is the run that own.py is of
    (tmp_path / 'runs' / 'emoji').mkdir(parents=True)
    (tmp_path / 'runs' / 'emoji' / 'config.json').write_text(base.get_config().to_json())
    for line in commands(document):
        for module in re.findall(r'python -m (rf_jax[\w.]*)', line):
            importlib.util.find_spec(module) or pytest.fail(f'{module}: {line}')
        for file, variant in re.findall(r'--config=(configs/[\w/]+\.py)(?::([\w./-]+))?', line):
            get_config = runpy.run_path(str(ROOT / file))['get_config']
            config = get_config(variant) if variant else get_config()
            names = checks.flatten(config.to_dict())
            for field in re.findall(r'--config\.([\w.]+)=', line):
                assert field in names, f'{field}: {line}'


def test_the_readme_has_commands_of_each_kind():
    joined = ' '.join(commands(Path('README.md')))
    for name in ('train', 'sample', 'describe', 'evaluate', 'study', 'compile_check'):
        assert f'rf_jax.{name} ' in joined


def test_kept_reports_say_how_continuous_features_differ_from_the_papers():
    reports = [d for d in DOCUMENTS if d.name == 'report.md' and '| continuous |' in text(d)]
    assert len(reports) >= 3
    for document in reports:
        assert '- continuous: features are predicted by plain squared-error regression' in text(
            document
        )
        assert 'collapse of variety' in text(document) and 'diffusion head' in text(document)
