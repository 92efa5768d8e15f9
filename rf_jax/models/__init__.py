"""The network: shared backbone, vision encoders, quantizer, representation, denoiser."""
