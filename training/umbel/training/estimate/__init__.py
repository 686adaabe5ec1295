"""How much memory a training takes on each process, before anything is loaded.

Weights, gradients and optimizer are counted; activations are found by running one step of the real code on tensors that
have a shape and a dtype but no bytes.
"""
