"""Old names of config fields give one line with the new name, wherever they are used."""

import json

import pytest
from shrink import tiny_run

import rf_jax
from configs import base
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import renamed_fields
from rf_jax.runtime.cli import explain, field_names
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks

ALL = sorted(renamed_fields.RENAMED.items())


def test_new_names_are_fields_and_old_names_are_not():
    fields = set(field_names(base.get_config()))
    assert set(renamed_fields.RENAMED.values()) <= fields
    assert not set(renamed_fields.RENAMED) & fields


@pytest.mark.parametrize(('old', 'new'), ALL)
def test_an_override_with_an_old_name(old, new):
    line = explain(['--config=configs/base.py', f'--config.{old}=8'], AttributeError(old))
    assert line == f'--config.{old} is now --config.{new}'


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ('config.data.rows = 64', "there is no field 'rows': it is now data.batch_size"),
        ('config.optimizer.update(clip=2.0)', "there is no field 'clip': it is now optimizer.gra"),
        ('config.steps = 2 * config.data.rows', "there is no field 'rows': it is now data.batch_s"),
        ('config.data.rowz = 64', "there is no field 'rowz'"),
    ],
)
def test_a_config_file_with_an_old_name(tmp_path, change, expected):
    file = tmp_path / 'mine.py'
    file.write_text(
        'from configs import base\n\n\ndef get_config():\n'
        f'    config = base.get_config()\n    {change}\n    return config\n'
    )
    line = explain([f'--config={file}'], ValueError('cannot be read'))
    assert line.startswith(f'--config={file}: {expected}') and '\n' not in line


def test_a_workdir_of_an_earlier_version(tmp_path):
    run = tiny_run(tmp_path)
    fields = json.loads(run.config.to_json_best_effort())
    fields['data']['rows'] = fields['data'].pop('batch_size')
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    for use in (
        lambda: Sampler.load(tmp_path),
        lambda: checks.check_version(tmp_path),
    ):
        with pytest.raises(
            UserError, match=r'earlier version.*data\.rows is now data\.batch_size'
        ) as expected:
            use()
        assert '\n' not in str(expected.value)


def test_fields_that_an_earlier_state_of_the_code_did_not_know_have_not_changed(tmp_path, caplog):
    """Also if the number of the version is the same; one line names them."""
    config = base.get_config()
    before = json.loads(config.to_json_best_effort())
    del before['lora'], before['model']['encoder']['pixel_mean']
    before['steps'] = 7
    (tmp_path / 'config.json').write_text(json.dumps(before))
    (tmp_path / 'version.json').write_text(json.dumps({'rf_jax': rf_jax.__version__}))
    with caplog.at_level('INFO', logger='absl'):
        checks.warn_of_changes(config, tmp_path)
    changed, new = sorted(caplog.records, key=lambda record: -record.levelno)
    assert changed.getMessage() == f'steps is {config.steps} now and was 7 in this workdir'
    assert changed.levelname == 'WARNING' and new.levelname == 'INFO'
    line = new.getMessage()
    assert line.startswith('Fields that this workdir was trained without: ')
    assert 'model.encoder.pixel_mean=[0.5, 0.5, 0.5]' in line and 'lora.rank=0' in line


@pytest.mark.parametrize(
    ('changes', 'field', 'ignored'),
    [
        ({'initialise_from': 'runs/b'}, 'initialise_from', True),
        ({'initialise_from': 'runs/b', 'lora.rank': 2}, 'initialise_from', False),
        ({'initialise_from': 'runs/b', 'ema.warmup': False}, 'initialise_from', False),
        ({'initialise_new': ('encoder',)}, 'initialise_new', True),
        ({'initialise_new': ('encoder',), 'lora.rank': 2}, 'initialise_new', False),
        ({'initialise_new': ('encoder',), 'ema.warmup': False}, 'initialise_new', False),
        ({'tokenizer.path': 'runs/b'}, 'tokenizer.path', True),
        ({'optimizer.learning_rate': 0.5}, 'optimizer.learning_rate', False),
    ],
)
def test_changes_that_come_too_late_say_so(tmp_path, caplog, changes, field, ignored):
    config = base.get_config()
    (tmp_path / 'config.json').write_text(config.to_json_best_effort())
    config.update_from_flattened_dict(changes)
    checks.warn_of_changes(config, tmp_path)
    (line,) = [each for each in caplog.messages if each.startswith(f'{field} is')]
    assert line.endswith(': no effect, as the run has started') == ignored
