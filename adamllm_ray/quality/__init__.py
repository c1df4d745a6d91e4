"""Judging the data, not only the model: what a synthesis wrote, how far its judge can be believed, what leaked.

::

    questions.py      normal form and type of a question; equal and nearly equal questions found again
    profile.py        one pass over the task columns: types, lengths, distinct-n, verdicts, keep rate per threshold
    calibration.py    P(Yes) against gold labels (reliability, Brier score), judge against a rule
    contamination.py  training images and questions that are also in an evaluation set
    measure.py        all of it for a run, kept in its folder ``quality/``

Everything streams over Parquet: memory grows with the evaluation sets and 8 bytes per record, not with the images.
"""
