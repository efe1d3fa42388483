"""Reading what callgrind counted."""

import collections
import re

# jemalloc's functions have a prefix; the C library's do not, and the TLS library calls those.
ALLOCATES = re.compile(r"(_rjem_)?(malloc|calloc|aligned_alloc|posix_memalign|memalign|mallocx)")
REALLOCATES = re.compile(r"(_rjem_)?(realloc|rallocx)")


def under(path):
    """The command that counts what follows it, into a file."""
    return ["valgrind", "--tool=callgrind", f"--callgrind-out-file={path}", "--quiet"]


class Profile:
    """Instructions in all and of each function, and how often it was called, and by which others."""

    def __init__(self, path):
        self.instructions, self.own = 0, collections.Counter()
        self.calls, self.pairs = collections.Counter(), collections.Counter()
        names, caller, callee, of_call = {}, None, None, False
        with open(path, errors="replace") as lines:
            for line in lines:
                key, _, rest = line.partition("=")
                if key in ("fn", "cfn"):
                    # "(12) name" the first time, "(12)" after.
                    number, _, name = rest.strip().partition(" ")
                    if name:
                        names[number] = name
                    name = names.get(number, number).split("'")[0]
                    caller, callee = (caller, name) if key == "cfn" else (name, callee)
                elif key == "calls":
                    self.calls[callee] += int(rest.split()[0])
                    self.pairs[caller, callee] += int(rest.split()[0])
                    of_call = True
                elif line[:1] in "0123456789+-*":
                    # A position and its cost; the one behind a call has all that the call cost.
                    if not of_call:
                        self.own[caller] += int(line.split()[1])
                    of_call = False
                elif line.startswith(("summary:", "totals:")):
                    self.instructions = int(line.split()[1])

    def allocators(self):
        """How often each function allocated, those that only pass the call on left out."""
        found = collections.Counter()
        for (caller, callee), count in self.pairs.items():
            if ALLOCATES.fullmatch(callee) and not ALLOCATES.fullmatch(caller):
                found[caller] += count
        return found

    def matching(self, pattern):
        return sum(count for name, count in self.calls.items() if pattern.fullmatch(name))

    def figures(self):
        return {"allocations": self.matching(ALLOCATES),
                "reallocations": self.matching(REALLOCATES), "instructions": self.instructions}


def each(less, more, repeats):
    """The cost of one repetition, from two profiles with so many more of them in the second."""
    first, second = less.figures(), more.figures()
    return {key: (second[key] - first[key]) / repeats for key in first}


def parts(less, more, repeats):
    """Counters of one repetition: who allocates and how often, and whose instructions they are, the
    largest first and the small ones left out."""
    out = []
    for first, second, least in ((less.allocators(), more.allocators(), 0.1),
                                 (less.own, more.own, 100)):
        second = second.copy()
        second.subtract(first)
        each = {name: count / repeats for name, count in second.items()}
        out.append(sorted(((n, count) for n, count in each.items() if count >= least),
                          key=lambda item: -item[1]))
    return out
