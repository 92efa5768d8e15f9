"""Routed experts equal computing every expert for every token, on one device and on a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rf_jax.models import layers, transformer
from rf_jax.models.attention import select
from rf_jax.models.moe import dispatch, experts, grouped_matmul, triton
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.mesh import make_mesh

pytestmark = pytest.mark.slow

B, L, D, E, K, F = 8, 16, 16, 8, 2, 12
LENGTHS = (8, 4, 4)


def config_of(**changes):
    config = base.get_config()
    config.model.backbone.ffn = 'moe'
    config.model.backbone.moe.update(num_experts=E, top_k=K, feedforward=F, **changes)
    return config


def mesh_of(**sizes):
    sizes = {'data': 1, 'fsdp': 1, 'expert': 1, 'tensor': 1, 'context': 1} | sizes
    return make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


def weights_of(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {'router': (D, E), 'gate': (E, D, F), 'up': (E, D, F), 'down': (E, F, D)}
    return {name: 0.25 * rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def tokens(seed=1, lean=0.0):
    """x [B, L, D] and a mask of live tokens; `lean` pulls all tokens to the same experts."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, L, D)).astype(np.float32)
    x += lean * rng.normal(size=D).astype(np.float32)
    return x, rng.random((B, L)) < 0.9


def reference(w, x, live):
    """Every expert for every token, by einsum; zero for padding."""
    probabilities = jax.nn.softmax(x @ w['router'])
    best, chosen = jax.lax.top_k(probabilities, K)
    mix = (jax.nn.one_hot(chosen, E) * best[..., None]).sum(-2) / best.sum(-1, keepdims=True)
    up = jnp.einsum('bld,edf->blef', x, w['up'])
    hidden = jax.nn.silu(jnp.einsum('bld,edf->blef', x, w['gate'])) * up
    y = jnp.einsum('blef,efd,ble->bld', hidden, w['down'], mix)
    return y * live[..., None]


def routed(config, mesh, w, x, live, product=grouped_matmul.ragged):
    """One pool of experts."""
    module = experts.Routed(
        config.model.backbone, normed=True, product=product, mesh=mesh,
        table=config.sharding, name='pixels',
    )  # fmt: skip
    return module.apply({'params': w}, x, live)


def outputs_and_gradients(run, w, x, live):
    def loss(w, x):
        y = run(w, x, live)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(w, x)
    return y, gradients


def assert_close(found, right):
    """Within 1e-5 of the largest value."""
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * np.abs(right).max())


MESHES = {
    'one': None,
    'expert': {'expert': 4},
    'expert and fsdp': {'expert': 2, 'fsdp': 2, 'data': 2},
    'expert and tensor': {'expert': 2, 'tensor': 2, 'fsdp': 2},
    'tensor': {'tensor': 4, 'fsdp': 2},
    'context': {'context': 2, 'expert': 2, 'fsdp': 2},
    'rows of an expert over data': {'data': 2, 'fsdp': 4},
}
TABLES = {
    'rows of an expert over data': ((r'(gate|up|down)$', (('expert', 'fsdp'), 'data', None)),)
}


@pytest.mark.parametrize(
    ('name', 'lean', 'factor'),
    [(name, 3.0, 1.0) for name in MESHES] + [('one', 0.0, 1.0), ('expert', 0.0, 8.0)],
)
def test_equals_every_expert_for_every_token(name, lean, factor):
    """At capacity factor 1, tokens that favour the same experts need several rounds."""
    mesh = MESHES[name] and mesh_of(**MESHES[name])
    w, (x, live) = weights_of(), tokens(lean=lean)
    wanted, wanted_gradients = outputs_and_gradients(reference, w, x, live)
    config = config_of(capacity_factor=factor)
    config.sharding = (*TABLES.get(name, ()), *config.sharding)
    y, gradients = outputs_and_gradients(lambda *a: routed(config, mesh, *a)[0], w, x, live)
    jax.tree.map(assert_close, (y, gradients), (wanted, wanted_gradients))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


