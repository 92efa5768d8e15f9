"""The network: shared backbone, vision encoder, quantizer, representation, denoiser."""
