"""Seed data: captions, precise and informative answers about the same images become synthesizer conversations.

    adamllm seed CONFIG

`records` reads the three files, `joining` makes the turns of one image, `official` knows how the paper's code drew
order, blanks and split, and `build` writes the stage.
"""
