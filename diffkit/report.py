"""Figures of merit, and how they are shown: each says over how many things it was counted.

Two columns belong together: what the model scored, and what held-out data scores by the same function, which is as good as it
gets at this number of samples.
"""
