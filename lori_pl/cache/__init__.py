"""The teacher's statistics on disk: built once by ``cache``, read in training instead of running the teacher.

Knows data, models and alignment, neither methods nor the command line.
"""
