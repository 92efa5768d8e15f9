"""Attention: the mask rule, rotary positions, and the implementations.

An implementation has two parts. `prepare(query, key)` runs once per step: from the integers of
`masks.py`, [B, Lq] and [B, Lk], to a tree of arrays with leading axis B. The call runs once per
layer: from q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh] and that tree to [B, Lq, H, Dh], with softmax
in float32. `select.py` chooses one; all others are tested against `reference.py`.
"""
