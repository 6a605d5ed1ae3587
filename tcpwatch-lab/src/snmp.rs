//! The kernel's own counters of a namespace: what tests compare tcpwatch's numbers against.
//!
//! `/proc/net/snmp` (group `Tcp`: `RetransSegs`, `OutRsts`, `ActiveOpens`, ...), `/proc/net/netstat` (group
//! `TcpExt`: `TCPTimeouts`, `TCPAbortOnData`, ...) and, apart, `/proc/net/sockstat`, by the kernel's names.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, anyhow, bail};

use crate::netns::{Netns, read_own_proc};

/// A reading of named counters in groups, or the difference of two readings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    groups: BTreeMap<String, BTreeMap<String, i64>>,
}

impl Counters {
    /// The value of one counter: `get("Tcp", "OutRsts")`. In a difference it can be negative, as gauges
    /// (`CurrEstab`) go down.
    ///
    /// # Errors
    /// When this kernel has no such counter: a test that misspells a name must not read a zero.
    pub fn get(&self, group: &str, name: &str) -> Result<i64> {
        let members = self.groups.get(group).ok_or_else(|| {
            let known: Vec<&str> = self.groups.keys().map(String::as_str).collect();
            anyhow!("there is no group {group} of counters here; there are: {}", known.join(", "))
        })?;
        members.get(name).copied().ok_or_else(|| anyhow!("this kernel has no counter {group}.{name}"))
    }

    /// What happened between `before` and this reading: each counter's increase.
    #[must_use]
    pub fn delta(&self, before: &Self) -> Self {
        let groups = self.groups.iter().map(|(group, members)| {
            let old = before.groups.get(group);
            let members = members.iter().map(|(name, value)| {
                let was = old.and_then(|old| old.get(name)).copied().unwrap_or(0);
                // The kernel's counters are unsigned and wrap.
                (name.clone(), value.wrapping_sub(was))
            });
            (group.clone(), members.collect())
        });
        Self { groups: groups.collect() }
    }

    /// The counters that are not zero, as group, name and value.
    pub fn nonzero(&self) -> impl Iterator<Item = (&str, &str, i64)> {
        self.groups.iter().flat_map(|(group, members)| {
            let moved = members.iter().filter(|(_, value)| **value != 0);
            moved.map(move |(name, value)| (group.as_str(), name.as_str(), *value))
        })
    }

    /// Reads lines in pairs, names then values, each begun by the group: the format of snmp and netstat.
    fn add_pairs(&mut self, text: &str) -> Result<()> {
        let mut lines = text.lines();
        while let Some(names) = lines.next() {
            let values = lines.next().with_context(|| format!("'{names}' has no line of values"))?;
            let (group, names) = names.split_once(':').with_context(|| format!("'{names}' has no group"))?;
            let (same, values) = values.split_once(':').with_context(|| format!("'{values}' has no group"))?;
            if group != same {
                bail!("the names of {group} are followed by the values of {same}");
            }
            let members = self.groups.entry(group.to_owned()).or_default();
            for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
                members.insert(name.to_owned(), number(value)?);
            }
        }
        Ok(())
    }

    /// Reads lines of a group and its names and values in turn: the format of sockstat.
    fn add_lists(&mut self, text: &str) -> Result<()> {
        for line in text.lines() {
            let (group, list) = line.split_once(':').with_context(|| format!("'{line}' has no group"))?;
            let members = self.groups.entry(group.to_owned()).or_default();
            let mut words = list.split_whitespace();
            while let (Some(name), Some(value)) = (words.next(), words.next()) {
                members.insert(name.to_owned(), number(value)?);
            }
        }
        Ok(())
    }
}

/// A counter as the kernel prints it: mostly unsigned, `MaxConn` is -1.
fn number(text: &str) -> Result<i64> {
    text.parse::<i64>()
        .or_else(|_| text.parse::<u64>().map(|value| value as i64))
        .with_context(|| format!("the counter value '{text}' is not a number"))
}

/// One line for each counter that is not zero.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (group, name, value) in self.nonzero() {
            writeln!(f, "{group}.{name} {value}")?;
        }
        Ok(())
    }
}

impl Netns {
    /// The counters of `/proc/net/snmp` and `/proc/net/netstat` in the namespace now.
    ///
    /// # Errors
    /// When the files cannot be read or are in another format.
    pub fn counters(&self) -> Result<Counters> {
        self.try_run(|| {
            let mut counters = Counters::default();
            for file in ["snmp", "netstat"] {
                counters.add_pairs(&read_own_proc(file)?).with_context(|| format!("cannot read /proc/net/{file}"))?;
            }
            Ok(counters)
        })?
    }

    /// The counters of `/proc/net/sockstat` and `sockstat6`: `get("TCP", "inuse")`, `"tw"`.
    ///
    /// In the kernel `TCP inuse` and `tw` are the namespace's, while `orphan`, `alloc` and `mem` are the whole
    /// machine's.
    ///
    /// # Errors
    /// When the files cannot be read or are in another format.
    pub fn sockstat(&self) -> Result<Counters> {
        self.try_run(|| {
            let mut counters = Counters::default();
            for file in ["sockstat", "sockstat6"] {
                counters.add_lists(&read_own_proc(file)?).with_context(|| format!("cannot read /proc/net/{file}"))?;
            }
            Ok(counters)
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNMP: &str = "Tcp: MaxConn RetransSegs OutRsts\nTcp: -1 7 18446744073709551615\nUdp: InDatagrams\nUdp: 3\n";

    fn snmp(text: &str) -> Counters {
        let mut counters = Counters::default();
        counters.add_pairs(text).unwrap();
        counters
    }

    #[test]
    fn counters_are_found_by_group_and_name() {
        let counters = snmp(SNMP);
        assert_eq!(counters.get("Tcp", "RetransSegs").unwrap(), 7);
        assert_eq!(counters.get("Tcp", "MaxConn").unwrap(), -1);
        assert_eq!(counters.get("Udp", "InDatagrams").unwrap(), 3);
    }

    #[test]
    fn a_misspelt_name_is_an_error() {
        let counters = snmp(SNMP);
        assert!(counters.get("Tcp", "OutRst").unwrap_err().to_string().contains("Tcp.OutRst"));
        assert!(counters.get("TCP", "OutRsts").unwrap_err().to_string().contains("Tcp, Udp"));
    }

    #[test]
    fn a_difference_survives_wrapping() {
        let after = snmp("Tcp: MaxConn RetransSegs OutRsts\nTcp: -1 9 2\n");
        let delta = after.delta(&snmp(SNMP));
        assert_eq!(delta.get("Tcp", "RetransSegs").unwrap(), 2);
        assert_eq!(delta.get("Tcp", "OutRsts").unwrap(), 3);
        assert_eq!(delta.to_string(), "Tcp.OutRsts 3\nTcp.RetransSegs 2\n");
    }

    #[test]
    fn sockstat_lists_are_read() {
        let mut counters = Counters::default();
        counters.add_lists("sockets: used 10\nTCP: inuse 2 orphan 0 tw 1 alloc 3 mem 0\n").unwrap();
        assert_eq!(counters.get("TCP", "tw").unwrap(), 1);
    }

    #[test]
    fn another_format_is_an_error() {
        assert!(Counters::default().add_pairs("Tcp: A B\nUdp: 1 2\n").is_err());
        assert!(Counters::default().add_pairs("Tcp: A B\n").is_err());
    }
}