@jax.custom_vjp
def undefined_is_nan(x, w, sizes):
    """`grouped_matmul.ragged`, with NaN in undefined rows, forward and backward, as in kernels."""
    return jnp.where(
        jnp.arange(len(x))[:, None] < sizes.sum(), grouped_matmul.ragged(x, w, sizes), jnp.nan
    )


def _backward(kept, gradient):
    x, w, sizes = kept
    inside = jnp.arange(len(x))[:, None] < sizes.sum()
    run = jax.vjp(lambda x, w: grouped_matmul.ragged(x, w, sizes), jnp.where(inside, x, 0), w)[1]
    of_x, of_w = run(jnp.where(inside, gradient, 0))
    return jnp.where(inside, of_x, jnp.nan), of_w, None


undefined_is_nan.defvjp(lambda *a: (undefined_is_nan(*a), a), _backward)


@pytest.mark.parametrize('name', ['one', 'expert'])
def test_undefined_rows_of_a_product_affect_nothing(name):
    mesh = MESHES[name] and mesh_of(**MESHES[name])
    w, (x, live) = weights_of(), tokens()
    found, right = (
        outputs_and_gradients(lambda *a, p=p: routed(config_of(), mesh, *a, p)[0], w, x, live)
        for p in (undefined_is_nan, grouped_matmul.ragged)
    )
    jax.tree.map(assert_close, found, right)


def test_the_kernel_equals_the_ragged_product():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 128)).astype(np.float32)
    w = rng.normal(size=(3, 128, 128)).astype(np.float32)
    sizes = jnp.array([10, 0, 40], jnp.int32)  # 14 rows belong to no group
    kernel = partial(grouped_matmul.megablox.gmm, preferred_element_type=jnp.float32,
                     interpret=True, tiling=(16, 128, 128))  # fmt: skip

    def run(product, x, w):
        inside = (jnp.arange(64) < 50)[:, None]
        return jnp.where(inside, product(jnp.where(inside, x, 0), w, sizes), 0)

    def all_of(product):
        y, pull = jax.vjp(partial(run, product), x, w)
        return y, *pull(jnp.cos(y))

    for found, right in zip(all_of(kernel), all_of(grouped_matmul.ragged)):
        np.testing.assert_allclose(found, right, atol=1e-3, rtol=1e-4)


