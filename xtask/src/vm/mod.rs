//! `cargo xtask test vm`: the real-kernel suite on other kernels, each in an emulated machine of its own.

mod archive;
mod guest;
mod image;
mod packages;
mod pages;
mod results;
mod series;

use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Mutex,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::{
    archive::{Archive, Kernel},
    guest::Accelerator,
    results::{Listener, Outcome, Verdict},
    series::MATRIX,
};
use crate::process::{cargo, say, show, target_dir};

pub(crate) use self::{
    pages::{page, record},
    series::Series,
};

/// What runs in every guest.
const SUITE: &str = include_str!("suite.txt");
/// In it, what comes before the part that the ordinary run leaves out.
const MORE: &str = "more";
/// What may not.
const EXPECTED: &str = include_str!("expected.txt");
/// Read by the test harness: the tests to run, as beginnings of names.
const TESTS_VAR: &str = "TCPWATCH_TESTS";
/// Tests that hold whichever way resets are seen.
const RESETS: [&str; 4] = ["resets_of_", "reset_row_", "reset_causes", "reset_evidence"];
/// Tests that change the whole machine.
const FALLBACKS: &str = "fallback_";
/// Machines at once: one more than the two processors of a small host, since a test waits for a third of its time.
const JOBS: usize = 3;
/// The committed results, which docs/KERNELS.md is made from.
pub(crate) const RECORDED: &str = "docs/kernels.json";

/// What to boot, and what for.
pub(crate) struct Wanted {
    /// Series; empty for those of the matrix.
    pub(crate) kernels: Vec<Series>,
    /// All of the matrix, or the ordinary part.
    pub(crate) full: bool,
    /// Beginnings of the names of tests instead of the suite.
    pub(crate) tests: Vec<String>,
}

/// Runs the matrix; how many tests passed, failed and were skipped.
pub(crate) fn run(wanted: &Wanted) -> Result<[u64; 3]> {
    let archive = Archive::open()?;
    packages::ensure(&archive)?;
    let programs = build()?;
    let folder = target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let work = tempfile::Builder::new().prefix("guests").tempdir_in(&folder).context("cannot make a folder")?;
    let base = image::base(work.path(), &programs.all())?;
    let mut queue = VecDeque::new();
    let mut outcomes = Vec::new();
    for series in selected(wanted) {
        match archive.kernel(&series) {
            Ok(kernel) => {
                let script = script(&series, &programs, wanted);
                let image = image::whole(&base, work.path(), &kernel, &script)?;
                queue.push_back((series, kernel, image));
            }
            // Not for us to mend: the run goes on, and says so.
            Err(error) => {
                let trouble = format!("not to be had: {error:#}");
                outcomes.push(Outcome { series: series.name, trouble: Some(trouble), ..Outcome::default() });
            }
        }
    }
    let unavailable = outcomes.len() as u64;
    // The newest takes longest: its verifier is the most thorough.
    queue.make_contiguous().reverse();
    if let Some((_, kernel, image)) = queue.front() {
        let accelerator = Accelerator::find(&kernel.image()?, image);
        outcomes.extend(boot_all(queue, accelerator, &folder)?);
    }
    outcomes.sort_by_key(|outcome| MATRIX.iter().position(|entry| entry.name == outcome.series));
    let text = serde_json::to_string_pretty(&outcomes).context("the results as JSON")? + "\n";
    let file = folder.join("results.json");
    fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    table(&outcomes);
    say!("results: {}", file.display());
    let mut counts = [0, 0, unavailable];
    for outcome in &outcomes {
        for (sum, n) in counts.iter_mut().zip(outcome.counts()) {
            *sum += n;
        }
    }
    // A machine that did not come to its end may have left out any test.
    counts[1] += outcomes.iter().filter(|o| o.trouble.is_some()).count() as u64 - unavailable;
    Ok(counts)
}

fn selected(wanted: &Wanted) -> Vec<Series> {
    if !wanted.kernels.is_empty() {
        return wanted.kernels.clone();
    }
    let entries = MATRIX.iter().filter(|entry| wanted.full || entry.ordinary);
    entries.filter_map(|entry| entry.name.parse().ok()).collect()
}

/// What is put into the guests.
struct Programs {
    tcpwatch: PathBuf,
    tests: PathBuf,
}

impl Programs {
    fn all(&self) -> Vec<PathBuf> {
        vec![self.tcpwatch.clone(), self.tests.clone()]
    }
}

