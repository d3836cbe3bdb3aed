"""Independent solvers of the graph tasks and puzzles: from the question's text alone."""

from collections import deque
from graphlib import TopologicalSorter
from itertools import product


def edges_of(graph: str) -> list[list[str]]:
    return [edge.split() for edge in graph.split(" | ")]


def breadth_first(near: dict[str, list[str]], start: str) -> dict[str, list[list[str]]]:
    """All shortest paths to every node."""
    paths = {start: [[start]]}
    length = {start: 0}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for other in near.get(node, []):
            if other not in length:
                length[other] = length[node] + 1
                paths[other] = []
                queue.append(other)
            if length[other] == length[node] + 1:
                paths[other] += [[*path, other] for path in paths[node]]
    return paths


def solve_path_star(question: str, level: int) -> str:
    graph, asked = question.split(" ? ")
    centre, goal = asked.split()
    near: dict[str, list[str]] = {}
    for start, end in edges_of(graph):
        near.setdefault(start, []).append(end)
    ((_, *path),) = breadth_first(near, centre)[goal]
    assert len(path) == level and len(near[centre]) == 3
    return " ".join(path)


def solve_shortest_path(question: str, level: int) -> str:
    graph, asked = question.split(" ? ")
    start, goal = asked.split()
    near: dict[str, list[str]] = {}
    for a, b in edges_of(graph):
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    ((_, *path),) = breadth_first(near, start)[goal]
    assert len(path) == level
    return " ".join(path)


def solve_ancestors(question: str, level: int) -> str:
    graph, asked = question.split(" ? ")
    parents: dict[str, list[str]] = {asked: []}
    for start, end in edges_of(graph):
        parents.setdefault(end, []).append(start)
        parents.setdefault(start, [])
    assert max(map(len, parents.values())) <= 4
    order = [*TopologicalSorter(parents).static_order()]
    wanted = {asked}
    for node in reversed(order):
        if node in wanted:
            wanted.update(parents[node])
    found = [node for node in order if node in wanted and node != asked]
    assert len(found) == level
    return " ".join([*found, asked])


def solve_maze(question: str, level: int) -> str:
    fields = [row.split() for row in question.split(" | ")]
    assert len(fields) == len(fields[0]) == 2 * level + 1
    places = {sign: (r, c) for r, row in enumerate(fields) for c, sign in enumerate(row)}
    steps = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
    queue, ways = deque([places["S"]]), {places["S"]: ""}
    while queue:
        row, column = place = queue.popleft()
        for move, (down, right) in steps.items():
            other = row + down, column + right
            if fields[other[0]][other[1]] != "#" and other not in ways:
                ways[other] = ways[place] + move
                queue.append(other)
    # Every second field is a door: each move is there twice.
    return " ".join(ways[places["G"]][::2])


def solve_knights_knaves(question: str, level: int) -> str:
    said = [line.split() for line in question.removesuffix(" ?").split(" | ")]
    names = [words[0] for words in said]
    assert len(names) == level
    fitting = []
    for roles in product("KN", repeat=level):
        role = dict(zip(names, roles, strict=True))
        truths = [
            (role[words[2]] == words[3])
            if len(words) == 4
            else (role[words[2]] == role[words[4]]) == (words[3] == "=")
            for words in said
        ]
        if all(truth == (role[name] == "K") for truth, name in zip(truths, names, strict=True)):
            fitting.append(roles)
    (roles,) = fitting
    return " ".join(roles)


def solve_sudoku(rows: int, columns: int):
    """By trying every digit, and all the way, so that a second solution would be found."""
    side = rows * columns
    whole = (1 << side) - 1
    places = [(r, c, r // rows * rows + c // columns) for r in range(side) for c in range(side)]

    def solutions(grid: list[int], used: list[list[int]]) -> list[list[int]]:
        best, fewest = -1, 0
        for index, value in enumerate(grid):
            if not value:
                row, column, box = places[index]
                left = whole & ~(used[0][row] | used[1][column] | used[2][box])
                if best < 0 or left.bit_count() < fewest.bit_count():
                    best, fewest = index, left
        if best < 0:
            return [list(grid)]
        found = []
        while fewest:
            bit = fewest & -fewest
            fewest ^= bit
            grid[best] = bit.bit_length()
            for kind, place in enumerate(places[best]):
                used[kind][place] |= bit
            found += solutions(grid, used)
            for kind, place in enumerate(places[best]):
                used[kind][place] ^= bit
            grid[best] = 0
        return found

    def solve(question: str, level: int) -> str:
        grid = [0 if sign == "." else int(sign) for sign in question.split() if sign != "|"]
        used = [[0] * side for _ in range(3)]
        for index, value in enumerate(grid):
            for kind, place in enumerate(places[index] if value else ()):
                assert not used[kind][place] >> value - 1 & 1
                used[kind][place] |= 1 << value - 1
        (solution,) = solutions(grid, used)
        assert side == 9 or grid.count(0) == level
        lines = [solution[i : i + side] for i in range(0, side * side, side)]
        return " | ".join(" ".join(map(str, line)) for line in lines)

    return solve


def distances(question: str) -> tuple[dict[str, int], list[str]]:
    """Breadth first: the distance of each node from the asked root, and the two candidates."""
    graph, asked = question.split(" ? ")
    edges = [edge.split() for edge in graph.split(" | ")]
    root, *candidates = asked.split()
    found, frontier = {root: 0}, [root]
    for node in frontier:
        for start, end in edges:
            if start == node and end not in found:
                found[end] = found[node] + 1
                frontier.append(end)
    return found, candidates


def solve_prosqa(question: str, level: int) -> str:
    found, candidates = distances(question)
    (answer,) = [candidate for candidate in candidates if candidate in found]
    assert found[answer] == level
    return answer


SOLVERS = {
    "prosqa": solve_prosqa,
    "prosqa_small": solve_prosqa,
    "path_star": solve_path_star,
    "shortest_path": solve_shortest_path,
    "ancestors": solve_ancestors,
    "maze": solve_maze,
    "knights_knaves": solve_knights_knaves,
    "sudoku_4x4": solve_sudoku(2, 2),
    "sudoku_6x6": solve_sudoku(2, 3),
    "sudoku_9x9": solve_sudoku(3, 3),
}