def test_the_kernel_accepts_any_number_of_rows(monkeypatch):
    monkeypatch.setattr(
        grouped_matmul.megablox, 'gmm', partial(grouped_matmul.megablox.gmm, interpret=True)
    )
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(13, 128)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 128, 128)), jnp.float32)
    sizes = jnp.array([4, 0, 9], jnp.int32)

    def all_of(product):
        y, pull = jax.vjp(lambda x, w: product(x, w, sizes), x, w)
        return y, *pull(jnp.cos(y))

    for found, right in zip(all_of(grouped_matmul.kernel), all_of(grouped_matmul.ragged)):
        np.testing.assert_allclose(found, right, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ('count', 'sizes'),
    [
        (200, (10, 0, 87, 64, 30)),  # 9 rows belong to no group
        (192, (64, 64, 0, 0, 64)),  # whole tiles
        (130, (0, 1, 0, 128, 1)),  # groups of one row, some that share a tile
        (70, (0, 0, 0, 0, 0)),
    ],
)
def test_the_kernel_for_gpus_equals_the_ragged_product(count, sizes):
    """Undefined rows, of the input and of the gradient, are NaN and affect nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 48)).astype(np.float32)
    w = rng.normal(size=(5, 48, 160)).astype(np.float32)
    own = (np.arange(count) < sum(sizes))[:, None]

    def all_of(product, undefined):
        y, pull = jax.vjp(
            lambda x, w: product(x, w, jnp.array(sizes, jnp.int32)), jnp.where(own, x, undefined), w
        )
        dx, dw = pull(jnp.where(own, jnp.cos(y), undefined))
        return jnp.where(own, y, 0), jnp.where(own, dx, 0), dw

    found = all_of(lambda *a: triton.product(*a, True), jnp.nan)
    for mine, right in zip(found, all_of(grouped_matmul.ragged, 0)):
        assert mine.dtype == right.dtype
        np.testing.assert_allclose(mine, right, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ('platform', 'auto'),
    [
        ('tpu', grouped_matmul.kernel),
        ('gpu', grouped_matmul.on_gpu),
        ('cpu', grouped_matmul.ragged),
    ],
)
def test_auto_is_the_kernel_of_the_platform(platform, auto):
    assert grouped_matmul.build('auto', platform) is auto
    assert grouped_matmul.build('ragged', platform) is grouped_matmul.ragged


def test_auto_on_gpus_leaves_widths_that_its_tiles_do_not_divide_to_xla(monkeypatch):
    monkeypatch.setattr(triton, 'product', lambda *_: 'the kernel')
    sizes = jnp.array([4, 4])
    assert grouped_matmul.on_gpu(jnp.ones((8, 32)), jnp.ones((2, 32, 48)), sizes) == 'the kernel'
    found = grouped_matmul.on_gpu(jnp.ones((8, 20)), jnp.ones((2, 20, 48)), sizes)
    np.testing.assert_array_equal(found, jnp.full((8, 48), 20.0))


def test_the_kernel_for_gpus_names_what_does_not_divide_into_its_tiles():
    x, w = jnp.ones((8, 20)), jnp.ones((2, 20, 32))
    with pytest.raises(UserError, match=r'experts of 20 values.*multiples of 16'):
        triton.product(x, w, jnp.array([4, 4]), True)


def test_dispatch_and_combine_are_transposes():
    slots = dispatch.Slots(jnp.array([2, -1, 0, 2]), jnp.array([[2, -1], [-1, -1], [0, 3]]))
    x, rows = jax.random.normal(jax.random.key(0), (2, 4, 5))
    x = x[:3]
    y, pull = jax.vjp(lambda x: dispatch.dispatch(x, slots), x)
    np.testing.assert_allclose((y * rows).sum(), (x * pull(rows)[0]).sum(), rtol=1e-6)
    y, pull = jax.vjp(lambda rows: dispatch.combine(rows, slots), rows)
    np.testing.assert_allclose((y * x).sum(), (rows * pull(x)[0]).sum(), rtol=1e-6)


def test_losses_cover_the_live_tokens_of_a_row():
    logits = jnp.array(np.random.default_rng(0).normal(size=(2, 6, E)), jnp.float32)
    live = jnp.arange(6)[None] < jnp.array([[6], [4]])
    routes = dispatch.top_k(logits, live, K)
    np.testing.assert_allclose(routes.weights.sum(-1), 1, rtol=1e-6)
    assert (routes.experts[1, 4:] == E).all() and (routes.experts[1, :4] < E).all()
    for row, count in enumerate((6, 4)):
        p = np.asarray(jax.nn.softmax(logits[row, :count]))
        per_token = np.bincount(np.argsort(-p)[:, :K].ravel(), minlength=E) / count
        np.testing.assert_allclose(routes.balance[row], E * per_token @ p.mean(0), rtol=1e-5)
    even = dispatch.top_k(jnp.zeros((1, 4, E)), jnp.ones((1, 4), bool), K)
    np.testing.assert_allclose(even.balance, K, rtol=1e-6)
    np.testing.assert_allclose(even.z, np.log(E) ** 2, rtol=1e-6)


# Logits of four experts, in eighths plus (0, 1/64, 2/64, 3/64), for two layers of two rows, the
# second with two tokens of padding; and what transformers 5.24.0 (torch 2.13.0) returns for each
# layer and row: qwen3_moe's load_balancing_loss_func((logits,), 4, top_k=2, attention_mask).
OTHERS_LOGITS = [
    [
        [[16, 2, 7, -13], [3, -13, -12, 6], [12, 14, 4, 10], [8, 11, 3, 1], [11, 5, 16, 5]],
        [[-14, -2, -8, -2], [7, 7, 15, 16], [-7, -7, 6, -1], [-8, -13, 15, -16], [9, -8, 7, 9]],
    ],
    [
        [[-8, 5, 15, -9], [15, 13, -6, -12], [-8, -6, 9, 13], [-8, -6, 13, 4], [-2, 0, 16, -8]],
        [
            [0, -6, -13, -13],
            [-6, -2, -6, -12],
            [-14, 3, -11, 16],
            [-13, 12, -7, -14],
            [5, -12, -12, 16],
        ],
    ],
]
OTHERS_BALANCE = [[2.3134145736694336, 2.5746665000915527], [2.432131052017212, 2.0494251251220703]]


def test_the_balance_loss_equals_that_of_hugging_face():
    live = jnp.arange(5)[None] < jnp.array([[5], [3]])
    for layer, right in zip(OTHERS_LOGITS, OTHERS_BALANCE):
        logits = jnp.array(layer, jnp.float32) / 8 + jnp.arange(4) / 64
        found = dispatch.top_k(logits, live, 2).balance
        np.testing.assert_allclose(found, np.repeat(right, 5).reshape(2, 5), rtol=1e-6)


def test_the_balance_loss_of_128_experts_has_the_scale_of_transformers():
    """So Qwen3's coefficient, 1e-3, is `losses.balance` of configs/paper.py as it stands."""
    torch = pytest.importorskip('torch')
    qwen3_moe = pytest.importorskip('transformers.models.qwen3_moe.modeling_qwen3_moe')
    logits = np.random.default_rng(0).normal(0, 2, (1, 200, 128)).astype(np.float32)
    wanted = qwen3_moe.load_balancing_loss_func((torch.tensor(logits[0]),), 128, top_k=8)
    found = dispatch.top_k(jnp.array(logits), jnp.ones((1, 200), bool), 8).balance
    assert 8 < float(wanted) < 16
    np.testing.assert_allclose(found, float(wanted), rtol=1e-5)