/// Builds what the suite on this host's kernel runs too.
fn build() -> Result<Programs> {
    let mut command = cargo()?;
    command.args(["test", "--release", "--no-run", "--package", "tcpwatch", "--test", "kernel"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    say!("{}", show(&command));
    let out = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(out.status.success(), "the tests cannot be built");
    let text = String::from_utf8_lossy(&out.stdout);
    let messages: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let find = |kind: &str, name: &str| {
        let artifact = messages.iter().find(|message| {
            message["target"]["kind"][0] == kind
                && message["target"]["name"] == name
                && message["executable"].is_string()
        });
        artifact
            .and_then(|artifact| artifact["executable"].as_str())
            .map(PathBuf::from)
            .with_context(|| format!("cargo has built no {kind} {name}"))
    };
    Ok(Programs { tcpwatch: find("bin", "tcpwatch")?, tests: find("test", "kernel")? })
}

/// What a guest does.
fn script(series: &Series, programs: &Programs, wanted: &Wanted) -> String {
    let (tcpwatch, tests) = (programs.tcpwatch.display(), programs.tests.display());
    let mut script = format!(
        "export TCPWATCH_GUEST=1 TCPWATCH_FORBID_SKIPS=1\n\
         {tcpwatch} doctor --json >/doctor 2>/refusal\n\
         echo \"@@doctor-status $?\"\n\
         grep -q '^{{' /doctor && echo \"@@doctor $(cat /doctor)\"\n\
         grep -q '^tcpwatch: ' /refusal && echo \"@@refusal $(grep '^tcpwatch: ' /refusal)\"\n"
    );
    if series::is_refused(series) {
        return script;
    }
    let ordinary = if wanted.full { usize::MAX } else { entries(SUITE).take_while(|line| *line != MORE).count() };
    let suite: Vec<&str> = if wanted.tests.is_empty() {
        entries(SUITE).take(ordinary).filter(|line| *line != MORE).collect()
    } else {
        wanted.tests.iter().map(String::as_str).collect()
    };
    let skipped: Vec<String> = expected(&series.name).map(|(name, _)| format!("--skip {name}")).collect();
    let skipped = skipped.join(" ");
    // What failed is tried once more: a guest is an order of magnitude slower than any host, and a peer that is late makes
    // another experiment of some tests. What passes only then is shown as such.
    let run = |names: &str| {
        let run = format!("{tests} --color never --test-threads 1 {skipped} 2>&1 | tee /said\n");
        format!(
            "export {TESTS_VAR}={names}\n{run}\
             failed=$(sed -n 's/^test \\([a-z0-9_]*\\) .*FAILED$/\\1/p' /said | tr '\\n' ',')\n\
             grep -q '^test result:' /said || echo '@@suite-died'\n\
             if [ -n \"$failed\" ]; then\necho '@@again'\nexport {TESTS_VAR}=${{failed%,}}\n{run}echo '@@again-over'\nfi\n"
        )
    };
    script += &run(&suite.join(","));
    for (name, why) in expected(&series.name) {
        // Writing to a string does not fail.
        let _ = writeln!(script, "echo 'test {name} ... ignored, {why}'");
    }
    if wanted.tests.is_empty() {
        // Where the functions are watched through trampolines, breakpoints must see the same.
        script += "if grep -q '\"hook\":\"fentry\"' /doctor; then\n\
                   echo '@@in kprobe'\nexport TCPWATCH_RESET_HOOK=kprobe\n";
        script += &run(&RESETS.join(","));
        script += "unset TCPWATCH_RESET_HOOK\necho '@@in'\nfi\n";
        // Last: what is locked down stays so.
        script += &run(FALLBACKS);
    }
    script
}

/// The lines of a list.
fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Tests that a series passes over, and why.
fn expected(series: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    entries(EXPECTED).filter_map(move |line| {
        let (of, rest) = line.split_once(' ')?;
        (of == series).then(|| rest.split_once(' '))?
    })
}

fn boot_all(
    queue: VecDeque<(Series, Kernel, PathBuf)>,
    accelerator: Accelerator,
    folder: &Path,
) -> Result<Vec<Outcome>> {
    let queue = Mutex::new(queue);
    let done = Mutex::new(Vec::new());
    let workers: Vec<Result<()>> = thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let next = queue.lock().map_or(None, |mut queue| queue.pop_front());
                let Some((series, kernel, image)) = next else { return Ok(()) };
                let outcome = boot(&series, &kernel, &image, accelerator, folder)?;
                if let Ok(mut done) = done.lock() {
                    done.push(outcome);
                }
            }
        };
        let threads: Vec<_> = (0..JOBS).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker has panicked"))))
            .collect()
    });
    workers.into_iter().collect::<Result<Vec<()>>>()?;
    done.into_inner().ok().context("a worker has panicked")
}

