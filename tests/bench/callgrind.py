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
    """Instructions in all, and how often each function was called."""

    def __init__(self, path):
        self.instructions, self.calls = 0, collections.Counter()
        names, callee = {}, None
        with open(path, errors="replace") as lines:
            for line in lines:
                key, _, rest = line.partition("=")
                if key in ("fn", "cfn"):
                    # "(12) name" the first time, "(12)" after.
                    number, _, name = rest.strip().partition(" ")
                    if name:
                        names[number] = name
                    callee = names.get(number, number) if key == "cfn" else callee
                elif key == "calls":
                    self.calls[callee.split("'")[0]] += int(rest.split()[0])
                elif line.startswith(("summary:", "totals:")):
                    self.instructions = int(line.split()[1])

    def matching(self, pattern):
        return sum(count for name, count in self.calls.items() if pattern.fullmatch(name))

    def figures(self):
        return {"allocations": self.matching(ALLOCATES),
                "reallocations": self.matching(REALLOCATES), "instructions": self.instructions}


def each(less, more, repeats):
    """The cost of one repetition, from two profiles with so many more of them in the second."""
    first, second = less.figures(), more.figures()
    return {key: (second[key] - first[key]) / repeats for key in first}
