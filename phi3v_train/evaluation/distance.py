"""Edit distance of two texts (Levenshtein): insertions, deletions and substitutions of one character, each costs 1."""


def levenshtein(left: str, right: str) -> int:
    """Fewest edits that turn one text into the other; two rows of the table are held."""
    while left and right and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    start = 0
    while start < min(len(left), len(right)) and left[start] == right[start]:
        start += 1
    left, right = left[start:], right[start:]
    if len(left) < len(right):
        left, right = right, left
    above = list(range(len(right) + 1))
    for row, a in enumerate(left, 1):
        diagonal, above[0] = above[0], row
        for column, b in enumerate(right, 1):
            cost = diagonal + (a != b)
            diagonal = above[column]
            above[column] = min(cost, diagonal + 1, above[column - 1] + 1)
    return above[-1]
