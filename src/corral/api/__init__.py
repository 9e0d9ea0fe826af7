"""HTTP: thin. One file for each URL noun; all URLs in `routes.py`.

Reading order: `routes.py`, `middleware.py` (what happens around every request), `call.py` (what a handler gets), then
any noun. The api appends to the log and wakes the engine; it never runs a session and knows no backend.
"""
