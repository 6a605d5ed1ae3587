//! Numbers by name in the files of /proc/net.

/// `TCP: inuse 5 orphan 0 tw 2 …`
pub(crate) fn in_line(text: &str, line: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().filter_map(|l| l.strip_prefix(line)).flat_map(str::split_ascii_whitespace);
    words.find(|word| *word == name)?;
    words.next()?.parse().ok()
}

/// Two lines with the same beginning: names, then values.
pub(crate) fn in_table(text: &str, line: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|l| l.strip_prefix(line));
    let column = lines.next()?.split_ascii_whitespace().position(|word| word == name)?;
    lines.next()?.split_ascii_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let sockstat = "sockets: used 290\nTCP: inuse 5 orphan 1 tw 17 alloc 9 mem 1\nUDP: inuse 2\n";
        assert_eq!(in_line(sockstat, "TCP:", "tw"), Some(17));
        assert_eq!(in_line(sockstat, "TCP:", "nothing"), None);
        assert_eq!(in_line("Ip6OutForwDatagrams 3\nIp6OutNoRoutes \t 9\n", "", "Ip6OutNoRoutes"), Some(9));
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 3 4\nIpExt: InOctets\nIpExt: 1\n";
        assert_eq!(in_table(netstat, "TcpExt:", "ListenOverflows"), Some(3));
        assert_eq!(in_table(netstat, "TcpExt:", "Nothing"), None);
    }
}
