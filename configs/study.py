"""The controlled study: arms that differ in one thing, with equal budgets (paper, section 4).

python -m rf_jax.study --config=configs/study.py --workdir=runs/study           (18 runs)
python -m rf_jax.study --config=configs/study.py:six --workdir=runs/study       (6 more)
python -m rf_jax.study --config=configs/study.py:quick --workdir=runs/quick     (a quick look)

The same command resumes the study in the workdir, also with more arms or more seeds.
"""

from ml_collections import ConfigDict

from rf_jax.runtime.errors import choose

SIX = {'arms': 'pixel_rf,pixel,vae_rf,vae,repa,continuous'}
# Enough to separate representation forcing from plain pixels, but not yet the other arms.
SHORT = {'steps': 3500, 'curve.points': 7}
# A rung of the ladder: two arms, one seed, and one change to the study. See configs/ladder.py.
RUNG = SHORT | {'arms': 'pixel_rf,pixel', 'seeds': 1}


# Captions that name textures too have up to 65 tokens, instead of 44.
ROOM = ('data.max_text_tokens=66', 'data.capacity.text=72')


def _scenes(option: str, *more: str) -> dict:
    return RUNG | {'overrides': (f'data.sources=scenes:aligned/48/{option}', *more)}


VARIANTS = {
    '': {},
    # With REPA and continuous features: the paper's six arms (continues the same folder).
    'six': SIX,
    # The six arms with the number of steps of the rungs.
    'short': SHORT | SIX,
    # All other arms, with one seed each, and their references.
    'arms': SHORT
    | {
        'arms': 'pixel_rf,pixel,pool_1,codes_32,codes_128,quantizer_printed,quantizer_sinkhorn,'
        'frozen,split_full,split_none,understanding,generation,scratch_pixel_rf,scratch_pixel',
        'seeds': 1,
    },
    'fine': RUNG | {'runs': 'configs/scenes_fine.py'},
    'textures': _scenes('textures', *ROOM),
    'clutter': _scenes('clutter'),
    'weak': RUNG | {'first_steps': 300},
    'long': RUNG | {'first_steps': 2400},
    # Rotary frequencies as in models of long texts; see configs/scenes.py.
    'theta': RUNG | {'overrides': ('model.backbone.rope_theta=10000.0',)},
    'quick': {
        'arms': 'pixel_rf,pixel',
        'seeds': 1,
        'steps': 300,
        'first_steps': 200,
        'autoencoder_steps': 200,
        'prompts': 8,
        'images': 1,
        'captions': 48,
        'questions': 16,
        'curve.points': 2,
        'curve.prompts': 4,
    },
}


def get_config(variant: str = '') -> ConfigDict:
    study = ConfigDict()
    # File with get_config(name), and ARMS and STAGES, which say what stages each name `needs`.
    study.runs = 'configs/scenes.py'
    # Comma-separated; the others are compared with the first one.
    study.arms = 'pixel_rf,pixel,vae_rf,vae'
    study.seeds = 3  # every arm is trained with seeds 0, 1, ..., seeds - 1
    # Steps at which arms are compared; cheaper arms continue to the FLOPs of the first.
    study.steps = 6000
    study.first_steps = 1200  # of the understanding stage that arms start from, once per seed
    study.autoencoder_steps = 1000  # of the autoencoder of vae and vae_rf, once per seed
    study.prompts = 50  # per category, for seen and held-out prompts each; GenEval: about 90
    study.images = 4  # per prompt; GenEval: 4
    # Captions of new scenes to generate images from, for KID and FD; 0: none.
    study.captions = 200
    study.questions = 50  # per kind of question, on new scenes
    curve = study.curve = ConfigDict()  # the score as a function of steps, on some of the prompts
    curve.points = 12  # up to `steps`, a multiple of it; a checkpoint is written at each
    curve.prompts = 10  # per category, with one image each; also questions per kind
    # Overrides of configs/base.py for all runs: ('data.batch_size=32', 'flow.shift=2.0').
    study.overrides = ()
    changes = choose('configs/study.py:variant', variant, VARIANTS)
    study.update_from_flattened_dict(changes)
    return study
