"""Procedural scenes with exact answers: the data of the controlled study and its judge.

`world.py` makes a scene from (seed, index), `render.py` draws it, `language.py` describes it and
asks questions about it, `claims.py` represents what a caption claims. `judge.py` detects the
objects of any image from its pixels (`templates.py` has the shapes that it matches), so generated
images are scored without a neural network. `prompts.py` has the prompts of the evaluation.

numpy only, no jax; imports nothing else of rf_jax but rf_jax.runtime.
"""
