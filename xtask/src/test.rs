//! `cargo xtask test`: everything CI runs, step by step, with one count at the end.

use std::{
    env,
    io::{self, Read, Write as _},
    ops::AddAssign,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    bench, dist, dist_test, docs, fuzz, lint,
    process::{as_root, cargo, cargo_runs_as_root, root, say, show, succeed, target_dir},
    prometheus, setup, vm,
};

/// Lint, check the docs, run the unit tests and the suites on the real kernel
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only a part of it, or more than usual
    what: Option<What>,
    /// Let kernel tests pass over what this machine or kernel cannot do, instead of failing
    #[arg(long)]
    allow_skips: bool,
    /// With vm: only these series, such as 6.12, 6.18+ or 7.x
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<vm::Series>,
    /// Arguments of the test programs, a filter say; with vm, beginnings of the names of tests
    #[arg(last = true, value_name = "ARGS")]
    filter: Vec<String>,
}

/// Where cargo looks for the test target `kernel`.
const KERNEL_SUITE: [&str; 2] = ["tcpwatch/tests/kernel/main.rs", "tcpwatch/tests/kernel.rs"];

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Only the tests that need neither root nor a kernel
    Unit,
    /// Only the suites on the real kernel
    Kernel,
    /// Everything, and the kernel suites with their long cases
    Full,
    /// Only the suite on other kernels, in emulated machines
    Vm,
}

/// What the "test result:" lines of test programs add up to.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

struct Step {
    name: &'static str,
    took: Duration,
    count: Count,
    failed: bool,
}

struct Run {
    began: Instant,
    steps: Vec<Step>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let mut run = Run { began: Instant::now(), steps: Vec::new() };
    run.all(args);
    run.summary();
    if run.steps.iter().any(|step| step.failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Run {
    fn all(&mut self, args: &Args) {
        if args.what == Some(What::Vm) {
            if self.step("setup", || setup::ensure_all(false).map(|()| Count::default())) {
                self.guests(args);
            }
            return;
        }
        let unit = args.what != Some(What::Kernel);
        let kernel = args.what != Some(What::Unit);
        let checks = unit && kernel;
        if !self.step("setup", || setup::ensure_all(false).map(|()| Count::default())) {
            return;
        }
        if checks {
            self.step("lint", || lint::run().map(|()| Count::default()));
            self.step("docs", || docs::pages(true).map(|()| Count::default()));
        }
        if checks {
            self.step("the unit file", || dist_test::verify().map(|()| Count::default()));
        }
        if unit {
            self.step("unit tests", || unit_tests(&args.filter));
        }
        if kernel {
            self.step("lab on the kernel", || kernel_tests(&["tcpwatch-lab"], args));
            if KERNEL_SUITE.iter().any(|path| root().is_ok_and(|root| root.join(path).is_file())) {
                self.step("tcpwatch on the kernel", || kernel_tests(&["tcpwatch", "--test", "kernel"], args));
            }
            if checks && args.filter.is_empty() {
                self.step("benchmarks (smoke)", || Ok(Count { passed: bench::smoke()?, ..Count::default() }));
            }
        }
        if checks {
            self.guests(args);
        }
        if args.what == Some(What::Full) {
            self.packages();
            self.step("fuzz targets", || Ok(Count { passed: fuzz::all()?, ..Count::default() }));
        } else if checks {
            self.step("the package", || package().map(|()| Count { passed: 1, ..Count::default() }));
        }
    }

    /// The suite on other kernels: three of them in the ordinary run, the whole matrix otherwise.
    fn guests(&mut self, args: &Args) {
        let alone = args.what == Some(What::Vm);
        let wanted = vm::Wanted {
            kernels: args.kernel.clone(),
            full: args.what.is_some(),
            tests: if alone { args.filter.clone() } else { Vec::new() },
        };
        self.step("other kernels", || {
            let [passed, failed, skipped] = vm::run(&wanted)?;
            Ok(Count { passed, failed, skipped })
        });
    }

    /// The packages: the same bytes twice, and all that may happen to them.
    fn packages(&mut self) {
        self.step("packages", || {
            dist::twice()?;
            Ok(Count { passed: 1, ..Count::default() })
        });
    }

    /// Runs a step, and the ones after it whatever becomes of it: one run shall tell all that is wrong.
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<Count>) -> bool {
        say!("[{}] {name}", show_time(self.began.elapsed()));
        let began = Instant::now();
        let done = work();
        // A step that fails without a test that failed, as a lint does, counts as one failure.
        let (count, failed) = match done {
            Ok(count) => (count, count.failed > 0),
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                (Count { failed: 1, ..Count::default() }, true)
            }
        };
        self.steps.push(Step { name, took: began.elapsed(), count, failed });
        !failed
    }

    fn summary(&self) {
        println!("\n{:<24} {:>7} {:>7} {:>7} {:>7}", "step", "time", "passed", "failed", "skipped");
        let mut total = Count::default();
        for Step { name, took, count, failed } in &self.steps {
            let Count { passed, failed: failures, skipped } = count;
            let verdict = if *failed { "  FAILED" } else { "" };
            println!("{name:<24} {:>7} {passed:>7} {failures:>7} {skipped:>7}{verdict}", show_time(*took));
            total += *count;
        }
        println!("{:<24} {:>7}", "all", show_time(self.began.elapsed()));
        println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    }
}

