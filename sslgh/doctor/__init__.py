"""What can be wrong with a machine before a run, and what to do about it.

Nothing is imported here: `software` must run where torchvision or FAISS cannot be imported.
"""
