//! The lab's own tests, against the running kernel. They need root and the tun driver; without them each is
//! reported as ignored with the reason (`TCPWATCH_FORBID_SKIPS=1` makes that a failure).

mod namespaces;
mod relay;
mod scenarios;
mod ticket;
mod traffic;

use std::process::ExitCode;

use tcpwatch_lab::harness;

fn main() -> ExitCode {
    if let Some(outcome) = namespaces::be_victim() {
        return outcome.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    harness::run(
        [namespaces::trials(), relay::trials(), traffic::trials(), scenarios::trials()].into_iter().flatten().collect(),
    )
}
