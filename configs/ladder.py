"""Where the effect comes from: representation forcing against plain pixels, rung by rung.

python -m rf_jax.study --config=configs/study.py:short --workdir=runs/study_short
cp -r runs/study_short runs/study && rm runs/study/study.json  # continues the same runs
python -m rf_jax.study --config=configs/study.py:six --workdir=runs/study
for rung in arms fine textures clutter weak long theta; do
python -m rf_jax.study --config=configs/study.py:$rung --workdir=runs/study_$rung || break; done
python -m rf_jax.study --config=configs/ladder.py --studies=runs --workdir=runs/ladder

A rung is the folder of a study, an arm and its reference in it, a number of steps (0: that at which
the study compares its arms), and optionally a regex that prompts must match in full. Rungs that are
not scored yet are left out and listed.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    ladder = ConfigDict()
    # Heading -> rungs: (name, folder of the study, arm, reference, steps[, regex]).
    ladder.rungs = {
        # The paper has 4, and hundreds of pixel tokens.
        'pixel tokens for a representation token': (
            ('1', 'study_arms', 'pool_1', 'pixel', 0),
            ('4', 'study_short', 'pixel_rf', 'pixel', 0),
            ('16', 'study_fine', 'pixel_rf', 'pixel', 0),
        ),
        'texture and clutter': (
            ('plain', 'study_short', 'pixel_rf', 'pixel', 0),
            ('textures', 'study_textures', 'pixel_rf', 'pixel', 0),
            ('clutter', 'study_clutter', 'pixel_rf', 'pixel', 0),
        ),
        # Prompts such as "a ring" or "two rings", with nothing else in them.
        'objects that a prompt asks for': tuple(
            (number, 'study', 'pixel_rf', 'pixel', 0, rf'{word} \w+')
            for number, word in (('1', 'an?'), ('2', 'two'), ('3', 'three'), ('4', 'four'))
        ),
        'steps of the first stage': (
            ('0', 'study_arms', 'scratch_pixel_rf', 'scratch_pixel', 0),
            ('300', 'study_weak', 'pixel_rf', 'pixel', 0),
            ('1200', 'study_short', 'pixel_rf', 'pixel', 0),
            ('2400', 'study_long', 'pixel_rf', 'pixel', 0),
        ),
        'theta of the rotary positions': (
            ('100', 'study_short', 'pixel_rf', 'pixel', 0),
            ('10000', 'study_theta', 'pixel_rf', 'pixel', 0),
        ),
        # Fewer prompts than elsewhere: these are the points of the curve.
        'budget in steps': (
            ('1000', 'study', 'pixel_rf', 'pixel', 1000),
            ('2000', 'study', 'pixel_rf', 'pixel', 2000),
            ('3500', 'study', 'pixel_rf', 'pixel', 3500),
            ('5000', 'study', 'pixel_rf', 'pixel', 5000),
            ('6000', 'study', 'pixel_rf', 'pixel', 6000),
        ),
    }
    return ladder
