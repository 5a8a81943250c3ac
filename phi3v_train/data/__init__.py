"""From rows of conversations directories to micro-batches.

sources    which directories, splits, image budgets         order      which samples a step has
encode     a conversation to ids, labels, image inputs      partition  who computes which of them
images     files to pixels                                  collate    samples to tensors, padded or packed
reader     rows encoded, errors with file and line          loader     steps of a run, decoded ahead by `workers`
lengths    samples over --max_length                        untrained  rows whose turns all have weight 0
probe      lengths of some rows, for the plan
"""
