"""Runs a trained model: generates images from text, captions images, answers questions.

`sampler.Sampler` is the user's interface. Below it: `inputs` lays out prompts and questions as rows
of `data.layout`, `image_sampling` and `captioning` are the jitted programs, `token_sampling`
samples the representation, `image_run` generates images chunk by chunk, `kv_cache` runs the model
on part of a row, `placement` shards the parameters.
"""