def test_the_balance_loss_is_computed_per_layer():
    """Two layers that use half of the experts each look balanced together (transformers: 2.0)."""
    low, high = jnp.array([9.1, 9.0, 0.1, 0.0]), jnp.array([0.0, 0.0, 9.0, 9.0])
    live = jnp.ones((1, 6), bool)
    for logits in (low, high):  # transformers, on each layer alone: 3.9995
        found = dispatch.top_k(jnp.broadcast_to(logits, (1, 6, 4)), live, 2).balance
        np.testing.assert_allclose(found, 3.9995064, rtol=1e-6)


def test_the_balance_loss_evens_out_usage():
    w, (x, live) = weights_of(), tokens(lean=1.0)

    def balance(router):
        return dispatch.top_k(x @ router, live, K).balance.mean()

    def used(router):  # fraction of the pairs at the busiest expert
        counts = jnp.bincount(dispatch.top_k(x @ router, live, K).experts.ravel(), length=E)
        return counts.max() / counts.sum()

    router = w['router']
    step = jax.jit(lambda router: router - 0.3 * jax.grad(balance)(router))
    for _ in range(100):
        router = step(router)
    assert balance(router) < 1.1 * K < 1.3 * K < balance(w['router'])
    assert used(router) < 0.6 * used(w['router'])


def backbone(pool, split):
    config = config_of(pool=pool)
    config.model.backbone.update(
        layers=2, width=D, heads=2, kv_heads=1, head_dim=8, split=split, remat='full'
    )
    config.model.backbone.rope_sections = (2, 1, 1)
    return transformer.build(config, select.build(config), 'cpu')()


