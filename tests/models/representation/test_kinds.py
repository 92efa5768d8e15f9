"""A representation kind is one object, of the package or of a module of the user's own."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import shrink

import rf_jax
from configs import base
from rf_jax.generation.sampler import Sampler
from rf_jax.models import flops, representation, spaces
from rf_jax.runtime.errors import UserError
from rf_jax.training import losses, train_loop

pytestmark = pytest.mark.slow

PACKAGE = Path(rf_jax.__file__).parent
PAGE = PACKAGE.parent / 'docs' / 'adding_a_kind.md'
KIND, LINES = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(encoding='utf-8'), re.M | re.S)


@pytest.fixture
def own_kinds(tmp_path, monkeypatch):
    """A folder outside the package with the documented kind, on the Python path."""
    folder = tmp_path / 'code'
    (folder / 'my_kinds').mkdir(parents=True)
    (folder / 'my_kinds' / 'colours.py').write_text(KIND, encoding='utf-8')
    monkeypatch.syspath_prepend(folder)
    return folder / 'my_kinds'


def test_the_documented_kind_trains_and_samples(own_kinds, tmp_path):
    assert len(LINES.strip().splitlines()) == 3
    config = shrink(base.get_config())
    exec(LINES, {'config': config})
    config.losses.flow = config.losses.text = 0.0
    config.optimizer.learning_rate = 1e-2
    run = train_loop.build(config, tmp_path / 'run', jax.devices()[:1])
    assert Path(type(run.model.kind).embedding.__code__.co_filename).parent == own_kinds
    state, batch = run.initialise(), run.put(run.batches.batch(0))
    seen = []
    for _ in range(8):
        state, metrics = run.train_step(state, batch)
        seen.append(float(metrics['representation']))
    assert seen[0] == pytest.approx(np.log(64), abs=0.3), 'it begins as a guess among 64'
    assert seen[-1] < 0.8 * seen[0]
    sampler = Sampler(config, run.model, state.params, run.tokenizer)
    (image,) = sampler.generate('a red heart', seed=11, size=(64, 64))
    colours = image.tokens
    assert image.image.shape == (64, 64, 3) and colours.shape == (2, 2)
    assert colours.dtype == np.int32 and 0 <= colours.min() <= colours.max() < 64
    assert np.isfinite(flops.train_step(config, run.tokenizer.size))


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('my_kinds.gone', None, r"kind='my_kinds\.gone' cannot be imported: No module named"),
        ('my_kinds.empty', '', r"kind='my_kinds\.empty': the module has no KIND"),
        ('my_kinds.wrong', 'KIND = 3', r"kind='my_kinds\.wrong': its KIND is of type int"),
        ('my_kinds.needs', 'import gone_package', r'cannot be imported: No module named .gone'),
        ('focing', None, r"kind='focing' is not known; did you mean 'forcing'"),
    ],
)
def test_a_kind_that_cannot_be_imported_is_one_line(own_kinds, name, text, message):
    if text is not None:
        (own_kinds / f'{name.split(".")[1]}.py').write_text(text, encoding='utf-8')
    config = base.get_config()
    config.model.representation.kind = name
    with pytest.raises(UserError, match=message) as raised:
        representation.of(config)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name', representation.KINDS)
def test_what_a_kind_says_of_itself_agrees(name):
    """Tokens are embedded, sampled and predicted; a loss has a weight in every config."""
    config, kind = shrink(base.get_config()), representation.KINDS[name]
    terms = kind.terms(losses.ONE_DEVICE)
    assert set(terms) <= set(config.losses) and bool(terms) == kind.needs_features
    assert (kind.head_flops(config) > 0) == bool(terms)
    begin = kind.begin(config.model, 3)
    assert len(begin) == 3
    if kind.tokens:
        keys = jax.vmap(jax.random.key)(jnp.arange(3))
        width = 7 if begin.ndim == 1 else begin.shape[1]
        prediction = jax.random.normal(jax.random.key(1), (3, width))
        token = kind.sample(prediction, jnp.int32(0), keys, 1.0, 2)
        assert (token.shape, token.dtype) == (begin.shape, begin.dtype)
    else:
        with pytest.raises(TypeError):
            kind.sample(begin, 0, None, 1.0, 0)


def test_a_term_without_a_weight_is_named(own_kinds):
    text = KIND.replace("{'representation': Prediction", "{'colour': Prediction")
    (own_kinds / 'named.py').write_text(text, encoding='utf-8')
    config = base.get_config()
    config.model.representation.kind = 'my_kinds.named'
    with pytest.raises(UserError, match=r'losses\.colour is missing: the weight'):
        losses.build(config)
    with config.unlocked():
        config.losses.colour = 1.0
    assert 'colour' in losses.build(config)


def compared_strings(path):
    """Every text that a file compares something with."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Compare):
            yield from (n.value for n in ast.walk(node) if isinstance(n, ast.Constant))


def test_no_module_asks_for_a_kind_or_a_space_by_its_name():
    names = {*representation.KINDS, *spaces.SPACES} - {'none', 'pixels'}  # words of other ideas too
    for path in PACKAGE.rglob('*.py'):
        assert not names & set(compared_strings(path)), path
    fields = re.compile(r'(representation\.kind|model\.space)\s*(==|!=|in\b)')
    assert not [path for path in PACKAGE.rglob('*.py') if fields.search(path.read_text('utf-8'))]
