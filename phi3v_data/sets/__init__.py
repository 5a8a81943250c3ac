"""Working with finished sets: split, merge, clean, count, look at and describe conversations directories.

None of them changes the directory it reads; a new set is staged and published as a conversion is.
"""