/// The Debian package of the program that the suites ran, and all that may happen to it in a clean root, about half a
/// minute. Its time is of no interest, so that there need not be a repository.
fn package() -> Result<()> {
    let xtask = env::current_exe().context("where is this xtask?")?;
    let program = target_dir()?.join("release/tcpwatch");
    let (xtask, program) = xtask.to_str().zip(program.to_str()).context("a path is not UTF-8")?;
    succeed(&mut as_root(&["env", "SOURCE_DATE_EPOCH=0", xtask, "dist", "--binary", program, "--test"])?)
}

fn unit_tests(filter: &[String]) -> Result<Count> {
    let mut command = cargo()?;
    command.args(["test", "--no-fail-fast", "--workspace"]);
    // The former is for another target, the latter for root.
    command.args(["--exclude", "tcpwatch-ebpf", "--exclude", "tcpwatch-lab", "--"]).args(filter);
    counted(&mut command)
}

fn kernel_tests(package: &[&str], args: &Args) -> Result<Count> {
    let mut command = cargo()?;
    command.args(["test", "--no-fail-fast", "--release"]).args(cargo_runs_as_root()?);
    command.arg("--package").args(package).arg("--").args(&args.filter);
    if let Some(folder) = prometheus::find() {
        command.env(prometheus::FOLDER_VAR, folder);
    }
    if !args.allow_skips {
        command.env("TCPWATCH_FORBID_SKIPS", "1");
    }
    if args.what == Some(What::Full) {
        command.env("TCPWATCH_TEST_FULL", "1");
    }
    counted(&mut command)
}

/// Runs tests with their output passed through, and counts what it says.
fn counted(command: &mut Command) -> Result<Count> {
    say!("{}", show(command));
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", show(command)))?;
    let mut counter = Counter::default();
    if let Some(mut output) = child.stdout.take() {
        let mut chunk = [0; 4096];
        loop {
            let length = output.read(&mut chunk).context("reading what the tests print")?;
            if length == 0 {
                break;
            }
            let mut stdout = io::stdout().lock();
            stdout.write_all(&chunk[..length]).and_then(|()| stdout.flush()).context("passing on their output")?;
            counter.push(&chunk[..length]);
        }
    }
    let status = child.wait().context("waiting for the tests")?;
    let mut count = counter.finish();
    if !status.success() && count.failed == 0 {
        // Not compiled, or ended before it could say what became of it.
        eprintln!("error: {}: {status}", show(command));
        count.failed = 1;
    }
    Ok(count)
}

/// Cuts output into lines and adds up those that tell results.
#[derive(Default)]
struct Counter {
    line: Vec<u8>,
    count: Count,
}

impl Counter {
    fn push(&mut self, chunk: &[u8]) {
        for &byte in chunk {
            if byte == b'\n' {
                self.end_line();
            } else {
                self.line.push(byte);
            }
        }
    }

    fn end_line(&mut self) {
        if let Some(count) = parse_result(&String::from_utf8_lossy(&self.line)) {
            self.count += count;
        }
        self.line.clear();
    }

    fn finish(mut self) -> Count {
        self.end_line();
        self.count
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`
fn parse_result(line: &str) -> Option<Count> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |what: &str| {
        numbers.split("; ").find_map(|part| part.split_once(' ').filter(|(_, name)| *name == what)?.0.parse().ok())
    };
    Some(Count { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

fn show_time(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_add_up() {
        let mut counter = Counter::default();
        let text = "running 2 tests\ntest a ... ok\n\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test b ... FAILED\n\
            test result: FAILED. 1 passed; 2 failed; 3 ignored; 0 measured; 7 filtered out; finished in 1.25s";
        // However it is cut.
        for chunk in text.as_bytes().chunks(7) {
            counter.push(chunk);
        }
        assert_eq!(counter.finish(), Count { passed: 3, failed: 2, skipped: 3 });
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(parse_result("test result: unknown"), None);
        assert_eq!(parse_result("  test result: ok. 2 passed; 0 failed; 0 ignored"), None);
        assert_eq!(parse_result("3 passed; 0 failed; 0 ignored"), None);
    }

    #[test]
    fn a_step_that_fails_counts_once() {
        let mut run = Run { began: Instant::now(), steps: Vec::new() };
        assert!(run.step("a", || Ok(Count { passed: 2, ..Count::default() })));
        assert!(!run.step("b", || anyhow::bail!("no")));
        assert!(!run.step("c", || Ok(Count { failed: 3, ..Count::default() })));
        let failures: Vec<_> = run.steps.iter().map(|step| step.count.failed).collect();
        assert_eq!(failures, [0, 1, 3]);
    }

    #[test]
    fn times_are_minutes_and_seconds() {
        assert_eq!(show_time(Duration::from_secs(61)), "1:01");
        assert_eq!(show_time(Duration::from_secs(3600)), "60:00");
    }
}
