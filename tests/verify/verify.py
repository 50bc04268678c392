#!/usr/bin/env python3
"""Takes what pillion promises line by line (lines.toml), runs what shows each on a release build, and prints a table.

    verify.py [--only TEXT] [--no-bench] [--out FILE]

--only TEXT   only lines whose step or text has TEXT in it; nothing is written then
--no-bench    without the comparison with other proxies, whose lines are then told as not run
--out FILE    where the table is kept as Markdown (docs/verification.md)

Everything is built and installed by `make verify`, which says by the environment where: PILLION_RELEASE_BIN, PILLION_TEST_BIN,
PEERBENCH (the script of the comparison) and BENCH_OURS (how it starts pillion).
"""

import argparse, collections, datetime, json, os, re, statistics, subprocess, sys, tempfile, time, tomllib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HOLDS, FAILS, SHORT, NOT_RUN = "holds", "**fails**", "known limit", "**not run**"
# Programs of their own, without libtest: what runs them.
PROGRAMS = {
    "interleavings:": ["cargo", "test", "--locked", "--all-features", "--test", "interleavings"],
    "simulation:": ["cargo", "bench", "--locked", "--bench", "simulation"],
    "rollouts:": ["cargo", "bench", "--locked", "--bench", "rollouts"],
}
PEERS = ("nginx", "haproxy", "envoy")


def run(command, **more):
    """The command's exit code and all that it printed, which is passed on meanwhile."""
    print("$", " ".join(command), flush=True)
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **more)
    lines = []
    for line in child.stdout:
        lines.append(line)
        if line.startswith(("test ", "running ", "error")):
            print(line, end="", flush=True)
    return child.wait(), "".join(lines)


class Tests:
    """What became of tests, by name."""

    def __init__(self):
        self.passed, self.printed, self.took = {}, collections.defaultdict(list), 0.0

    def run(self, programs, prefix, arguments, env):
        start = time.monotonic()
        for program in programs:
            _, output = run([program, "--show-output", *arguments], env={**os.environ, **env})
            self.read(output, prefix)
        self.took += time.monotonic() - start

    def read(self, output, prefix):
        test = None
        for line in output.splitlines():
            if found := re.fullmatch(r"test (\S+)(?: - should panic)? \.\.\. (ok|FAILED)", line):
                self.passed[prefix + found[1]] = found[2] == "ok"
            elif found := re.fullmatch(r"---- (\S+) stdout ----", line):
                test = prefix + found[1]
            elif line in ("successes:", "failures:"):
                test = None
            elif test and line.strip():
                self.printed[test].append(line.strip())

    def program(self, name):
        code, output = run(PROGRAMS[name])
        self.passed[name] = code == 0
        self.printed[name] = [line.strip() for line in output.splitlines() if line.strip()]

    def named(self, wanted):
        """The tests that a line of the table means."""
        if wanted.startswith("lib:") or wanted.endswith(":"):
            return [name for name in self.passed if name.startswith(wanted)]
        return [name for name in self.passed if name == wanted]


