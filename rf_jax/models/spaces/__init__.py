"""The space in which the flow generates, one file each: `pixels`, or the latents of a `vae`.

`space.py` is the protocol, `choice.py` finds the space of a config.
"""