@pytest.mark.parametrize('split', ['ffn', 'full'])
def test_a_pool_for_each_group_or_one_for_all(split):
    x, live = tokens()
    position, mask = jnp.zeros((B, L, 3)), jnp.ones((B, L, L), bool)

    def born(pool):
        model = backbone(pool, split)
        params = model.init(jax.random.key(0), x, position, mask, LENGTHS, live)['params']
        y, losses, *_ = model.apply({'params': params}, x, position, mask, LENGTHS, live)
        assert y.shape == x.shape and {a.shape for a in losses.values()} == {(B, L)}
        return params['layers']

    separate, shared = born('separate'), born('shared')
    for group in experts.GROUPS:
        assert separate[group]['gate'].shape == (2, E, D, F) and group not in shared
    assert shared['shared']['down'].shape == (2, E, F, D) and 'shared' not in separate


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'top_k': 9}, r'top_k=9 must be between 1 and model\.backbone\.moe\.num_experts=8'),
        ({'num_experts': 6}, r'num_experts=6 is not a multiple of mesh\.expert=4'),
        ({'pool': 'none'}, r"pool='none' is not known"),
        ({'grouped_matmul': 'dense'}, r"grouped_matmul='dense' is not known"),
        ({'capacity_factor': 0.5}, r'capacity_factor=0\.5 must be at least 1'),
    ],
)
def test_wrong_values_name_the_field(changes, words):
    config = config_of()
    config.model.backbone.moe.update(changes)
    with pytest.raises(UserError, match=words):
        experts.build(config, 'cpu', mesh_of(expert=4))


@pytest.mark.parametrize(
    ('axes', 'message'),
    [
        ((None, None, None), r"0 of 3 are sharded over 'expert'.*mesh\.expert=2, all of"),
        (('expert', 'tensor', 'fsdp'), r"1 of 3 are sharded over 'tensor'.*all or none of"),
    ],
)
def test_a_table_that_shards_experts_otherwise_than_they_are_used_is_an_error(axes, message):
    config = config_of()
    config.sharding = (('(gate|up|down)$', axes), *config.sharding)
    with pytest.raises(UserError, match=message):
        routed(config, mesh_of(expert=2, tensor=2, fsdp=2), weights_of(), *tokens())


def test_any_table_will_do_along_axes_of_one_device():
    config = config_of()
    config.sharding = (('down$', ('fsdp', 'expert', None)), *config.sharding)
    found, _ = routed(config, mesh_of(fsdp=2), weights_of(), *tokens())
    right, _ = routed(config, None, weights_of(), *tokens())
    np.testing.assert_allclose(found, right, atol=1e-5)


def test_a_table_that_scatters_the_experts_of_a_device_is_an_error():
    config = config_of()
    config.sharding = ((r'(gate|up|down)$', (('fsdp', 'expert'), None, None)), *config.sharding)
    with pytest.raises(UserError, match=r"pixels/gate is sharded over .*; name 'expert' first"):
        routed(config, mesh_of(expert=2, fsdp=2, data=2), weights_of(), *tokens())


@pytest.mark.parametrize(
    'remat, recomputed', [('full', 2), ('projections', 2), ('gate', 1), ('feedforward', 0)]
)
def test_the_backward_pass_recomputes_no_unneeded_product(remat, recomputed):
    """Among gate, up and down: never `down`, since no gradient needs its output."""
    w, (x, live) = weights_of(), tokens()

    def loss(w, x):
        run = jax.checkpoint(
            lambda w, x: routed(config_of(), None, w, x, live)[0],
            policy=layers.REMAT[remat],
        )
        return jnp.sum(run(w, x) ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(w, x))
    assert text.count('= ragged_dot') == 3 + recomputed + 6  # forward, recomputed, gradients
