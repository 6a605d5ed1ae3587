//! BENCHMARKS.md, and the part of the README on costs: made of the numbers in docs/benchmarks, and of nothing else.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::bench;

/// What is measured, how, and where that ends: by benchmark, in the order of `bench::ALL`.
const ABOUT: [(&str, &str, &str); 7] = [
    (
        "kernel",
        "An event in the kernel",
        "Nanoseconds of a run by the kernel's own BPF statistics (`BPF_ENABLE_STATS`). An empty program on the same hook, in \
         the same round, pays for the statistics and is subtracted. Both ends of the traffic are one thread on one CPU, as \
         waking another one would swamp everything; the rings are emptied by another thread. Yardsticks, in \
         `tcpwatch-ebpf/src/bin/tcpwatch-bench.rs`: one ring-buffer record of 24 bytes per event without a wakeup, \
         state in an LRU hash by cookie (both get at the socket's fields by `bpf_skc_to_tcp_sock`, as is usual, which ours \
         does without from Linux 6.2 on), and Debian's bpftrace with \
         `tracepoint:tcp:tcp_probe { @[args->sock_cookie] = hist(args->srtt); }`.\n\n\
         *Limits.* The statistics do not have what is around a program: the trampoline of ours, and for bpftrace the \
         building of the classic tracepoint's record, so that the ratio to it is in its favour. Memory of a busy host is \
         colder than that of this loop.",
    ),
    (
        "impact",
        "What the watched notice",
        "The same traffic in a namespace on the last CPU, half a second of each kind: short connections and a bulk transfer with \
         both ends in one thread, requests of 64 bytes between two threads. The daemon is the real one with its defaults, \
         watches the whole host and runs where there is room. It watches who reads for 3 s after a connection was accepted: \
         bulk transfer and requests are those of connections that are 4 s old, and requests just accepted are beside them. \
         Programs that do nothing are on the tracepoints that ours are on all the time: what the kernel takes to come to any \
         program, less than which nobody can cost. bpftrace has the histogram above, and counts retransmissions, states and \
         resets. Who watches changes order from round to round; each is beside nobody, before or after in turn, and a ratio is of those two.\n\n\
         *Limits.* Loopback has no device: on a network the share of TCP, and so of what is watched, is smaller. The CPU is \
         saturated by the traffic, which makes the effect as large as it can be.",
    ),
    (
        "user",
        "User space",
        "In one process, without the kernel programs: records as they lie in the ring go through the decoder, the \
         aggregator and past the listeners. The yardstick runs over the same bytes in the same round. Times are CPU \
         time of the thread; allocations are counted by the benchmark's allocator.\n\n\
         *Limits.* The records are of the same few services and of owners that are known.",
    ),
    (
        "scale",
        "Scale",
        "The real daemon with its defaults, but for the size of its table. User and system time of all its threads over ten \
         seconds. Kernel memory is the growth of `SUnreclaim` from before the daemon to after.\n\n\
         *Limits.* Traffic and daemon share the CPUs of one machine: the rates are what is left for either. Memory of \
         slabs is of the whole machine.",
    ),
    (
        "flood",
        "A victim beside a flood of resets",
        "A bulk transfer and connections to a closed port in one namespace, in pairs with and without the daemon.",
    ),
    (
        "top",
        "The live view",
        "This program on a terminal of its own, with a recording that is made for it. Measured once.",
    ),
    ("explain", "Explanations", "Connections of many kinds, so that every rule has something to look at; one process."),
];

/// Load of a minute, by CPU, above which the machine is not quiet. What was measured just before counts too.
const QUIET: f64 = 1.5;

/// Between these the README has what is made here.
const MARKS: [&str; 2] = ["<!-- measured: written by `cargo xtask docs` -->", "<!-- measured: end -->"];

/// The page.
pub(crate) fn page(folder: &Path) -> Result<String> {
    let results = read(folder)?;
    let mut text = "# Benchmarks\n\n\
        Made by `cargo xtask docs` from the numbers in `docs/benchmarks`, which `cargo xtask bench all --out docs/benchmarks`\n\
        writes. What is compared was measured in alternating pairs in one run; figures are medians, brackets are their 95 %\n\
        intervals by order statistics, ratios are taken within pairs. A goal is reached when the whole interval is on its side,\n\
        not reached when the whole interval is on the other side, and unresolved, with the interval's width, when neither.\n"
        .to_owned();
    machine(&mut text, &results)?;
    goals(&mut text, &results)?;
    for ((_, title, about), (name, result)) in ABOUT.iter().zip(&results) {
        write!(text, "\n## {title}\n\n`cargo xtask bench {name}`. {about}\n")?;
        for table in list(result, "tables")? {
            self::table(&mut text, table)?;
        }
    }
    text += "\n## To repeat it\n\n\
        ```sh\n\
        cargo xtask bench kernel        # one of them: tables; --json: one object\n\
        cargo xtask bench scale -- --most   # and as many sockets as the machine takes\n\
        cargo xtask bench all --out docs/benchmarks && cargo xtask docs\n\
        ```\n\n\
        As root, on a machine that does nothing else: its load before each benchmark is in the table above. Without bpftrace\n\
        its rows are skipped and say so. `--smoke` runs as little as shows that a benchmark works, as `cargo xtask test` does.\n";
    Ok(text)
}

