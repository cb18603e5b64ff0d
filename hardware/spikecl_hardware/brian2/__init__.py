"""Networks as Brian2 networks: for those who go on from there, and as one more backend.

A graph (`graphs`) or a trained network becomes a neutral `description` of populations and
projections; `discrete` and `continuous` write the equations of its neurons, `build` makes Brian2
objects of them, `run` runs a graph and returns a record. Brian2 is imported when it is needed.
"""
