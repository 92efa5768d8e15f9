"""Procedural scenes with exact answers: the data of the controlled study and its judge.

`world.py` makes a scene from (seed, index), `render.py` draws it, `language.py` describes it and
asks about it, `claims.py` says what a caption claims. `judge.py` finds the objects in the pixels of
any picture (`templates.py` holds the shapes it compares with), so that a generated picture is right
or wrong without a network that judges it. `prompts.py` holds the prompts of the evaluation.

numpy only: no jax here, and imports of nothing but rf_jax.runtime.
"""
