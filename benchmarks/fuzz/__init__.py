"""Damaged and hostile inputs by the thousand: each is refused in one line, or read as what it is.

`cases.py` counts, the others make the cases: `sweeps.py` sweeps and YAML texts, `adapters.py`, `images.py`
image folders and PNG for redraw, `stores.py` tables and manifests.
"""
