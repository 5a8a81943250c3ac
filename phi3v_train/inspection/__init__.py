"""A sample as the model sees it, for people.

choose     rows of a split, by number or drawn              terminal   rows in colour
view       a row encoded: spans, images, lengths            page       rows as an HTML file, `page/` its parts
words      tokens of any vocabulary, readable
"""
