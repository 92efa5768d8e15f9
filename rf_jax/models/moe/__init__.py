"""Mixture of experts: router, dispatch to the experts' devices, grouped matmul, expert layers."""
