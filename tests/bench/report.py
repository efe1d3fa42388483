"""From raw rows to one page of Markdown."""

import statistics

# The generator's own lateness at p99, in microseconds, and shares of a CPU; above them a row says
# more about the machine than about the proxy.
MAX_LAG, MAX_FOREIGN, MAX_STOLEN = 500, 0.10, 0.02
SIDES = ("out", "in")


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def number(value, digits=0):
    return "" if value is None else f"{value:,.{digits}f}"


def ratio(value, reference):
    return f"{value / reference:.2f}" if value is not None and reference else ""


def work_done(row):
    """In millions of requests, or in GB."""
    return row["bytes"] / 1e9 if "bytes" in row else row.get("requests", 0) / 1e6


def cost(row, side=None):
    """CPU seconds for each million requests, or GB."""
    sides = [side] if side else [one for one in SIDES if one in row]
    done = work_done(row)
    return sum(row[one]["cpu"] for one in sides) / done if sides and done else None


def latency(row, which):
    return row["latency"][which] if "latency" in row else None


def faults(row):
    """Why a row is not to be believed."""
    found = []
    if "lag" in row and row["lag"]["p99_us"] > MAX_LAG:
        found.append("generator late")
    if row["foreign"] > MAX_FOREIGN:
        found.append("machine busy")
    if row["stolen"] > MAX_STOLEN:
        found.append("CPU stolen")
    return found


class Group:
    """The rows of one cell of the matrix: a scenario's phase with one peer, all rounds."""

    def __init__(self, rows):
        self.rows, self.first = rows, rows[0]

    def of(self, get):
        return median([get(row) for row in self.rows])

    def spread(self, get):
        """Half of the range, in percent of the median."""
        values = [value for value in map(get, self.rows) if value is not None]
        middle = median(values)
        return 50 * (max(values) - min(values)) / middle if len(values) > 1 and middle else None

    def note(self):
        bad = {}
        for row in self.rows:
            for why in faults(row):
                bad[why] = bad.get(why, 0) + 1
        notes = [f"INVALID: {why} in {count} of {len(self.rows)}" for why, count in bad.items()]
        errors = sum(row.get("errors", 0) for row in self.rows)
        if errors:
            notes.append(f"{errors:,} errors")
        return "; ".join(notes)


def grouped(rows):
    found = {}
    for row in rows:
        found.setdefault((row["scenario"], row["phase"], row["peer"]), []).append(row)
    return {key: Group(rows) for key, rows in found.items()}


def line(cells):
    return "| " + " | ".join(cells) + " |"


def head(columns, text_columns):
    return [line(columns), "|" + "---|" * text_columns + "--:|" * (len(columns) - text_columns - 1)
            + "---|"]


def both(group, get, digits):
    parts = [number(group.of(lambda row: get(row, side)), digits)
             for side in SIDES if side in group.first]
    return " + ".join(parts)


def speed_table(groups):
    out = head(["scenario", "load", "proxy", "requests/s (Gbit/s)", "of direct", "of Envoy",
                "CPU s per 1M requests (GB), out + in", "± %", "of Envoy", "p50 µs", "p99 µs",
                "p99.9 µs", "added to direct: p50, p99", "generator's lag p99",
                "peak MiB, out + in", "switches per request", "note"], 3)
    per_second = lambda row: row.get("per_second")
    for (scenario, phase, peer), group in groups.items():
        if scenario in ("idle", "memory"):
            continue
        other = lambda name: groups.get((scenario, phase, name))
        direct, envoy = other("direct"), other(reference(peer))
        closed, bulk = phase == "most", scenario == "bulk"
        rate, own = group.of(per_second), group.of(cost)
        against = lambda reference: ratio(rate, reference.of(per_second)) if (
            closed and reference) else ""
        added = "" if "out" not in group.first or direct is None or closed else ", ".join(
            number(group.of(lambda row: latency(row, which)) - direct.of(
                lambda row: latency(row, which))) for which in ("p50_us", "p99_us"))
        switches = lambda row: sum(row[side]["switches"] for side in SIDES if side in row) / max(
            1, row.get("requests", 0))
        out.append(line([
            scenario, "as much as it takes" if closed else f"{group.first['rate']:,}/s", peer,
            number(rate, 2 if bulk else 0), against(direct), against(envoy),
            both(group, cost, 2 if bulk else 1), number(group.spread(cost), 0),
            ratio(own, envoy.of(cost) if envoy else None),
            *(number(group.of(lambda row: latency(row, which)))
              for which in ("p50_us", "p99_us", "p999_us")), added,
            number(group.of(lambda row: row["lag"]["p99_us"] if "lag" in row else None)),
            both(group, lambda row, side: row[side]["peak"] / 1024, 1),
            number(group.of(switches), 2) if "out" in group.first and not bulk else "",
            group.note()]))
    return out