def built():
    """The library's and the integration tests' programs."""
    command = ["cargo", "test", "--locked", "--all-features", "--lib", "--test", "integration", "--no-run", "--message-format=json"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    programs = {}
    for line in output.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["profile"]["test"]:
            programs[message["target"]["name"]] = message["executable"]
    return programs["pillion"], programs["integration"]


def bench(lines):
    """The comparison's results, by proxy and load: lists of rounds. Whoever comes later in a round has the worse of it, so half of
    the rounds run in the other order."""
    loads = sorted({line["bench"] for line in lines} - {"idle"}) or ["h1"]
    order, results = [*PEERS, "ours"], collections.defaultdict(list)
    for proxies in (order, order[::-1]):
        with tempfile.NamedTemporaryFile(suffix=".json") as kept:
            command = [sys.executable, os.environ["PEERBENCH"], "--proxies", ",".join(proxies), "--ours", os.environ["BENCH_OURS"],
                       "--loads", ",".join(loads), "--rounds", "2", "--json", kept.name]
            code, output = run(command)
            print(output)
            for name, rounds in (json.load(open(kept.name)) if code == 0 else {}).items():
                results[name] += rounds
    return results


def judge_bench(line, results):
    def median(proxy):
        values = [r[line["column"]] for r in results.get(f"{proxy}/{line['bench']}", []) if r.get(line["column"]) is not None]
        return statistics.median(values) if values else None

    ours = median("ours")
    peers = {peer: value for peer in PEERS if (value := median(peer)) is not None}
    errors = sum(r.get("errors", 0) for r in results.get(f"ours/{line['bench']}", []))
    if ours is None or (not peers and "ratio" in line):
        return NOT_RUN, "no figures"
    figures = f"{ours:.1f}; " + ", ".join(f"{peer} {value:.1f}" for peer, value in peers.items())
    if "most" in line:
        return (HOLDS if ours <= line["most"] and not errors else FAILS), figures
    ratio = ours / min(peers.values())
    figures = f"{ratio:.2f} ({figures})" + (f"; {errors} errors" if errors else "")
    return (HOLDS if ratio <= line["ratio"] and not errors else FAILS), figures


def judge_tests(line, tests):
    named = {wanted: tests.named(wanted) for wanted in line["tests"]}
    missing = [wanted for wanted, found in named.items() if not found]
    if missing:
        return NOT_RUN, "no such tests: " + ", ".join(missing)
    names = list(dict.fromkeys(name for found in named.values() for name in found))
    failed = [name for name in names if not tests.passed[name]]
    if failed:
        return FAILS, ", ".join(failed)
    shown = []
    if "show" in line:
        for text in (text for name in names for text in tests.printed[name]):
            if found := re.search(line["show"], text):
                shown.append(found[1] if found.groups() else found[0] if ".*" in line["show"] else text)
    count = f"{len(names)} tests" if len(names) > 1 else "1 test"
    return HOLDS, "<br>".join([count, *(text.replace("|", "¦") for text in dict.fromkeys(shown))])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    parser.add_argument("--no-bench", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    with open(os.path.join(ROOT, "tests/verify/lines.toml"), "rb") as file:
        lines = tomllib.load(file)["line"]
    if options.only:
        lines = [line for line in lines if options.only.lower() in f"step {line['step']}: {line['line']}".lower()]

    # First, while nothing else runs.
    compared = [line for line in lines if "bench" in line]
    results = bench(compared) if compared and not options.no_bench else {}

    wanted = {name for line in lines for name in line.get("tests", ())}
    whole = not options.only or any("suite" in line for line in lines)
    library, integration = built()
    tests, cores = Tests(), os.cpu_count()
    release = {"PILLION_BIN": os.environ["PILLION_RELEASE_BIN"]}
    chosen = lambda names: [] if whole else sorted(names)
    lib = {name.removeprefix("lib:") for name in wanted if name.startswith("lib:")}
    plain = {name for name in wanted if not name.startswith(("lib:", "real_")) and name not in PROGRAMS}
    real = {name for name in wanted if name.startswith("real_")}
    if whole or lib:
        tests.run([library], "lib:", chosen(lib), release)
    if whole or plain:
        skipped = [f"--skip={name.removesuffix('.rs')}::" for name in os.listdir(f"{ROOT}/tests/integration") if name.startswith("real_")]
        tests.run([integration], "", [f"--test-threads={2 * cores}", *skipped, *chosen(plain)], release)
    if whole or real:
        tests.run([integration], "", [f"--test-threads={cores}", *(chosen(real) or ["real_"])], release)
    for name in wanted & PROGRAMS.keys():
        tests.program(name)

    rows, verdicts = [], collections.Counter()
    for line in lines:
        if "bench" in line:
            verdict, figures = judge_bench(line, results)
        elif "suite" in line:
            verdict = HOLDS if tests.took <= line["suite"] * 60 else FAILS
            figures = f"{tests.took / 60:.0f} min, without building"
        else:
            verdict, figures = judge_tests(line, tests)
        if "limit" in line and verdict in (HOLDS, FAILS):
            # What is only a limit of this place must not hide that a test fails.
            if not (verdict == FAILS and "tests" in line):
                verdict, figures = SHORT, f"{figures}<br>{line['limit']}"
        verdicts[verdict] += 1
        rows.append((str(line["step"]), line["line"], line["target"], figures, verdict))

    git = lambda *arguments: subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.strip()
    changed = " with changes that are not committed" if git("status", "--porcelain", "--untracked-files=no") else ""
    text = f"""# Verification

Each promise, what was measured, and the verdict, as `make verify` saw it on {datetime.date.today()} at commit {git('rev-parse', '--short', 'HEAD')}{changed},
on {cores} cores. What is promised and what shows it stands in `tests/verify/lines.toml`. CPU is µs per request or MiB, p99 µs, memory MB.

| step | line | target | measured | verdict |
|---|---|---|---|---|
""" + "".join("| " + " | ".join(row) + " |\n" for row in rows)
    text += "\n" + ", ".join(f"{count} {verdict.strip('*')}" for verdict, count in verdicts.items()) + "\n"
    print("\n" + text)
    others = sorted(name for name, passed in tests.passed.items() if not passed)
    if others:
        print("failed: " + ", ".join(others))
    for name in others:
        print("\n    ".join([f"\n{name}", *tests.printed[name]]))
    if options.out and not options.only:
        with open(os.path.join(ROOT, options.out), "w") as file:
            file.write(text)
    sys.exit(1 if verdicts[FAILS] or verdicts[NOT_RUN] or others else 0)


main()
