//! docs/FILTER.md, from the table of facts.

use super::facts::TABLE;

const BEGINNING: &str = "\
# The filter language

<!-- Made by `tcpwatch docs filter`. -->

`top`, `trace`, `replay FILE top` and the API (`filter=`) take one language. On the command line it is one argument or the
remaining words; what the shell takes for itself (`>`, `(`, `*`, `!`) needs quotes:

```
tcpwatch top port 443 and not state TIME_WAIT
tcpwatch trace resets 'peer 10.0.0.0/8 and (cause linger_zero or cause unread_data)'
tcpwatch top --once 'srtt > 50ms and retransmits > 0'
```

`not` binds closer than `and`, and that closer than `or`; parentheses group. `&&`, `||` and `!` are taken as well.

- After a word its value follows, with `=` or without; `!=` is `not` before it. Numbers, times and sizes can be compared with
  `<`, `<=`, `>` and `>=`.
- A time has a unit (`us`, `ms`, `s`, `m`, `h`), and so has a size (`B`, `KB`, `MB`, `GB`, `TB` by thousands, `KiB`, `MiB`, `GiB`).
- A name may have `*` for any characters. What has spaces or signs in it is written in double quotes.
- A control group is named by its unit (`cgroup nginx.service`), by its path, by the end of its path, or by any whole names that
  follow each other in it: `cgroup system.slice` selects what is in that slice.
- `pid`, `comm`, `user`, `cgroup`, `unit` and `container` are those of the owner, see [OWNERS.md](OWNERS.md).
- Names of states, kinds and causes are those of the metrics, in any case.
- `port` and `host` ask both ends: one of them is enough.

**What is not known** is neither true nor false, and `not` does not change that: `not pid 812` does not select a connection whose
process is unknown. `known pid` asks whether it is known, so `not pid 812 or not known pid` selects those too.

An expression has at most 4,096 bytes and 64 levels of parentheses and `not`.

| words | selects by |
|---|---|
";

/// The page.
pub(crate) fn page() -> String {
    let mut lines = vec![BEGINNING.to_owned()];
    for entry in TABLE {
        let also: Vec<_> = entry.also.iter().map(|word| format!("`{word}`")).collect();
        let also = if also.is_empty() { String::new() } else { format!(" (also {})", also.join(", ")) };
        let takes = entry.takes.shown().replace('|', "\\|");
        lines.push(format!("| `{} {takes}`{also} | {} |\n", entry.word, entry.help));
    }
    lines.push(
        "| `ipv4`, `ipv6` | the family of its addresses |\n| `known WORD` | whether that is known |\n".to_owned(),
    );
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::super::Filter;
    use super::*;

    #[test]
    fn the_page_is_the_generated_one() {
        crate::golden::check("../docs/FILTER.md", &page());
    }

    #[test]
    fn its_examples_are_expressions() {
        for example in [
            "port 443 and not state TIME_WAIT",
            "peer 10.0.0.0/8 and (cause linger_zero or cause unread_data)",
            "srtt > 50ms and retransmits > 0",
            "not pid 812 or not known pid",
            "cgroup system.slice",
            "cgroup nginx.service",
        ] {
            assert!(BEGINNING.contains(example) && example.parse::<Filter>().is_ok(), "{example}");
        }
    }
}