def reference(peer):
    """Telemetry on is held against Envoy with telemetry on."""
    return "envoy+telemetry" if peer.endswith("+telemetry") else "envoy"


def memory_table(groups):
    out = head(["case", "proxy", "resident MiB, out + in", "of Envoy", "anonymous MiB", "PSS MiB",
                "KiB per connection, out + in", "ready after s", "CPU s until then",
                "CPU ms per s at rest", "note"], 2)
    mebibytes = lambda key: lambda row, side: row[side][key] / 1024
    for (scenario, phase, peer), group in groups.items():
        if scenario not in ("idle", "memory"):
            continue
        present = [side for side in SIDES if side in group.first]
        total = lambda row: sum(row[side]["rss"] for side in SIDES if side in row)
        envoy = groups.get((scenario, phase, "envoy")) or groups.get(
            (scenario, "1,000 services", "envoy") if "in use" in phase else None)
        each = both(group, lambda row, side: row[side]["each"], 1) if (
            "each" in group.first[present[0]]) else ""
        rest = lambda row: 1000 * sum(row[side]["cpu"] for side in present) / row["window"]
        out.append(line([
            f"1,000 idle, {phase}" if scenario == "idle" else phase, peer,
            both(group, mebibytes("rss"), 1), ratio(group.of(total), envoy and envoy.of(total)),
            both(group, mebibytes("anonymous"), 1), both(group, mebibytes("pss"), 1), each,
            number(group.of(lambda row: row.get("ready")), 2),
            number(group.of(lambda row: row.get("start_cpu")), 2), number(group.of(rest), 2),
            ""]))
    return out


def identity_table(identities):
    cases = list(next(iter(identities.values())))
    out = [line(["proxy", *cases]), "|" + "---|" * (len(cases) + 1)]
    return out + [line([peer, *(found.get(case, "") for case in cases)])
                  for peer, found in identities.items()]


def page(about, rows, identities, failures):
    groups = grouped(rows)
    speed = any(key[0] not in ("idle", "memory") for key in groups)
    memory = any(key[0] in ("idle", "memory") for key in groups)
    versions = "; ".join(f"{name}: {text}" for name, text in about["versions"].items())
    out = [f"{about['date']}, `{about['command']}`, {about['took']} s, commit {about['commit']}. "
           f"{about['cpu']}, {about['cpus']} CPUs, Linux {about['kernel']}, load average "
           f"{about['load'][0]} before, {about['load'][1]} after. {about['rounds']} rounds, "
           f"medians. {versions}.", ""]
    if not about["real_time"]:
        out += ["The load could not run with real-time priority; watch for late generators.", ""]
    if speed:
        out += [*speed_table(groups), ""]
    if memory:
        out += [*memory_table(groups), ""]
    if identities:
        out += [*identity_table(identities), ""]
    if failures:
        out += ["Failed:", "", *(f"- {failure}" for failure in failures), ""]
    return "\n".join(out)
