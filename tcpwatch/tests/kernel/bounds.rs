//! The bounds that deploy/tcpwatch.service sets, with control groups as systemd makes them: what the daemon and its maps
//! take with as many connections as it keeps, and what becomes of it when they are far too narrow.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use tcpwatch_lab::Netns;

use crate::actor::Actor;
use crate::daemon::{Daemon, Metrics};
use crate::service::{as_the_unit_does, unit};
use crate::{is_long, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("bounds_of_the_unit_hold_and_count_what_the_kernel_keeps", held),
        trial("too_little_memory_ends_it_and_leaves_nothing_behind", too_little),
        trial("with_hardly_any_processor_time_the_totals_are_right", slowed),
    ]
}

const MIB: u64 = 1 << 20;
/// Connections, each with both ends here: what one process has descriptors for, and all that the table holds, for the long run.
const MANY: usize = 9_500;
const ALL: usize = 49_900;
/// What docs/INSTALL.md states for them: the daemon, its maps, and what the kernel keeps for each end.
const STATED: u64 = 200 * MIB;
const LOST: &str = "tcpwatch_events_lost_total";
const TABLE: &str = "tcpwatch_table_entries";
const OPENED: &str = "tcpwatch_connections_opened_total";

/// A control group for memory and one for time, or one for both, which go with the value.
struct Group {
    memory: PathBuf,
    cpu: PathBuf,
    /// One hierarchy for each controller, with files of other names.
    old: bool,
    mounted: Option<tempfile::TempDir>,
}