/// The README with the part that is made here.
pub(crate) fn into_readme(readme: &str, folder: &Path) -> Result<String> {
    let results = read(folder)?;
    let [begin, end] = MARKS;
    let (before, rest) = readme.split_once(begin).with_context(|| format!("the README has no line {begin:?}"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("the README has no line {end:?}"))?;
    let mut text = disturbed(&results).map_or_else(String::new, |sentence| format!("\n{sentence}\n"));
    for (name, title) in [("kernel", "tcp_probe under request/response"), ("impact", "Ratio to nobody")] {
        let (_, result) = results.iter().find(|(known, _)| *known == name).context("no such benchmark")?;
        let wanted = |table: &&Value| table["title"].as_str().is_some_and(|text| text.starts_with(title));
        let found = list(result, "tables")?.iter().find(wanted);
        table(&mut text, found.with_context(|| format!("{name}.json has no table {title:?}"))?)?;
    }
    Ok(format!("{before}{begin}\n{text}\n{end}{after}"))
}

/// The objects of all benchmarks, by name.
fn read(folder: &Path) -> Result<Vec<(&'static str, Value)>> {
    ABOUT
        .iter()
        .map(|(name, ..)| {
            let file = folder.join(format!("{name}.json"));
            let text = fs::read_to_string(&file).with_context(|| {
                format!("cannot read {}; `cargo xtask bench {name} --out {}` writes it", file.display(), bench::RESULTS)
            })?;
            let result: Value =
                serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
            if result["benchmark"] != *name {
                bail!("{} is not of the benchmark {name}", file.display());
            }
            Ok((*name, result))
        })
        .collect()
}

fn machine(text: &mut String, results: &[(&str, Value)]) -> Result<()> {
    let (_, first) = results.first().context("there is no benchmark")?;
    let machine = &first["machine"];
    let word = |name: &str| machine[name].as_str().unwrap_or("unknown");
    write!(
        text,
        "\n## The machine\n\n{} CPUs, {}; {:.0} GB of memory; Linux {}; clock source {}.\n\n\
         | benchmark | day | commit | load before |\n|---|---|---|---|\n",
        machine["cpus"],
        word("cpu"),
        machine["memory_bytes"].as_f64().unwrap_or(0.0) / 1e9,
        word("kernel"),
        word("clocksource"),
    )?;
    for (name, result) in results {
        let machine = &result["machine"];
        let load: Vec<_> = machine["load_before"].as_array().into_iter().flatten().map(Value::to_string).collect();
        let day = day(machine["unix_seconds"].as_u64().unwrap_or(0));
        let smoke = if result["smoke"] == true { " **(smoke: the numbers mean nothing)**" } else { "" };
        let commit = machine["commit"].as_str().unwrap_or("unknown");
        writeln!(text, "| {name}{smoke} | {day} | {commit} | {} |", load.join(", "))?;
    }
    if let Some(sentence) = disturbed(results) {
        write!(text, "\n{sentence}\n")?;
    }
    Ok(())
}

/// Says so when the machine had other things to do before one of them.
fn disturbed(results: &[(&str, Value)]) -> Option<String> {
    let busy = |(_, result): &&(&str, Value)| {
        let machine = &result["machine"];
        machine["load_before"][0].as_f64() > machine["cpus"].as_f64().map(|cpus| cpus * QUIET)
    };
    let names: Vec<_> = results.iter().filter(busy).map(|(name, _)| *name).collect();
    let what = names.join(", ");
    (!names.is_empty())
        .then(|| format!("**Measured on a machine that was busy with other things, and so provisional: {what}.**"))
}

fn goals(text: &mut String, results: &[(&str, Value)]) -> Result<()> {
    *text += "\n## Goals\n\n| goal | limit | measured | |\n|---|---|---|---|\n";
    for (_, result) in results {
        for goal in list(result, "goals")? {
            let verdict = words(goal, "verdict")?;
            let verdict = if verdict == "reached" { verdict.to_owned() } else { format!("**{verdict}**") };
            let measured = words(&goal["measured"], "text")?;
            writeln!(text, "| {} | {} | {measured} | {verdict} |", words(goal, "what")?, words(goal, "limit")?)?;
        }
    }
    Ok(())
}

fn table(text: &mut String, table: &Value) -> Result<()> {
    let columns = list(table, "columns")?;
    let heads: Vec<_> = columns.iter().filter_map(Value::as_str).collect();
    write!(text, "\n| {} | {} |\n|---|{}\n", words(table, "title")?, heads.join(" | "), "---|".repeat(heads.len()))?;
    for row in list(table, "rows")? {
        let cells = list(row, "cells")?;
        let mut shown = cells.iter().map(|cell| words(cell, "text")).collect::<Result<Vec<_>>>()?;
        shown.resize(heads.len(), "");
        writeln!(text, "| {} | {} |", words(row, "name")?, shown.join(" | "))?;
    }
    for note in list(table, "notes")? {
        write!(text, "\n{}\n", note.as_str().unwrap_or_default())?;
    }
    Ok(())
}

fn list<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    value[name].as_array().with_context(|| format!("a benchmark has no list {name:?}"))
}

