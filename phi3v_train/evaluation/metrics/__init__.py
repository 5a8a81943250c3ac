"""The metrics known by name: one module each, which holds the function of its name.

A new file here is a new metric; there is no list to edit. Other packages add theirs by the entry point group
`phi3v_train.metrics`, see `choose_metrics`.
"""
