//! What the configuration wants to be run, or asked, when a storm begins or ends: one at a time, on a thread of its own,
//! for a limited time. What waits is bounded; what does not fit is dropped, counted and logged.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use caps::Capability;
use http_body_util::Full;
use hyper::client::conn::http1::handshake;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::config::Config;
use crate::{privileges, sys};

/// Storms that may wait for the hooks.
const WAITING: usize = 16;
/// Each of them is ended after this.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether a command has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Why the hooks cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// There is no such user.
    #[error("`storm_user` is \"{0}\", who is not in /etc/passwd; name a user that is, or give UID:GID")]
    User(String),
    /// The thread.
    #[error("cannot start the thread that runs `storm_command`: {0}")]
    Thread(io::Error),
}

/// One beginning or end of a storm.
pub(crate) struct Job {
    /// Variables of the environment.
    pub(crate) facts: Vec<(String, String)>,
    /// The same as JSON.
    pub(crate) body: String,
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
struct Plan {
    argv: Vec<String>,
    /// Whom to run it as; nobody else than we are when we are not root.
    user: Option<(u32, u32)>,
    webhook: Option<Uri>,
    patience: Duration,
}

/// Takes jobs and never waits.
pub(crate) struct Hook {
    queue: SyncSender<Job>,
    dropped: u64,
}

impl Hook {
    /// As the configuration wants it; `None` when it wants nothing.
    pub(crate) fn new(config: &Config) -> Result<Option<Self>, HookError> {
        let (argv, webhook) = (config.storm_command.clone(), config.storm_webhook.clone());
        if argv.is_empty() && webhook.is_none() {
            return Ok(None);
        }
        let root = rustix::process::geteuid().is_root();
        let user = if root && !argv.is_empty() { Some(user(&config.storm_user)?) } else { None };
        Self::start(Plan { argv, user, webhook, patience: PATIENCE }).map(Some)
    }

    fn start(plan: Plan) -> Result<Self, HookError> {
        let (queue, jobs) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("storm-hooks".to_owned());
        let thread = thread.spawn(move || {
            // To become somebody else, and to end what runs as that one.
            let wanted = [Capability::CAP_SETUID, Capability::CAP_SETGID, Capability::CAP_KILL];
            privileges::keep_only(if plan.user.is_some() { &wanted } else { &[] });
            work(&plan, &jobs);
        });
        thread.map_err(HookError::Thread)?;
        Ok(Self { queue, dropped: 0 })
    }

    /// Does what is wanted, some time soon.
    pub(crate) fn run(&mut self, job: Job) {
        if let Err(error) = self.queue.try_send(job) {
            self.dropped += 1;
            let why = match error {
                TrySendError::Full(_) => "those before it take too long",
                TrySendError::Disconnected(_) => "the thread that runs them has ended",
            };
            log::warn!("a storm is not told to `storm_command` and `storm_webhook`: {why}; {} so far", self.dropped);
        }
    }
}

/// Number of a user and of its group.
fn user(name: &str) -> Result<(u32, u32), HookError> {
    let refuse = || HookError::User(name.to_owned());
    if let Some((uid, gid)) = name.split_once(':') {
        return uid.parse().ok().zip(gid.parse().ok()).ok_or_else(refuse);
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    user_of(&users, name).ok_or_else(refuse)
}

fn user_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let mut fields = passwd.lines().map(|line| line.split(':')).find_map(|mut fields| {
        let found = fields.next() == Some(name);
        found.then_some(fields)
    })?;
    fields.next()?;
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn work(plan: &Plan, jobs: &Receiver<Job>) {
    for job in jobs {
        let Some(program) = plan.argv.first() else {
            ask(plan, job.body);
            continue;
        };
        match command(plan, &job) {
            Ok(status) if status.success() => log::debug!("`storm_command` {program} ended well"),
            Ok(status) => log::warn!("`storm_command` {program} ended with {status}"),
            Err(error) => log::warn!("`storm_command` {program} failed: {error}{}", hint(&error)),
        }
        ask(plan, job.body);
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; to run it as `storm_user`, the daemon needs CAP_SETUID and CAP_SETGID: add both to CapabilityBoundingSet"
        }
        io::ErrorKind::NotFound => "; give the whole path",
        _ => "",
    }
}

/// Runs the command without a shell, with no more rights than an ordinary user, and ends it when it takes too long.
fn command(plan: &Plan, job: &Job) -> io::Result<ExitStatus> {
    let (program, arguments) = plan.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/");
    command.envs(job.facts.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own, so that what it starts can be ended with it.
    command.process_group(0);
    if let Some((uid, gid)) = plan.user {
        command.gid(gid).uid(uid);
    }
    sys::confine(&mut command);
    let mut child = command.spawn()?;
    let deadline = Instant::now() + plan.patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            end(&mut child);
            return Err(io::Error::other(format!("it took longer than {:?} and was ended", plan.patience)));
        }
        std::thread::sleep(LOOK);
    }
}

fn end(child: &mut Child) {
    // Not waited for yet, so that the number is still its own.
    let group = rustix::process::Pid::from_child(child);
    if let Err(error) = rustix::process::kill_process_group(group, rustix::process::Signal::KILL) {
        log::warn!("cannot end `storm_command`: {error}");
    }
    if let Err(error) = child.wait() {
        log::warn!("cannot wait for `storm_command`: {error}");
    }
}

