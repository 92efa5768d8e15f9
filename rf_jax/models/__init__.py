"""The network: shared backbone, vision encoder, quantizer, representation head, denoiser."""
