"""Qwen3-30B-A3B on text only, to compare with language-model trainers: `docs/scaling.md`.

One expert group with one pool; no representation, no flow, and an unused encoder.
"""

from configs.paper import scale


def get_config():
    config = scale.get_config('30B-A3B')
    config.data.sources = 'text:/path/to/documents'
    config.data.tasks.update(text_to_image=0.0, image_to_text=0.0, text_only=1.0)
    config.data.max_text_tokens = 4096
    config.data.representation_tokens = False
    scale.row(config, text=32_768, vision=0, representation=0, pixels=0,
              vision_images=0, pixel_images=0)  # fmt: skip
    model = config.model
    model.backbone.split = 'none'
    model.representation.kind = 'none'
    model.encoder.update(layers=1, width=128, heads=2, feedforward=384)
    config.losses.update(representation=0.0, flow=0.0)
    return config
