"""What stands between a prompt and its pixels, one file per kind: `forcing` (the paper's), and what
the paper compares it with, `continuous`, `alignment` and `none`.

`kind.py` is the protocol, `choice.py` finds the kind of a config, including one from outside this
package; docs/adding_a_kind.md adds one. `features.py` and `position.py` hold what kinds share.
"""