/// Posts the facts to the webhook.
fn ask(plan: &Plan, body: String) {
    let Some(address) = &plan.webhook else { return };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return log::warn!("`storm_webhook`: {error}"),
    };
    let answer = runtime.block_on(async { tokio::time::timeout(plan.patience, post(address, body)).await });
    match answer {
        Ok(Ok(())) => log::debug!("`storm_webhook` {address} took it"),
        Ok(Err(error)) => log::warn!("`storm_webhook` {address} failed: {error}"),
        Err(_) => log::warn!("`storm_webhook` {address} did not answer within {:?}", plan.patience),
    }
    // The look-up of a name may still wait for a server.
    runtime.shutdown_background();
}

async fn post(address: &Uri, body: String) -> anyhow::Result<()> {
    let authority = address.authority().ok_or_else(|| anyhow::anyhow!("it has no host"))?;
    let (host, port) = (authority.host(), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(address.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(Full::new(Bytes::from(body)))?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        anyhow::ensure!(answer.status().is_success(), "it answered {}", answer.status());
        Ok(())
    };
    tokio::select! {
        answer = answer => answer,
        broken = connection => anyhow::bail!("the connection ended: {broken:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::path::Path;

    fn job(body: &str) -> Job {
        Job { facts: vec![("TCPWATCH_STORM_ID".to_owned(), "a b$c".to_owned())], body: body.to_owned() }
    }

    fn plan(argv: &[&str]) -> Plan {
        Plan { argv: argv.iter().map(|&a| a.to_owned()).collect(), patience: PATIENCE, ..Plan::default() }
    }

    /// Runs a script of the shell, as the command that a user may well have, and returns what it wrote.
    fn script(plan: &Plan, text: &str) -> (io::Result<ExitStatus>, String) {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let out = folder.path().join("out");
        let out = out.to_str().unwrap();
        let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), format!("exec >{out}; {text}")];
        let status = command(&Plan { argv, ..plan.clone() }, &job(""));
        (status, std::fs::read_to_string(Path::new(out)).unwrap_or_default())
    }

    #[test]
    fn a_command_gets_the_facts_and_nothing_else() {
        let (status, told) = script(&plan(&[]), "env | sort | grep -v -e ^PWD= -e ^SHLVL= -e ^_=; ls /proc/self/fd");
        assert!(status.unwrap().success());
        let (environment, files) = told.split_at(told.find("\n0\n").unwrap());
        assert_eq!(environment, "PATH=/usr/local/bin:/usr/bin:/bin\nTCPWATCH_STORM_ID=a b$c");
        // Standard input, output and error, and what `ls` itself has open.
        assert_eq!(files.trim(), "0\n1\n2\n3");
    }

    #[test]
    fn a_command_of_root_has_no_privileges_left() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let nobody = Plan { user: Some((65534, 65534)), ..plan(&[]) };
        let (status, told) =
            script(&nobody, "grep -e ^Uid -e ^Gid -e ^Groups -e ^Cap.[rf] -e ^NoNew /proc/self/status");
        assert!(status.unwrap().success());
        let told = told.replace([' ', '\t'], "");
        for line in [
            "Uid:65534655346553465534",
            "Gid:65534655346553465534",
            "Groups:",
            "CapPrm:0000000000000000",
            "CapEff:0000000000000000",
            "NoNewPrivs:1",
        ] {
            assert!(told.lines().any(|told| told == line), "no {line} in {told}");
        }
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_what_it_started() {
        let hasty = Plan { patience: Duration::from_millis(200), ..plan(&[]) };
        let began = Instant::now();
        let (status, told) = script(&hasty, "sleep 1000 & echo $!; wait");
        assert!(status.unwrap_err().to_string().contains("longer than 200ms"));
        assert!(began.elapsed() < Duration::from_secs(60));
        let started = Path::new("/proc").join(told.trim());
        let deadline = Instant::now() + Duration::from_secs(20);
        // Nobody may have waited for it yet.
        while std::fs::read_to_string(started.join("stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "{} is still there", started.display());
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
        // It waits until somebody writes.
        let mut hook = Hook::start(plan(&["/bin/cat", fifo.to_str().unwrap()])).unwrap();
        for _ in 0..WAITING + 10 {
            hook.run(job(""));
        }
        assert!((9..=10).contains(&hook.dropped), "{}", hook.dropped);
        drop(std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap());
    }

    #[test]
    fn the_webhook_gets_json() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/storm?x=1", listener.local_addr().unwrap());
        let plan = Plan { webhook: Some(address.parse().unwrap()), ..plan(&[]) };
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            while !request.ends_with("{\"a\":1}") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0].into());
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            request
        });
        ask(&plan, "{\"a\":1}".to_owned());
        let request = server.join().unwrap();
        assert!(request.starts_with("POST /storm?x=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.to_ascii_lowercase().contains("\r\ncontent-type: application/json\r\n"), "{request}");
    }

    #[test]
    fn users_are_found_by_name_or_given_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nno:x:7\nalerts:x:990:980::/:/bin/false\n";
        assert_eq!(user_of(passwd, "alerts"), Some((990, 980)));
        assert_eq!(user_of(passwd, "no"), None);
        assert_eq!(user("12:34").unwrap(), (12, 34));
        assert!(user("12:x").unwrap_err().to_string().contains("UID:GID"));
    }
}
