"""Context mixing for sparse matrices of codebook indices: the model and the range coder, in plain functions.

Position by position: is the value the default? If not, its index in the codebook, bit by bit from the top.
The first question is answered by six predictions, each learnt in a context of its own (densities of the row
and the column so far, neighbours), mixed by a small logistic mixer that learns as it goes, as in the PAQ
compressors (M. Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression", 2005). All
arithmetic is on integers, so that every machine decodes the same; docs/format.md, "adaptive", specifies it.

adaptive.py runs these functions as they are on lists, or compiled by numba on arrays: only what both
do alike may stand here.
"""

INPUTS = 6
SLOTS = 2560
"""Contexts of the six predictions together: 256, 256, 1024, 256, 256 and 512."""
SETS = 8
FIRST_WEIGHT = 12_000
FULL, HALF = 1 << 16, 1 << 15
TOP, ALL = 0xFF000000, 0xFFFFFFFF
MARGIN = 32
"""More bytes than a position can take: 12 bits, and 11 for each bit of its index."""
MOST = 253
"""A probability that was met more often moves as if it had been met so often."""


def code(symbols, columns, kernel, depth, decoding, io, data, tables, state):  # type: ignore[no-untyped-def]
    """Code [rows * columns] symbols, 0 for the default or 1 + index, in row-major order.

    `symbols` is read, or filled if `decoding`. kernel: columns that belong together (taps of a filter), 1 if
    none. depth: bits of an index. io: low, high, code, position, size of data. Returns False if data is full.
    """
    squash, stretch, rate, level = tables
    probs, counts, weights, tree, tree_counts, before, dense, idx, ins = state
    total = 1 << 13
    for start in range(0, len(symbols), columns):
        row, last, block, tap = total, 15, 0, 0
        speed = 2 if start < 3 * columns else (3 if start < 12 * columns else 4)
        for c in range(columns):
            if io[3] + MARGIN > io[4] and not decoding:
                return False
            if tap == kernel:
                block, tap = 0, 0
            if start == 0:
                dense[c] = row
            which = contexts(c, columns, kernel, tap, block, last, row, before, dense, level, idx)
            p = mix(row, which, probs, counts, weights, squash, stretch, idx, ins)
            bit = one_bit(p, 0 if decoding else (1 if symbols[start + c] else 0), decoding, io, data)
            learn(bit, p, which, probs, counts, weights, rate, idx, ins)
            row += ((bit << 16) - row) >> 4
            dense[c] += ((bit << 16) - dense[c]) >> speed
            total += ((bit << 16) - total) >> 8
            # bits 0, 1, 2: this row's, the last row's and the row before that one's value is not the default
            before[c + 1] = ((before[c + 1] << 1) & 6) | bit
            block += bit
            tap += 1
            last = 0 if bit else min(last + 1, 15)
            if bit:
                entry = index(symbols[start + c] - 1, depth, decoding, io, data, tree, tree_counts, rate)
                symbols[start + c] = entry + 1
    return True


def contexts(c, columns, kernel, tap, block, last, row, before, dense, level, idx):  # type: ignore[no-untyped-def]
    """Fill idx with the six contexts' slots; returns the mixer's weight set.

    before[1 + c] holds three rows of history: in columns already coded one more than in those to come.
    """
    r, d = level[row >> 8], level[dense[c] >> 8]
    left = before[c]
    right = before[c + 2] if c + 1 < columns else 0
    here = before[c + 1]
    up, up2 = here & 1, (here >> 1) & 1
    west, north_west, north_east = left & 1, (left >> 1) & 1, right & 1
    west2 = before[c - 1] & 1 if c > 0 else 0
    channel = before[c + 1 - kernel] & 1 if c >= kernel else 0
    place = min(tap, 31)
    idx[0] = r * 16 + d
    idx[1] = 256 + (west | west2 << 1 | up << 2 | north_west << 3 | north_east << 4 | channel << 5 | up2 << 6)
    idx[2] = 512 + place * 32 + (d >> 1) * 4 + up * 2 + channel
    idx[3] = 1536 + d * 16 + (up | up2 << 1 | north_west << 2 | north_east << 3)
    idx[4] = 1792 + r * 16 + last
    idx[5] = 2048 + min(block, 15) * 32 + place
    return up + north_west + north_east + west + channel


def mix(row, which, probs, counts, weights, squash, stretch, idx, ins):  # type: ignore[no-untyped-def]
    """The mixed probability of a 1, in 2^-16; a context met for the first time says what the row says."""
    dot = 0
    for i in range(INPUTS):
        j = idx[i]
        if counts[j] == 0:
            probs[j] = min(max(row, 400), 65_000) << 6
        ins[i] = stretch[probs[j] >> 10]
        dot += weights[which * INPUTS + i] * ins[i]
    return squash[min(max(dot >> 16, -2047), 2047) + 2047]


def learn(bit, p, which, probs, counts, weights, rate, idx, ins):  # type: ignore[no-untyped-def]
    """Move the weights against their error and the six probabilities (in 2^-22) towards the bit."""
    error = (bit << 16) - p
    for i in range(INPUTS):
        weights[which * INPUTS + i] += (ins[i] * error * 6 + (1 << 17)) >> 18
        j = idx[i]
        probs[j] += (((bit << 22) - bit - probs[j]) * rate[counts[j] + 1]) >> 16
        counts[j] += counts[j] < MOST


def index(value, depth, decoding, io, data, tree, tree_counts, rate):  # type: ignore[no-untyped-def]
    """Code an index of `depth` bits from the top; every node of the binary tree has its probability."""
    node = 1
    for place in range(depth - 1, -1, -1):
        p = min(max(tree[node], 32), FULL - 32)
        bit = one_bit(p, (value >> place) & 1, decoding, io, data)
        tree[node] += (((bit << 16) - tree[node]) * rate[tree_counts[node]]) >> 16
        tree_counts[node] += tree_counts[node] < MOST
        node = 2 * node + bit
    return node - (1 << depth)


def one_bit(p, bit, decoding, io, data):  # type: ignore[no-untyped-def]
    """Code a bit that is 1 with probability p / 2^16; returns it. Carry-less range coder of 32 bits."""
    low, high = io[0], io[1]
    middle = low + (((high - low) * p) >> 16)
    if decoding:
        bit = 1 if io[2] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while ((low ^ high) & TOP) == 0:
        if decoding:
            following = data[io[3]] if io[3] < io[4] else 0
            io[2] = ((io[2] << 8) & ALL) | following
        else:
            data[io[3]] = high >> 24
        io[3] += 1
        low, high = (low << 8) & ALL, ((high << 8) & ALL) | 255
    io[0], io[1] = low, high
    return bit
