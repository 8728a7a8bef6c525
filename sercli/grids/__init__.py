"""Grids of runs, as `ser reproduce` makes them: what there is to do, what is done, what came of it.

Nothing here imports torch but `costs`.
"""
