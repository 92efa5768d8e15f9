"""Attention: the rule of who sees whom, rotary positions, and the implementations of the product.

An implementation has two parts. `prepare(query, key)`, once a step: from the integers of
`masks.py`, [B, Lq] and [B, Lk], to a tree of arrays with leading axis B. The call, once a layer: q
[B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh] and that tree to [B, Lq, H, Dh], softmax in float32.
`select.py` chooses one; `reference.py` is the plain product that all others are tested against.
"""
