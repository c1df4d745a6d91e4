"""The pocket domain: a satellite world and three laptop-size models, so that the whole method runs anywhere.

Nothing outside this folder knows that these models are small.
"""
