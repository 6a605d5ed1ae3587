//! Packet filter rules inside a namespace, by the `nft` command of the package nftables.
//!
//! For tests that need the kernel itself to lose packets (as a firewall does) where the relay is no choice: on a
//! loopback interface. On a [`crate::Path`] the relay's rules are exact and recorded, and need no tool.

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail};

use crate::netns::Netns;

impl Netns {
    /// Runs an nftables script in the namespace, as `nft -f -`, and returns what it prints.
    ///
    /// # Errors
    /// When nft is not installed, with the package's name; when it refuses the script, with what it says.
    pub fn nft(&self, script: &str) -> Result<String> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow!("the command nft is not installed: install the package nftables"),
            _ => anyhow!(error).context("cannot start nft"),
        })?;
        let written = match child.stdin.take() {
            Some(mut stdin) => stdin.write_all(script.as_bytes()),
            None => Ok(()),
        };
        let output = child.wait_with_output().context("cannot wait for nft")?;
        if !output.status.success() {
            bail!("nft refused the script ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        // Only now: what nft says is worth more than the broken pipe that its refusal leaves.
        written.context("cannot write the script to nft")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Drops packets that come into the namespace and match an nftables expression
    /// (`tcp dport 80 tcp flags & (syn|ack) == syn`).
    ///
    /// # Errors
    /// As [`Netns::nft`].
    pub fn drop_input(&self, expression: &str, which: Share) -> Result<InputDrop> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let table = format!("tcpwatch_lab_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let which = match which {
            Share::All => String::new(),
            // A bucket that is full at first and is hardly refilled: it lets exactly its burst match.
            Share::First(count) => format!("limit rate 1/day burst {count} packets"),
            Share::EveryNth(n) => format!("numgen inc mod {n} == 0"),
        };
        self.nft(&format!(
            "table inet {table} {{
                counter dropped {{ }}
                chain input {{
                    type filter hook input priority filter; policy accept;
                    {expression} {which} counter name dropped drop
                }}
            }}"
        ))
        .with_context(|| format!("cannot drop packets that match '{expression}'"))?;
        Ok(InputDrop { netns: self.clone(), table })
    }
}

/// Why [`Netns::nft`] cannot work here; `None` when it can. For [`crate::harness::trial_unless`].
pub fn obstacle() -> Option<String> {
    let tried = Command::new("nft").arg("--version").stdout(Stdio::null()).status();
    tried.err().map(|error| format!("the command nft cannot be run ({error}): install the package nftables"))
}

/// Which of the packets that match are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// All of them.
    All,
    /// The first so many.
    First(u32),
    /// The first and then every so many-th.
    EveryNth(u32),
}

/// A rule that drops incoming packets. Dropping the handle leaves the rule, which goes with the namespace.
#[derive(Debug)]
pub struct InputDrop {
    netns: Netns,
    table: String,
}

impl InputDrop {
    /// How many packets the rule has dropped.
    ///
    /// # Errors
    /// As [`Netns::nft`].
    pub fn dropped(&self) -> Result<u64> {
        let text = self.netns.nft(&format!("list counter inet {} dropped", self.table))?;
        packets(&text).with_context(|| format!("cannot find the packets in what nft lists: {text}"))
    }

    /// Removes the rule.
    ///
    /// # Errors
    /// As [`Netns::nft`].
    pub fn remove(self) -> Result<()> {
        self.netns.nft(&format!("delete table inet {}", self.table)).map(drop)
    }
}

/// The number after the word `packets`.
fn packets(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_of_a_listing_is_read() {
        let text = "table inet t {\n\tcounter dropped {\n\t\tpackets 12 bytes 720\n\t}\n}\n";
        assert_eq!(packets(text), Some(12));
        assert_eq!(packets("table inet t { }"), None);
    }
}
