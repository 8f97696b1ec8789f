"""The engine: weights, KV memory, the model runner, and the object that ties them to the scheduler and the
loop.
"""
