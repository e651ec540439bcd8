"""The only room that imports tau2: environment, tasks, users, gold actions, audit.

The gym's defects are handled here and nowhere else (`session.py` for its thread, `domain.py` for its repeated loading).
Importing a module of this room costs seconds, so other rooms import it inside functions or are imported late themselves.
"""
