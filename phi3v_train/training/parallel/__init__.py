"""The parallel strategies: how the processes of a run hold the model and divide the work.

place     which process this is
group     what processes say to each other
engine    the interface: a model in training as one kind of sharing holds it
single, ddp, fsdp   its kinds on torch's own optimizer (`torch_engine`)
choose    which kind a run gets, and why
"""