impl Group {
    /// As the unit sets them.
    fn of_unit() -> Result<Self> {
        let word = |key: &str| unit(key).first().copied().with_context(|| format!("the unit has no {key}"));
        let memory = word("MemoryMax")?.strip_suffix('M').context("MemoryMax is in MiB")?.parse::<u64>()? * MIB;
        let percent = word("CPUQuota")?.strip_suffix('%').context("CPUQuota is in percent")?.parse()?;
        let group = Self::new()?;
        group.limit_memory(memory)?;
        group.limit_time(percent)?;
        Ok(group)
    }

    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let find = |kind: &str, option: &str| {
            let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let line = fields.find(|line| line.len() > 3 && line[2] == kind && line[3].split(',').any(|o| o == option));
            line.map(|line| PathBuf::from(line[1]))
        };
        let name = format!("tcpwatch-test-{}", std::process::id());
        let group = if let (Some(memory), Some(cpu)) = (find("cgroup", "memory"), find("cgroup", "cpu")) {
            Self { memory: memory.join(&name), cpu: cpu.join(&name), old: true, mounted: None }
        } else {
            let (root, mounted) = if let Some(root) = find("cgroup2", "rw") {
                (root, None)
            } else {
                let folder = tempfile::tempdir()?;
                let done = Command::new("mount").args(["-t", "cgroup2", "none"]).arg(folder.path()).status()?;
                ensure!(done.success(), "there are no control groups");
                (folder.path().to_owned(), Some(folder))
            };
            fs::write(root.join("cgroup.subtree_control"), "+memory +cpu").context("cannot hand out memory and cpu")?;
            Self { memory: root.join(&name), cpu: root.join(&name), old: false, mounted }
        };
        for folder in [&group.memory, &group.cpu] {
            if !folder.exists() {
                fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            }
        }
        Ok(group)
    }

    fn limit_memory(&self, bytes: u64) -> Result<()> {
        let name = if self.old { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(self.memory.join(name), bytes.to_string()).with_context(|| format!("{name} = {bytes}"))
    }

    /// Percent of one processor.
    fn limit_time(&self, percent: u64) -> Result<()> {
        let (quota, period) = (percent * 1_000, 100_000);
        if self.old {
            fs::write(self.cpu.join("cpu.cfs_period_us"), period.to_string())?;
            Ok(fs::write(self.cpu.join("cpu.cfs_quota_us"), quota.to_string())?)
        } else {
            Ok(fs::write(self.cpu.join("cpu.max"), format!("{quota} {period}"))?)
        }
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.memory.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Memory now, the files that were read included.
    fn now(&self) -> Result<u64> {
        Ok(self.read(if self.old { "memory.usage_in_bytes" } else { "memory.current" })?.trim().parse()?)
    }

    /// The most it ever was.
    fn peak(&self) -> Result<u64> {
        Ok(self.read(if self.old { "memory.max_usage_in_bytes" } else { "memory.peak" })?.trim().parse()?)
    }

    /// What the kernel keeps for it: maps, programs, the state of connections.
    fn kernel(&self) -> Result<u64> {
        if self.old {
            return Ok(self.read("memory.kmem.usage_in_bytes")?.trim().parse()?);
        }
        let stat = self.read("memory.stat")?;
        let line = stat.lines().find_map(|line| line.strip_prefix("kernel "));
        Ok(line.context("memory.stat has no line of the kernel")?.trim().parse()?)
    }

    /// How often it was stopped because its time was used up.
    fn throttled(&self) -> Result<u64> {
        let stat = fs::read_to_string(self.cpu.join("cpu.stat"))?;
        let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        Ok(line.context("cpu.stat has no nr_throttled")?.trim().parse()?)
    }

    /// Waits until all that the kernel kept is gone: maps are freed some time after their last user.
    fn wait_empty(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let left = self.kernel()?;
            if left < MIB / 4 {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{left} bytes of kernel memory are left behind");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The daemon in this group, with the rights of the unit.
    fn daemon(&self, folder: tempfile::TempDir) -> Result<Daemon> {
        Daemon::through(&self.words(folder.path())?, folder, &[], "", |_| {})
    }

    fn words(&self, folder: &Path) -> Result<Vec<String>> {
        let script =
            "for group in \"$1\" \"$2\"; do echo $$ > \"$group/cgroup.procs\" || exit 99; done; shift 2; exec \"$@\"";
        let mut words = ["sh", "-c", script, "sh"].map(str::to_owned).to_vec();
        words.extend([&self.memory, &self.cpu].map(|path| path.to_string_lossy().into_owned()));
        words.extend(as_the_unit_does(folder, None)?);
        Ok(words)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The last process may be on its way out.
        let until = Instant::now() + Duration::from_secs(5);
        for folder in [&self.memory, &self.cpu] {
            while folder.exists() && fs::remove_dir(folder).is_err() && Instant::now() < until {
                thread::sleep(Duration::from_millis(20));
            }
        }
        if let Some(folder) = &self.mounted {
            let _left_to_the_machine = Command::new("umount").arg(folder.path()).status();
        }
    }
}

/// A namespace with connections in it. They are held by processes of their own, so that none needs more descriptors than one
/// has without asking.
struct Crowd {
    _ns: Netns,
    holders: Vec<Actor>,
    connections: usize,
}

impl Crowd {
    fn of(connections: usize) -> Result<Self> {
        let ns = Netns::new()?;
        let mut holders = Vec::new();
        let mut left = connections;
        while left > 0 {
            let holder = Actor::start(&ns, None)?;
            // At a time what is made well within the patience for one answer.
            for _ in 0..10 {
                let some = left.min(MANY / 10);
                holder.tell(&format!("crowd {some}"))?;
                left -= some;
            }
            holders.push(holder);
        }
        Ok(Self { _ns: ns, holders, connections })
    }

    fn ends(&self) -> i64 {
        2 * self.connections as i64
    }

    /// All are reset.
    fn disperse(&self) -> Result<()> {
        self.holders.iter().try_for_each(|holder| holder.tell("disperse").map(drop))
    }
}

fn lost(metrics: &Metrics, place: &str) -> i64 {
    metrics.count(LOST, &[&format!("where=\"{place}\"")])
}

fn held() -> Result<()> {
    let group = Group::of_unit()?;
    let daemon = group.daemon(tempfile::tempdir()?)?;
    let began = Instant::now();
    let first = daemon.metrics()?;
    let (start, kernel) = (group.peak()?, group.kernel()?);
    let maps = first.count("tcpwatch_map_memory_bytes", &[]) as u64;
    ensure!(kernel >= maps && maps > MIB, "maps of {maps} bytes, and {kernel} bytes charged to the unit");
    let before = first.count(TABLE, &[]);
    let crowd = Crowd::of(if is_long() { ALL } else { MANY })?;
    // They may come faster than their records can be read: what is lost is told.
    let last = daemon.wait("all of them", |metrics| {
        metrics.count(OPENED, &[]) - first.count(OPENED, &[]) >= crowd.ends()
            && metrics.count(TABLE, &[]) + lost(metrics, "ring") >= before + crowd.ends()
    })?;
    let each = (group.kernel()? - kernel) / crowd.ends() as u64;
    // A slab of 512 bytes, and what the kernel keeps once for each socket that has state.
    ensure!((512..900).contains(&each), "{each} bytes of the kernel for each connection are charged to the unit");
    for place in ["storage", "map", "table"] {
        ensure!(lost(&last, place) == 0, "lost: {place}\n{last}");
    }
    let cpu = |metrics: &Metrics| metrics.sum("process_cpu_seconds_total", &[]);
    let (used, took) = (cpu(&last) - cpu(&first), began.elapsed().as_secs_f64());
    // A period more than the share may be at either end.
    ensure!(used <= 0.5 * took + 0.2, "{used} s of processor time in {took} s");
    let peak = group.peak()?;
    println!(
        "{} ends: at most {:.1} MiB, {:.1} at the start; the kernel's part {:.1}, maps {:.1}; {each} bytes for each end; \
         resident {:.1}; {used:.1} s of processor time in {took:.1}, throttled {} times",
        crowd.ends(),
        mib(peak),
        mib(start),
        mib(group.kernel()?),
        mib(maps),
        mib(daemon.resident_bytes()?),
        group.throttled()?,
    );
    ensure!(peak < STATED, "{} MiB with {} connections", mib(peak), crowd.ends());
    let (status, said) = daemon.stop()?;
    ensure!(status.success(), "{status}: {said}");
    // Their sockets are there, and no state of ours in them.
    group.wait_empty()?;
    drop(crowd);
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

fn too_little() -> Result<()> {
    const PLENTY: u64 = 512 * MIB;
    let group = Group::of_unit()?;
    group.limit_memory(PLENTY)?;
    let daemon = group.daemon(tempfile::tempdir()?)?;
    let before = daemon.metrics()?.count(TABLE, &[]);
    // Enough for what it has, and not for so many connections. What was read from files is given back first.
    let enough = daemon.resident_bytes()? + group.kernel()? + 2 * MIB;
    group.limit_memory(enough)?;
    let crowd = Crowd::of(MANY)?;
    let by_kernel = ended_within(&daemon, Duration::from_secs(30))?;
    ensure!(group.now()? <= enough, "{} of {enough} bytes", group.now()?);
    if !by_kernel {
        // It is kept busy with reading its own pages again. That is what the unit's watchdog is for.
        let pid = rustix::process::Pid::from_raw(daemon.pid() as i32).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    }
    let (status, said, folder) = daemon.ended()?;
    println!("{} MiB: ended by {}: {status}", mib(enough), if by_kernel { "the kernel" } else { "the watchdog" });
    ensure!(status.signal() == Some(9) && !said.contains("panicked"), "{status}: {said}");
    group.wait_empty()?;
    // systemd starts it anew; with room again it finds all of them, and what the one before left is no hindrance.
    group.limit_memory(PLENTY)?;
    let daemon = group.daemon(folder)?;
    let found = daemon.wait("all of them", |metrics| metrics.count(TABLE, &[]) >= before + crowd.ends())?;
    ensure!(lost(&found, "storage") == 0, "{found}");
    let (status, said) = daemon.stop()?;
    ensure!(status.success(), "{status}: {said}");
    group.wait_empty()
}

/// Whether it ends by itself.
fn ended_within(daemon: &Daemon, patience: Duration) -> Result<bool> {
    let until = Instant::now() + patience;
    while Instant::now() < until {
        // Nobody has asked for its status yet.
        if fs::read_to_string(format!("/proc/{}/stat", daemon.pid()))?.contains(") Z ") {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(false)
}

/// A hundredth of the unit's share: what it cannot read in time is lost as detail, and counted.
fn slowed() -> Result<()> {
    let group = Group::of_unit()?;
    let daemon = group.daemon(tempfile::tempdir()?)?;
    group.limit_time(1)?;
    let before = daemon.metrics()?;
    let crowd = Crowd::of(2_000)?;
    let all = crowd.ends();
    crowd.disperse()?;
    let throttled = group.throttled()?;
    group.limit_time(50)?;
    let more = |metrics: &Metrics| metrics.count(OPENED, &[]) - before.count(OPENED, &[]);
    let metrics = daemon.wait("all opens", |metrics| more(metrics) >= all)?;
    ensure!(throttled > 0, "it had time enough");
    let resets = "tcpwatch_resets_sent_total";
    let resets = metrics.count(resets, &[]) - before.count(resets, &[]);
    ensure!(resets >= all / 2, "{resets} of {} resets\n{metrics}", all / 2);
    let (status, said) = daemon.stop()?;
    ensure!(status.success(), "{status}: {said}");
    group.wait_empty()
}