fn words<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name].as_str().with_context(|| format!("a benchmark has no words {name:?}"))
}

/// Of the proleptic Gregorian calendar, from seconds since 1970.
fn day(unix_seconds: u64) -> String {
    let (mut days, mut year) = (unix_seconds / 86_400, 1970);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn results(verdict: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, ..) in ABOUT {
            let titles = ["tcp_probe under request/response, net", "Ratio to nobody, taken"];
            let tables: Vec<_> = titles
                .iter()
                .map(|title| {
                    json!({"title": title, "columns": ["ns", "ratio"], "notes": ["A note."], "rows": [
                        {"name": "one", "cells": [{"text": "67 [66, 68]"}, {"text": "0.5"}]},
                        {"name": "another", "cells": [{"text": "skipped: no bpftrace"}]},
                    ]})
                })
                .collect();
            let goals =
                json!([{"what": "a goal", "limit": "at most 3", "measured": {"text": "2"}, "verdict": verdict}]);
            let object = json!({"benchmark": name, "smoke": false, "tables": tables, "goals": goals, "machine": {
                "cpus": 2, "cpu": "a CPU", "memory_bytes": 8e9, "kernel": "6.18", "clocksource": "tsc",
                "load_before": [if name == "flood" { 3.1 } else { 0.1 }, 0.2, 0.3], "unix_seconds": 951_782_400, "commit": "abc"}});
            fs::write(folder.path().join(format!("{name}.json")), object.to_string()).unwrap();
        }
        folder
    }

    #[test]
    fn every_benchmark_is_on_the_page() {
        assert_eq!(ABOUT.map(|(name, ..)| name), bench::ALL);
        let page = page(results("not reached").path()).unwrap();
        for line in [
            "| one | 67 [66, 68] | 0.5 |",
            "| another | skipped: no bpftrace |  |",
            "| a goal | at most 3 | 2 | **not reached** |",
            "| kernel | 2000-02-29 | abc | 0.1, 0.2, 0.3 |",
            "**Measured on a machine that was busy with other things, and so provisional: flood.**",
            "2 CPUs, a CPU; 8 GB of memory; Linux 6.18; clock source tsc.",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }

    #[test]
    fn the_readme_changes_between_its_marks_only() {
        let folder = results("reached");
        let [begin, end] = MARKS;
        let readme = format!("before\n{begin}\nold\n{end}\nafter\n");
        let new = into_readme(&readme, folder.path()).unwrap();
        assert!(new.starts_with(&format!("before\n{begin}\n")) && new.ends_with(&format!("{end}\nafter\n")), "{new}");
        assert!(!new.contains("old") && new.contains("| one | 67 [66, 68] | 0.5 |"), "{new}");
        assert_eq!(into_readme(&new, folder.path()).unwrap(), new);
        assert!(into_readme("no marks", folder.path()).is_err());
    }

    #[test]
    fn what_is_missing_or_of_another_benchmark_is_named() {
        let folder = results("reached");
        fs::write(folder.path().join("scale.json"), "{\"benchmark\": \"user\"}").unwrap();
        assert!(page(folder.path()).unwrap_err().to_string().ends_with("scale.json is not of the benchmark scale"));
        fs::remove_file(folder.path().join("user.json")).unwrap();
        let error = page(folder.path()).unwrap_err().to_string();
        assert!(error.contains("user.json; `cargo xtask bench user --out docs/benchmarks` writes it"), "{error}");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(
            [0, 951_782_400, 951_868_800, 1_798_761_599].map(day),
            ["1970-01-01", "2000-02-29", "2000-03-01", "2026-12-31"]
        );
    }
}
