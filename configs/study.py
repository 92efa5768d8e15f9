"""The controlled study: arms that differ in one thing, under equal budgets (paper, section 4).

python -m rf_jax.study --config=configs/study.py --workdir=runs/study           (18 runs)
python -m rf_jax.study --config=configs/study.py:six --workdir=runs/study       (6 more)
python -m rf_jax.study --config=configs/study.py:quick --workdir=runs/quick     (a look)

The same command goes on with what the workdir holds; more arms and more seeds may be asked of it.
"""

from ml_collections import ConfigDict

from rf_jax.runtime.errors import choose

SIX = {'arms': 'pixel_rf,pixel,vae_rf,vae,repa,continuous'}
# Enough to tell tokens from plain pixels, not yet to tell the other arms apart.
SHORT = {'steps': 3500, 'curve.points': 7}
# A rung of the ladder: two arms, one seed, and what differs from the study. See configs/ladder.py.
RUNG = SHORT | {'arms': 'pixel_rf,pixel', 'seeds': 1}


# Textures are named too: captions of 65 tokens, where 44 are most without them.
ROOM = ('data.max_text_tokens=66', 'data.capacity.text=72')


def _scenes(option: str, *more: str) -> dict:
    return RUNG | {'overrides': (f'data.sources=scenes:aligned/48/{option}', *more)}


VARIANTS = {
    '': {},
    # With REPA and continuous features: the paper's six (the same folder goes on).
    'six': SIX,
    # The six with the steps of the rungs.
    'short': SHORT | SIX,
    # All other arms, of which one seed was trained, and their references.
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
    # Rotary positions that turn as in models of long texts; see configs/scenes.py.
    'theta': RUNG | {'overrides': ('model.backbone.rope_theta=10000.0',)},
    'quick': {
        'arms': 'pixel_rf,pixel',
        'seeds': 1,
        'steps': 300,
        'first_steps': 200,
        'autoencoder_steps': 200,
        'prompts': 8,
        'pictures': 1,
        'captions': 48,
        'questions': 16,
        'curve.points': 2,
        'curve.prompts': 4,
    },
}


def get_config(variant: str = '') -> ConfigDict:
    study = ConfigDict()
    # File with ARMS and STAGES, name -> the stages that it `needs` first, and get_config(name).
    study.runs = 'configs/scenes.py'
    study.arms = (
        'pixel_rf,pixel,vae_rf,vae'  # comma-separated; the first is what others are compared with
    )
    study.seeds = 3  # every arm is trained from seeds 0, 1, ..., seeds - 1
    study.steps = 6000  # at which arms are compared; cheaper arms go on to the first's FLOPs
    study.first_steps = 1200  # of the understanding stage that arms start from, once a seed
    study.autoencoder_steps = 1000  # of the autoencoder of vae and vae_rf, once a seed
    study.prompts = 50  # per category, seen and held out each; GenEval has about 90
    study.pictures = 4  # per prompt; GenEval: 4
    study.captions = 200  # new scenes whose captions are drawn, for KID and FD; 0: none
    study.questions = 50  # per kind of question, on new scenes
    curve = study.curve = ConfigDict()  # the score against steps, from some of the prompts
    curve.points = 12  # up to `steps`, which is a multiple of it; checkpoints are written there
    curve.prompts = 10  # per category, one picture each, and questions per kind
    # Fields of configs/base.py for all runs: ('data.batch_size=32', 'flow.shift=2.0').
    study.overrides = ()
    changes = choose('configs/study.py:variant', variant, VARIANTS)
    study.update_from_flattened_dict(changes)
    return study