fn boot(series: &Series, kernel: &Kernel, image: &Path, accelerator: Accelerator, folder: &Path) -> Result<Outcome> {
    let began = Instant::now();
    let log = folder.join(format!("{}.log", kernel.release));
    let once = || -> Result<Outcome> {
        say!("kernel {series}: booting {}, console in {}", kernel.release, log.display());
        let mut listener = Listener::new(&series.name);
        let ended = guest::run(accelerator, &kernel.image()?, image, &log, |line| {
            if let Some(words) = listener.hear(line).filter(|words| !words.starts_with("doctor {")) {
                println!("[{series} {:4} s] {words}", began.elapsed().as_secs());
            }
        });
        let mut outcome = listener.finish();
        if let Err(error) = ended {
            outcome.trouble = Some(format!("{error:#}"));
        }
        Ok(outcome)
    };
    let mut outcome = once()?;
    // An emulator that does not come to the first word is no finding about tcpwatch.
    if let Some(trouble) = outcome.trouble.as_ref().filter(|_| outcome.release.is_empty()) {
        say!("kernel {series}: {trouble}; once more");
        outcome = once()?;
    }
    if outcome.release.is_empty() {
        outcome.release.clone_from(&kernel.release);
    }
    outcome.seconds = began.elapsed().as_secs();
    judge(&mut outcome, series::is_refused(series));
    Ok(outcome)
}

/// What the doctor says counts as a test: it takes part on every kernel.
fn judge(outcome: &mut Outcome, refused: bool) {
    let (name, right) = if refused {
        let said = outcome.refusal.contains("or newer is needed");
        ("the_kernel_is_refused_with_status_3_and_a_sentence", outcome.doctor_status == Some(3) && said)
    } else {
        let all =
            outcome.doctor["probes"].as_array().is_some_and(|probes| probes.iter().all(|p| p["state"] == "attached"));
        ("every_probe_is_attached", outcome.doctor_status == Some(0) && all)
    };
    outcome.tests.insert(name.to_owned(), if right { Verdict::Passed } else { Verdict::Failed });
}

fn table(outcomes: &[Outcome]) {
    println!("\n{:<8} {:<30} {:>6} {:>7} {:>7} {:>7}", "series", "kernel", "time", "passed", "failed", "skipped");
    for outcome in outcomes {
        let [passed, failed, skipped] = outcome.counts();
        let Outcome { series, release, seconds, .. } = outcome;
        println!("{series:<8} {release:<30} {seconds:>4} s {passed:>7} {failed:>7} {skipped:>7}");
        for name in outcome.failed() {
            println!("         FAILED {name}");
        }
        for name in &outcome.second_try {
            println!("         passed at the second try only: {name}");
        }
        if let Some(trouble) = &outcome.trouble {
            println!("         {trouble}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_no_comments() {
        assert!(entries(SUITE).count() > 20);
        assert!(entries(SUITE).all(|entry| !entry.contains(' ')));
        let wrong = entries(EXPECTED).find(|line| line.splitn(3, ' ').count() != 3);
        assert_eq!(wrong, None);
        for entry in MATRIX {
            assert!(expected(entry.name).all(|(_, why)| !why.contains('\'')));
        }
    }

    #[test]
    fn a_refused_kernel_only_meets_the_doctor() {
        let programs = Programs { tcpwatch: "/t/tcpwatch".into(), tests: "/t/kernel".into() };
        let wanted = Wanted { kernels: Vec::new(), full: false, tests: Vec::new() };
        let of = |name: &str| script(&name.parse().expect("a series"), &programs, &wanted);
        assert!(!of("5.10").contains("/t/kernel"));
        assert!(of("6.1").contains("TCPWATCH_TESTS=bytes_and_segments"));
        assert!(!of("6.1").contains("tick_mode") && !of("6.1").contains(",more"));
        let full = script(&"6.1".parse().expect("a series"), &programs, &Wanted { full: true, ..wanted });
        assert!(full.contains("tick_mode") && !full.contains(",more"));
    }

    #[test]
    fn the_doctor_is_judged() {
        let mut outcome = Outcome {
            doctor_status: Some(3),
            refusal: "tcpwatch: this kernel …: 5.15 or newer is needed".to_owned(),
            ..Outcome::default()
        };
        judge(&mut outcome, true);
        judge(&mut outcome, false);
        assert_eq!(outcome.counts(), [1, 1, 0]);
    }
}
