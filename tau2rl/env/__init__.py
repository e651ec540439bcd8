"""The only package that imports tau2: environment, tasks, user simulators, gold actions, audit.

The gym's defects are handled here and nowhere else (`simulation.py` for its thread, `factory.py` for its repeated loading).
Importing a module of this package takes half a second, so other packages import it inside functions or are imported late.
"""
