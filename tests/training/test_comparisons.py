"""The variants that the paper compares: each representation kind, pool and space trains what it
should, generates as it was trained, and differs in nothing else.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shrink import tiny_run

from rf_jax.data import layout, patch_grid
from rf_jax.generation import guidance, image_sampling, inputs, kv_cache, token_sampling
from rf_jax.generation.guidance import ALL, NONE
from rf_jax.generation.sampler import Request, Sampler
from rf_jax.models import quantizer, representation
from rf_jax.models.representation import features
from rf_jax.runtime.errors import UserError
from rf_jax.training import losses, optimizer, step

pytestmark = pytest.mark.slow

KIND = 'model.representation.kind'
NO_TOKENS = {'data.representation_tokens': False, 'data.capacity.representation': 0}
VARIANTS = {
    'forcing': {},
    'pool 1': {'model.representation.pool': 1, 'model.representation.position_grid': 4,
               'data.capacity.representation': 17},
    'pool 4': {'model.representation.pool': 4, 'data.capacity.representation': 5},
    'continuous': {KIND: 'continuous'},
    'alignment': NO_TOKENS | {KIND: 'alignment'},
    'none': NO_TOKENS | {KIND: 'none'},
    'latents': {'model.space': 'vae', 'optimizer.freeze': (r'^autoencoder/',)},
    'plain latents': NO_TOKENS | {KIND: 'none', 'model.space': 'vae',
                                  'optimizer.freeze': (r'^autoencoder/',)},
    'latents of wan': {
        'model.space': 'wan', 'optimizer.freeze': (r'^autoencoder/',), 'model.wan.base_dim': 4,
        'model.wan.dim_mult': (1, 2), 'model.wan.num_res_blocks': 1,
        'model.encoder.kind': 'siglip2', 'model.encoder.position_grid': 3,
    },
    'undivided': {'model.backbone.split': 'none', 'model.denoiser.sinusoids': True},
}  # fmt: skip
AUTOENCODER = {
    KIND: 'none',
    'model.space': 'vae',
    **NO_TOKENS,
    'optimizer.freeze': (r'^(?!autoencoder/)',),
    'losses.text': 0.0,
    'losses.representation': 0.0,
    'losses.flow': 0.0,
    'losses.reconstruction': 1.0,
    'losses.kl': 1e-3,
}
REQUESTS = [Request('a red heart', 64, 64, 11), Request('flag', 64, 64, 13)]


@pytest.fixture(scope='module', params=VARIANTS)
def variant(request, tmp_path_factory):
    """(name, run, state off the initial point, a batch)."""
    folder = tmp_path_factory.mktemp('run')
    run = tiny_run(folder, VARIANTS[request.param] | {'sampling.guidance_text': 2.0})
    state = run.initialise()
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    params = jax.tree.unflatten(structure, noisy)
    yield (
        request.param,
        run,
        state.replace(params=params, ema=params),
        run.put(run.batches.batch(0)),
    )


def test_a_step_trains_the_parameters_that_it_should(variant):
    name, run, state, batch = variant
    old = jax.device_get(state.params)
    copy = jax.tree.map(jnp.copy, state)
    new, metrics = run.train_step(copy, batch)
    assert int(new.skipped) == 0 and np.isfinite(float(metrics['loss']))
    assert ('representation' in metrics) == (
        KIND not in VARIANTS[name] or VARIANTS[name][KIND] != 'none'
    )
    moved = {
        path: bool((a != b).any())
        for path, a, b in zip(
            optimizer.paths(old), jax.tree.leaves(old), jax.tree.leaves(jax.device_get(new.params))
        )
    }
    held = [path for path in moved if path.startswith('autoencoder/')]
    assert not any(moved[path] for path in held) and bool(held) == ('latents' in name)
    assert moved['patch_out/patch/kernel'] and moved['text_head/kernel']
    assert len(held) + sum(moved.values()) > 0.85 * len(moved)


def full(run, params, row, tokens):
    """Outputs of the training forward pass with the sampled tokens."""
    z = jax.random.normal(jax.random.key(7), (*row['pixels'].shape[:2], run.model.flow_channels))
    t = jnp.full(z.shape[:2], 0.3)
    if tokens.shape[1]:
        begin = jnp.full_like(tokens[:, :1], -1 if tokens.ndim == 2 else 0)
        tokens = jnp.concatenate([begin, tokens], 1)
    return run.model.apply({'params': params}, row, tokens, z, t), z, t


def test_generation_with_a_kv_cache_equals_the_training_forward(variant):
    """Guided tokens one by one, then one evaluation of the pixels, in all four branches."""
    name, run, state, _ = variant
    model, params = run.model, state.params
    rows = jax.tree.map(
        jnp.asarray, inputs.generation_rows(run.config, run.tokenizer, model.channels, REQUESTS)
    )
    options = image_sampling.Options(temperature=0.0, guidance_representation=2.0)
    batch = image_sampling._stack([rows[context, True] for context in (ALL, NONE)])
    keys = jax.vmap(jax.random.key)(np.array([r.seed for r in REQUESTS], np.uint32))
    write = token_sampling.sample
    tokens, cache = jax.jit(lambda p: write(model, options, p, batch, options.weights(), keys))(
        params
    )
    caches = dict(zip((ALL, NONE), image_sampling._split(cache, 2)))
    outputs = {}
    for branch, row in rows.items():
        outputs[branch], z, t = jax.jit(lambda p, row=row: full(run, p, row, tokens))(params)
        x = model.bind({'params': params}).embed_patches(z, t, row['pixel_cells'])
        x = kv_cache.after(model, params, row, caches[branch[0]], x, (0, 0, x.shape[1]))
        found = model.bind({'params': params}).predict(x)
        np.testing.assert_allclose(found, outputs[branch]['x'], atol=2e-4)
    weights = guidance.token_weights(2.0)
    if 'representation_logits' in outputs[ALL, True]:
        guided = guidance.combine(
            {c: outputs[c, True]['representation_logits'].whole() for c in weights},
            weights,
        )
        np.testing.assert_array_equal(tokens, jnp.argmax(guided, -1)[:, :-1])
    if 'predicted_features' in outputs[ALL, True]:
        guided = guidance.combine(
            {c: outputs[c, True]['predicted_features'] for c in weights}, weights
        )
        guided = quantizer.normalise(guided[:, :-1]) * guided.shape[-1] ** 0.5
        np.testing.assert_allclose(tokens, guided, atol=1e-3)
    count = {'pool 1': 16, 'pool 4': 1}.get(name, 0 if KIND in VARIANTS[name] else 4)
    assert tokens.shape[1] == (4 if name == 'continuous' else count)


def test_images_are_generated_and_captioned(variant):
    name, run, state, _ = variant
    sampler = Sampler(run.config, run.model, state.params, run.tokenizer)
    prompts = [request.prompt for request in REQUESTS]
    one, two = sampler.generate(prompts, seed=0)
    assert one.image.shape == (64, 64, 3) and one.image.std() > 0
    assert (one.image != two.image).any()
    assert isinstance(sampler.caption(one), str)
    if sampler.pool:
        assert one.tokens.shape[:2] == (4 // sampler.pool,) * 2
        integers = np.issubdtype(one.tokens.dtype, np.integer)
        assert integers == (one.tokens.ndim == 2) == (name != 'continuous')
    else:
        assert one.tokens is None


@pytest.mark.parametrize('pool', [1, 2, 4])
def test_each_token_covers_its_own_patches(pool):
    """Codes come from the stored group of patches under the token."""
    sizes = [(8, 4), (4, 8)]
    capacity = {'text': 1, 'vision': 0, 'representation': 2 * (32 // pool**2 + 1), 'pixels': 64,
                'vision_images': 0, 'pixel_images': 2}  # fmt: skip
    samples = []
    for number, size in enumerate(sizes):
        pixels = patch_grid.patch_cells(*size, pool) + 10 * number
        pixels = np.concatenate([pixels, np.zeros((32, 1), int)], 1).astype(np.uint8)
        samples.append([layout.Representation(*size, pool=pool),
                        layout.Pixels(*size, pixels, pool=pool)])  # fmt: skip
    row = layout.make_batch([samples], capacity, 3)
    groups = row['pixels'].reshape(1, -1, pool**2, 3)[..., :2].astype(float).mean(2)
    read = np.asarray(features.take(jnp.asarray(groups), row['target_group'], -1.0))[0]
    at = row['cells'][0] * pool + (pool - 1) / 2
    expected = np.roll(at, -1, 0)
    number = np.arange(len(at)) >= len(at) // 2
    live = row['representation_weight'][0] > 0
    np.testing.assert_allclose(read[live], (expected + 10 * number[:, None])[live])
    places = row['position'][0][1 : 1 + len(at)]  # it shares a frame of positions with its patches
    np.testing.assert_allclose((places[:, 1:] - places[:1, 1:])[1 : len(at) // 2],
                               (at - 0)[1 : len(at) // 2])  # fmt: skip


def gradients(run, terms, params, batch):
    """(gradients, metrics) of a complete batch."""
    loss = step.loss_function(run.config, run.model, terms)
    return jax.jit(jax.grad(loss, has_aux=True))(params, batch, losses.counts(terms, batch))


def test_alignment_has_gradients_up_to_its_layer_only(tmp_path):
    run = tiny_run(tmp_path, VARIANTS['alignment'] | {'losses.text': 0.0, 'losses.flow': 0.0})
    state = run.initialise()
    find = run.model.kind.targets(run.config, run.model)
    batch = run.put(run.batches.batch(0))
    batch, *_ = step.prepare(find, state, batch)
    batch = step.complete(run.config, run.model, find, state, batch)
    terms = losses.build(run.config)
    assert set(terms) == {'representation'}
    found, means = gradients(run, terms, state.params, batch)
    assert -1 <= float(means['representation']) <= 1
    by_layer = np.asarray(jnp.abs(found['backbone']['layers']['output']['kernel']).max((1, 2)))
    assert by_layer[0] > 0 and by_layer[1] == 0, by_layer
    norms = np.linalg.norm(np.asarray(batch['patch_features']), axis=-1)
    np.testing.assert_allclose(norms[np.asarray(batch['pixel_weight']) > 0], 1.0, atol=1e-4)


@pytest.mark.parametrize('kind', ('forcing', 'continuous'))
def test_a_deep_model_has_finite_gradients_when_text_is_dropped(tmp_path, kind):
    """Generation then attends to the begin token only, whose norm must not be zero."""
    changes = {KIND: kind, 'model.backbone.layers': 12, 'data.text_dropout': 1.0}
    run = tiny_run(tmp_path, changes)
    state, batch = run.initialise(), run.put(run.batches.batch(0))
    find, terms = run.model.kind.targets(run.config, run.model), losses.build(run.config)
    batch, *_ = step.prepare(find, state, batch)
    batch = step.complete(run.config, run.model, find, state, batch)
    found, _ = gradients(run, terms, state.params, batch)
    assert float(optax.global_norm(found)) < 100


@pytest.mark.parametrize('kind', representation.KINDS)
def test_every_kind_reads_rows_that_have_no_room_for_drawings(tmp_path, kind):
    reading = {
        'data.tasks.text_to_image': 0.0,
        'data.capacity.representation': 0,
        'data.capacity.pixels': 0,
        'data.capacity.pixel_images': 0,
        'losses.flow': 0.0,
        'losses.representation': 0.0,
    }
    own = {KIND: kind, 'data.representation_tokens': representation.KINDS[kind].tokens}
    run = tiny_run(tmp_path, own | reading)
    state = run.initialise()
    found, codebook, _ = run.model.kind.targets(run.config, run.model)(
        state, run.put(run.batches.batch(0))
    )
    assert all(each.shape[1] == 0 for each in found.values())
    np.testing.assert_array_equal(codebook, state.codebook)


def test_continuous_targets_are_the_features_that_forcing_quantizes(tmp_path):
    run = tiny_run(tmp_path, VARIANTS['continuous'])
    state, batch = run.initialise(), run.put(run.batches.batch(0))
    found, *_ = run.model.kind.targets(run.config, run.model)(state, batch)
    z, _ = features.group_features(run.config, run.model, state.ema, batch)
    z = z.reshape(len(batch['pixels']), -1, z.shape[-1])
    index = np.asarray(batch['target_group'])
    rows, places = np.nonzero(index >= 0)
    right = np.asarray(z)[rows, index[rows, places]] * z.shape[-1] ** 0.5
    np.testing.assert_allclose(np.asarray(found['feature_targets'])[rows, places], right, atol=1e-5)
    # The input at a position is the target of the previous position.
    shifted = np.roll(np.asarray(found['tokens']), -1, 1)
    np.testing.assert_allclose(shifted[rows, places], right, atol=1e-5)


def test_the_autoencoder_learns_to_reconstruct_images(tmp_path):
    run = tiny_run(tmp_path, AUTOENCODER | {'optimizer.learning_rate': 3e-3})
    state, batch = run.initialise(), run.put(run.batches.batch(0))
    frozen = jax.device_get(state.params['backbone'])
    seen = []
    for _ in range(40):
        state, metrics = run.train_step(state, batch)
        seen.append((float(metrics['reconstruction']), float(metrics['kl'])))
    assert seen[-1][0] < 0.4 * seen[0][0] and seen[-1][1] > 0
    clean = run.model.bind({'params': state.params}).clean(batch)
    back = run.model.bind({'params': state.params}).pixels(clean, batch)
    real = np.asarray(batch['pixel_weight']) > 0
    right = np.asarray(batch['pixels'])[real] / 127.5 - 1
    error = np.mean((np.asarray(back)[real] - right) ** 2)
    assert error < 1.3 * seen[-1][0], 'the mean decodes no worse than a sampled latent'
    for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(state.params['backbone'])):
        np.testing.assert_array_equal(a, b)


def test_a_image_is_decoded_from_its_own_latents(tmp_path):
    run = tiny_run(tmp_path, AUTOENCODER)
    state, batch = run.initialise(), run.put(run.batches.batch(0))
    clean = run.model.bind({'params': state.params}).clean(batch)

    def first(latents):
        return run.model.bind({'params': state.params}).pixels(latents, batch)[0]

    image = np.asarray(batch['pixel_image'])
    change = jnp.where(jnp.asarray(image == 0)[..., None], 1.0, 0.0)
    moved = np.abs(np.asarray(first(clean + change) - first(clean))).max(-1)
    assert moved[image[0] == 0].min() > 0
    assert (moved[image[0] == 1] == 0).all()


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'model.representation.pool': 3}, r'model\.representation\.pool'),
        ({KIND: 'repa'}, r"model\.representation\.kind='repa' is not known"),
        ({KIND: 'none'}, r'data\.representation_tokens=False'),
        ({'data.representation_tokens': False}, r'data\.representation_tokens=True'),
        ({'model.space': 'latent'}, r"model\.space='latent' is not known"),
        (
            NO_TOKENS | {KIND: 'alignment', 'model.representation.alignment_layer': 3},
            r'layer=3 must be 1 \.\. .*=2',
        ),
        ({'model.space': 'vae'}, r"optimizer\.freeze.*'\^autoencoder/'"),
        ({'losses.reconstruction': 1.0}, r"losses\.reconstruction.*model\.space='vae'"),
        (AUTOENCODER | {'losses.flow': 1.0}, 'latents that move'),
    ],
)
def test_impossible_configs_are_errors(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        tiny_run(tmp_path, changes)


@pytest.mark.parametrize(
    'name',
    [
        'alignment',
        'autoencoder',
        pytest.param('continuous', marks=pytest.mark.nightly),
        pytest.param('latents of wan', marks=pytest.mark.nightly),
    ],
)
def test_a_mesh_gives_the_losses_of_one_device(name, tmp_path):
    changes = AUTOENCODER if name == 'autoencoder' else VARIANTS[name]
    room = changes.get('data.capacity.representation', 10)  # a multiple of the context axis
    found = []
    for devices, mesh in ((1, {}), (8, {'mesh.fsdp': 2, 'mesh.tensor': 2, 'mesh.context': 2})):
        own = changes | mesh | {'data.capacity.representation': room}
        run = tiny_run(tmp_path / str(devices), own, devices)
        state, losses_ = run.initialise(), []
        for number in range(2):
            state, metrics = run.train_step(state, run.put(run.batches.batch(number)))
            losses_.append(float(metrics['loss']))
        found.append(losses_)
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_codes_of_every_pool_are_the_nearest_prototypes(tmp_path):
    for pool, count in ((1, 17), (2, 5), (4, 5)):
        run = tiny_run(tmp_path / str(pool), {
            'model.representation.pool': pool, 'data.capacity.representation': count,
            'model.representation.position_grid': 4,
            'model.representation.quantizer.mode': 'nearest',
            'model.representation.quantizer.data_init_steps': (),
        })  # fmt: skip
        state, batch = run.initialise(), run.put(run.batches.batch(0))
        found, codebook, metrics = run.model.kind.targets(run.config, run.model)(state, batch)
        z, valid = features.group_features(run.config, run.model, state.ema, batch)
        codes = quantizer.Nearest()(z, state.codebook, valid).reshape(len(batch['pixels']), -1)
        rows, places = np.nonzero(np.asarray(batch['target_group']) >= 0)
        right = np.asarray(codes)[rows, np.asarray(batch['target_group'])[rows, places]]
        np.testing.assert_array_equal(np.asarray(found['code_targets'])[rows, places], right)
        assert codebook.shape == state.codebook.shape and 0 < float(metrics['codes_used']) <= 1
