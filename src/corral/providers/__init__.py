"""Models: each file here speaks to one kind of model server; `routing.py` picks one by model id."""
