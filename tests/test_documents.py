"""What the documents name is there: files, modules, configs and their fields."""

import importlib
import re
import runpy
from pathlib import Path

import pytest

from rf_jax.training import checks

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ('*.md', 'docs/**/*.md', 'launch/*.md')
    for path in ROOT.glob(pattern)
)


def text(document):
    return (ROOT / document).read_text(encoding='utf-8')


def commands(document):
    """Command lines, those that go on in the next line joined."""
    lines = text(document).replace('\\\n', ' ').splitlines()
    return [line for line in lines if 'python -m rf_jax.' in line]


@pytest.mark.parametrize('document', DOCUMENTS, ids=str)
def test_every_link_leads_to_a_file(document):
    links = re.findall(r'\]\(([^)#\s]+)', text(document))
    gone = [each for each in links if '://' not in each]
    gone = [each for each in gone if not (ROOT / document.parent / each).exists()]
    assert not gone


@pytest.mark.parametrize('document', [d for d in DOCUMENTS if commands(d)], ids=str)
def test_every_command_is_of_a_module_and_fields_that_are_there(document):
    for line in commands(document):
        for module in re.findall(r'python -m (rf_jax[\w.]*)', line):
            importlib.util.find_spec(module) or pytest.fail(f'{module}: {line}')
        for file, variant in re.findall(r'--config=(configs/[\w/]+\.py)(?::([\w.]+))?', line):
            get_config = runpy.run_path(str(ROOT / file))['get_config']
            config = get_config(variant) if variant else get_config()
            fields = checks.flatten(config.to_dict())
            for field in re.findall(r'--config\.([\w.]+)=', line):
                assert field in fields, f'{field}: {line}'


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
