"""HTTP: thin. One file for each URL noun; all URLs in `routes.py`."""
