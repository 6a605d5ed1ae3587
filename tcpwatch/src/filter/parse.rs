//! Reads an expression. Errors point at the word and say what would be right there.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::ops::Range;

use super::expr::{Expr, Network, Op, SIZES, TIMES, Term};
use super::facts::{Entry, FAMILIES, JOINTS, TABLE, Takes};

/// Bytes of an expression, at most.
const MOST_BYTES: usize = 4096;
/// Parentheses and `not` within each other, at most.
const MOST_DEPTH: usize = 64;

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilterError {
    text: String,
    span: Range<usize>,
    what: String,
}

impl FilterError {
    fn new(text: &str, span: Range<usize>, what: impl Into<String>) -> Self {
        Self { text: text.to_owned(), span, what: what.into() }
    }

    /// What is wrong, in one line.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    #[cfg(test)]
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }
}

impl std::error::Error for FilterError {}

impl fmt::Display for FilterError {
    /// What is wrong, the expression, and a line that points at the word.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |part: &str| -> String { part.chars().map(|c| if c.is_control() { ' ' } else { c }).collect() };
        let part = |range: Range<usize>| shown(self.text.get(range).unwrap_or_default());
        let before = part(0..self.span.start);
        let word = part(self.span.clone()).chars().count().max(1);
        write!(f, "the filter is wrong: {}\n  {}\n", self.what, shown(&self.text))?;
        write!(f, "  {}{}", " ".repeat(before.chars().count()), "^".repeat(word))
    }
}

/// A part of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Op(Op),
    Differs,
    Open,
    Close,
    End,
}

/// The number of a user of this host.
pub(super) fn uid_of(name: &str) -> Option<u32> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Whether `text` begins with a word of the language.
pub(super) fn begins(text: &str) -> bool {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '(' || c == '!');
    let end = text.find(|c: char| c.is_whitespace() || "()<>=!&|\"".contains(c)).unwrap_or(text.len());
    let word = text.get(..end).unwrap_or_default().to_lowercase();
    let first = |words: &str| words.split(' ').next() == Some(word.as_str());
    ["not", "known"].contains(&word.as_str())
        || FAMILIES.contains(&word.as_str())
        || TABLE.iter().any(|entry| first(entry.word) || entry.also.iter().any(|also| first(also)))
}

/// The expression that `text` is; `users` knows the numbers of users.
pub(super) fn parse(text: &str, users: &dyn Fn(&str) -> Option<u32>) -> Result<Expr, FilterError> {
    if text.len() > MOST_BYTES {
        let why = format!("it is longer than {MOST_BYTES} bytes");
        let cut = (0..=80).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        return Err(FilterError::new(text.get(..cut).unwrap_or_default(), cut..cut, why));
    }
    let mut parser = Parser { text, tokens: tokens(text)?, at: 0, depth: 0, users };
    let expr = parser.any()?;
    match parser.peek() {
        Token::End => Ok(expr),
        Token::Close => Err(parser.wrong("no parenthesis was opened for this one")),
        _ => Err(parser.wrong("`and`, `or` or the end is expected here")),
    }
}

fn tokens(text: &str) -> Result<Vec<(Token, Range<usize>)>, FilterError> {
    let mut tokens = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((start, c)) = chars.next() {
        let mut follows = |wanted: char| chars.next_if(|(_, c)| *c == wanted).is_some();
        let token = match c {
            c if c.is_whitespace() => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            '<' => Token::Op(if follows('=') { Op::AtMost } else { Op::Less }),
            '>' => Token::Op(if follows('=') { Op::AtLeast } else { Op::More }),
            '=' => {
                follows('=');
                Token::Op(Op::Equal)
            }
            '!' if follows('=') => Token::Differs,
            '!' => Token::Word("not".to_owned()),
            '&' if follows('&') => Token::Word("and".to_owned()),
            '|' if follows('|') => Token::Word("or".to_owned()),
            '&' => return Err(FilterError::new(text, start..start + 1, "write `and` for this")),
            '|' => return Err(FilterError::new(text, start..start + 1, "write `or` for this")),
            '"' => {
                let mut name = String::new();
                loop {
                    match chars.next() {
                        Some((_, '"')) => break Token::Quoted(name),
                        Some((_, '\\')) => match chars.next() {
                            Some((_, c @ ('"' | '\\'))) => name.push(c),
                            // Names are shown with escapes such as `\x1b`, and can be copied from there.
                            Some((_, c)) => name.extend(['\\', c]),
                            None => {}
                        },
                        Some((_, c)) => name.push(c),
                        None => return Err(FilterError::new(text, start..text.len(), "the quote is not closed")),
                    }
                }
            }
            c => {
                let mut word = String::from(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| !c.is_whitespace() && !"()<>=!&|\"".contains(*c)) {
                    word.push(c);
                }
                Token::Word(word)
            }
        };
        let end = chars.peek().map_or(text.len(), |(at, _)| *at);
        tokens.push((token, start..end));
    }
    tokens.push((Token::End, text.len()..text.len()));
    Ok(tokens)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(Token, Range<usize>)>,
    at: usize,
    depth: usize,
    users: &'a dyn Fn(&str) -> Option<u32>,
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(token, _)| token)
    }

    fn span(&self) -> Range<usize> {
        self.tokens.get(self.at).map_or(self.text.len()..self.text.len(), |(_, span)| span.clone())
    }

    /// An error at the next token.
    fn wrong(&self, what: impl Into<String>) -> FilterError {
        FilterError::new(self.text, self.span(), what)
    }

    /// The next token as a word of the language.
    fn word(&self) -> Option<String> {
        match self.peek() {
            Token::Word(word) => Some(word.to_lowercase()),
            _ => None,
        }
    }

    /// Goes past the next token if it is this word.
    fn take(&mut self, wanted: &str) -> bool {
        let is = self.word().as_deref() == Some(wanted);
        self.at += usize::from(is);
        is
    }

    fn any(&mut self) -> Result<Expr, FilterError> {
        let mut exprs = vec![self.all()?];
        while self.take("or") {
            exprs.push(self.all()?);
        }
        Ok(joined(exprs, Expr::Or))
    }

    fn all(&mut self) -> Result<Expr, FilterError> {
        let mut exprs = vec![self.one()?];
        while self.take("and") {
            exprs.push(self.one()?);
        }
        Ok(joined(exprs, Expr::And))
    }

    fn one(&mut self) -> Result<Expr, FilterError> {
        if self.depth >= MOST_DEPTH {
            return Err(self.wrong(format!("it is nested deeper than {MOST_DEPTH} levels")));
        }
        self.depth += 1;
        let expr = if self.take("not") {
            Expr::Not(Box::new(self.one()?))
        } else if *self.peek() == Token::Open {
            let opened = self.span();
            self.at += 1;
            let expr = self.any()?;
            match self.peek() {
                Token::Close => self.at += 1,
                Token::End => return Err(FilterError::new(self.text, opened, "this parenthesis is not closed")),
                _ => return Err(self.wrong("`and`, `or` or `)` is expected here")),
            }
            expr
        } else {
            self.term()?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn term(&mut self) -> Result<Expr, FilterError> {
        for (word, v6) in FAMILIES.iter().zip([false, true]) {
            if self.take(word) {
                return Ok(Expr::Term(Term::Family(v6)));
            }
        }
        if self.take("known") {
            return Ok(Expr::Term(Term::Known(self.fact()?.fact)));
        }
        let entry = self.fact()?;
        let (op, differs) = match self.peek() {
            Token::Op(op) if *op == Op::Equal || entry.takes.ordered() => (Some(*op), false),
            Token::Op(_) => return Err(self.wrong(format!("`{}` can only be compared with `=` and `!=`", entry.word))),
            Token::Differs => (Some(Op::Equal), true),
            _ => (None, false),
        };
        self.at += usize::from(op.is_some());
        let term = Expr::Term(self.value(entry, op.unwrap_or(Op::Equal))?);
        Ok(if differs { Expr::Not(Box::new(term)) } else { term })
    }

    /// The fact whose word, or two words, are next.
    fn fact(&mut self) -> Result<&'static Entry, FilterError> {
        let Some(first) = self.word() else {
            return Err(self.wrong(match self.peek() {
                Token::End if self.text.trim().is_empty() => "it is empty; write something such as `port 443`",
                Token::End => "something is missing here, such as `port 443`",
                _ => "a word such as `port`, `peer` or `state` is expected here",
            }));
        };
        let second = match self.tokens.get(self.at + 1) {
            Some((Token::Word(word), _)) => format!("{first} {}", word.to_lowercase()),
            _ => String::new(),
        };
        for (said, words) in [(&second, 2), (&first, 1)] {
            if let Some(entry) = TABLE.iter().find(|entry| entry.word == said || entry.also.contains(&said.as_str())) {
                self.at += words;
                return Ok(entry);
            }
        }
        let words = TABLE.iter().flat_map(|entry| [entry.word].into_iter().chain(entry.also.iter().copied()));
        let near = nearest(&first, words.chain(FAMILIES).chain(JOINTS));
        if JOINTS.contains(&first.as_str()) {
            return Err(self.wrong(format!("something is missing before `{first}`, such as `port 443`")));
        }
        Err(self.wrong(match (near, first.parse::<u16>(), first.parse::<IpAddr>()) {
            (Some(near), ..) => format!("unknown word `{first}`; did you mean `{near}`?"),
            (None, Ok(port), _) => format!("unknown word `{first}`; did you mean `port {port}`?"),
            (None, _, Ok(address)) => format!("unknown word `{first}`; did you mean `host {address}`?"),
            _ => format!("unknown word `{first}`; there are {}", all_words()),
        }))
    }

    fn value(&mut self, entry: &Entry, op: Op) -> Result<Term, FilterError> {
        let after = entry.word;
        let (text, quoted) = match self.peek() {
            Token::Word(word) if !JOINTS.contains(&word.to_lowercase().as_str()) => (word.clone(), false),
            Token::Quoted(name) => (name.clone(), true),
            _ => return Err(self.wrong(format!("after `{after}` {} is expected", expected(entry.takes)))),
        };
        let wrong = |what: String| FilterError::new(self.text, self.span(), what);
        let bad = || wrong(format!("`{text}` is not {}", expected(entry.takes)));
        let number = |number: Option<u64>| number.map(|number| Term::Number(entry.fact, op, number)).ok_or_else(bad);
        let term = match entry.takes {
            Takes::Port => number(text.parse::<u16>().ok().map(u64::from))?,
            Takes::Number => number(text.parse().ok())?,
            Takes::Time => number(quantity(&text, TIMES))?,
            Takes::Bytes => number(quantity(&text, SIZES))?,
            Takes::Address => Term::Address(entry.fact, network(&text).ok_or_else(bad)?),
            Takes::User => {
                let unknown = || {
                    wrong(format!("there is no user `{text}` in /etc/passwd; the number of a user is taken as well"))
                };
                let uid = text.parse().ok().or_else(|| (self.users)(&text)).ok_or_else(unknown)?;
                Term::Number(entry.fact, op, uid.into())
            }
            Takes::OneOf(names) => {
                let plain = |name: &str| name.to_lowercase().replace('-', "_");
                let known = names();
                let name = known.iter().find(|name| plain(name) == plain(&text));
                let name = name.ok_or_else(|| {
                    wrong(match nearest(&plain(&text), known.iter().map(|name| &**name)) {
                        Some(near) => format!("there is no {after} `{text}`; did you mean `{near}`?"),
                        None => format!("there is no {after} `{text}`; there are {}", known.join(", ")),
                    })
                })?;
                Term::Text(entry.fact, (*name).to_owned())
            }
            Takes::Name | Takes::Path if text.is_empty() && !quoted => return Err(bad()),
            Takes::Name | Takes::Path => Term::Text(entry.fact, text.clone()),
        };
        self.at += 1;
        Ok(term)
    }
}

fn joined(mut exprs: Vec<Expr>, join: fn(Vec<Expr>) -> Expr) -> Expr {
    match exprs.pop() {
        Some(only) if exprs.is_empty() => only,
        last => {
            exprs.extend(last);
            join(exprs)
        }
    }
}

const fn expected(takes: Takes) -> &'static str {
    match takes {
        Takes::Port => "a port from 0 to 65535",
        Takes::Number => "a whole number",
        Takes::Time => "a time with its unit, such as 50ms (us, ms, s, m, h)",
        Takes::Bytes => "a size with its unit, such as 1MB (B, KB, MB, GB, TB, KiB, MiB, GiB)",
        Takes::Address => "an address or a network, such as 10.0.0.0/8 or 2001:db8::1",
        Takes::User => "a user, by name or number,",
        Takes::OneOf(_) | Takes::Name => "a name",
        Takes::Path => "a path, or a name in it,",
    }
}

fn network(text: &str) -> Option<Network> {
    match text.split_once('/') {
        None => text.parse().ok().map(Network::host),
        Some((address, len)) => Network::new(address.parse().ok()?, len.parse().ok()?),
    }
}

/// A number with a unit, which 0 may go without; exact in the smallest unit or nothing.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && part.is_empty()) || part.len() > 15 {
        return None;
    }
    let scale = 10_u128.pow(part.len() as u32);
    let digits: u128 = format!("{whole}{part}").parse().ok()?;
    if unit.is_empty() {
        return (digits == 0).then_some(0);
    }
    let (_, size) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let scaled = digits.checked_mul(u128::from(*size))?;
    (scaled % scale == 0).then(|| u64::try_from(scaled / scale).ok())?
}

/// The word most like `word`, if one is like it at all: a third of its letters wrong is a slip.
fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase();
    let distance = |other: &str| strsim::damerau_levenshtein(&other.to_lowercase(), &word);
    let near = words.min_by_key(|other| distance(other))?;
    (distance(near) * 3 <= near.len()).then_some(near)
}

fn all_words() -> String {
    let words: Vec<_> = TABLE.iter().map(|entry| entry.word).chain(FAMILIES).collect();
    words.join(", ")
}

/// Whether a name would be taken for a word that joins.
pub(super) fn joins(name: &str) -> bool {
    JOINTS.contains(&name.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Expr, FilterError> {
        parse(text, &|name| (name == "www-data").then_some(33))
    }

    #[test]
    fn expressions_mean_what_they_say() {
        for (text, meant) in [
            ("port 443", "port 443"),
            ("  PORT=443 ", "port 443"),
            ("sport 1 or dport 2 and pid 3", "local port 1 or peer port 2 and pid 3"),
            ("(sport 1 or dport 2) and pid 3", "(local port 1 or peer port 2) and pid 3"),
            ("not (ipv4 && state close-wait)", "not (ipv4 and state CLOSE_WAIT)"),
            ("!ipv6 || remote port >= 1024", "not ipv6 or peer port >= 1024"),
            ("pid != 5", "not pid 5"),
            ("peer 10.1.2.3/8", "peer 10.0.0.0/8"),
            ("host 2001:DB8::1", "host 2001:db8::1"),
            ("srtt > 0.05s", "srtt > 50ms"),
            ("sent>1.5MB", "sent > 1500KB"),
            ("unread > 64kib", "unread > 64KiB"),
            ("age < 0", "age < 0"),
            ("user www-data or user 7", "user 33 or user 7"),
            ("cgroup nginx.service", "cgroup nginx.service"),
            ("comm \"a b\\\"c\"", "comm \"a b\\\"c\""),
            ("comm \"and\"", "comm \"and\""),
            ("known local port and not known pid", "known local port and not known pid"),
            ("cause linger_zero or kind reset_sent", "cause linger_zero or kind reset_sent"),
            ("port 1 and (port 2 and port 3)", "port 1 and (port 2 and port 3)"),
        ] {
            assert_eq!(parsed(text).unwrap().to_string(), meant, "{text}");
        }
    }

    #[test]
    fn errors_point_at_the_word_and_say_what_is_right() {
        for (text, word, what) in [
            ("port 443 and pidd 8", "pidd", "unknown word `pidd`; did you mean `pid`?"),
            ("prot 443", "prot", "did you mean `port`?"),
            ("443", "443", "did you mean `port 443`?"),
            ("10.0.0.1", "10.0.0.1", "did you mean `host 10.0.0.1`?"),
            ("frobnicate 3", "frobnicate", "there are port, local port"),
            ("port 70000", "70000", "`70000` is not a port from 0 to 65535"),
            ("port", "", "after `port` a port from 0 to 65535 is expected"),
            ("port and pid 5", "and", "after `port` a port"),
            ("and port 5", "and", "something is missing before `and`"),
            ("port 5 and", "", "something is missing here"),
            ("", "", "it is empty"),
            ("port 5 pid 6", "pid", "`and`, `or` or the end is expected here"),
            ("(port 5", "(", "this parenthesis is not closed"),
            ("port 5)", ")", "no parenthesis was opened"),
            ("(port 5 pid 6)", "pid", "`and`, `or` or `)` is expected"),
            ("state CLOSEWAIT", "CLOSEWAIT", "there is no state `CLOSEWAIT`; did you mean `CLOSE_WAIT`?"),
            ("direction up", "up", "there are unknown, inbound, outbound"),
            ("srtt > 50", "50", "`50` is not a time with its unit, such as 50ms"),
            ("srtt > 50MB", "50MB", "is not a time"),
            ("sent > 1.2345B", "1.2345B", "is not a size"),
            ("peer 10.0.0.0/33", "10.0.0.0/33", "is not an address or a network"),
            ("comm > x", ">", "`comm` can only be compared with `=` and `!=`"),
            ("user nobody-here", "nobody-here", "there is no user `nobody-here` in /etc/passwd"),
            ("comm \"x", "\"x", "the quote is not closed"),
            ("ipv4 & ipv6", "&", "write `and`"),
        ] {
            let error = parsed(text).unwrap_err();
            assert_eq!(&text[error.span()], word, "{text}: {error}");
            assert!(error.what().contains(what), "{text}: {error}");
        }
        let shown = parsed("port 443 and pidd 8").unwrap_err().to_string();
        let lines: Vec<_> = shown.lines().skip(1).collect();
        assert_eq!(lines, ["  port 443 and pidd 8", "               ^^^^"]);
        assert!(!parsed("comm \"\x1b[2J").unwrap_err().to_string().contains('\x1b'));
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let nested = |depth| format!("{}ipv4{}", "(".repeat(depth), ")".repeat(depth));
        assert!(parsed(&nested(MOST_DEPTH - 1)).is_ok());
        for text in [nested(MOST_DEPTH), "not ".repeat(1000) + "ipv4", nested(2000)] {
            assert!(parsed(&text).unwrap_err().what().contains("nested deeper"));
        }
        assert!(parsed(&"é".repeat(3000)).unwrap_err().what().contains("longer than 4096 bytes"));
        let chain = ["ipv4"; 400].join(" or ");
        assert_eq!(parsed(&chain).unwrap().to_string(), chain);
    }

    #[test]
    fn what_begins_with_a_word_of_the_language_is_meant_as_an_expression() {
        for text in ["port", "not x", " (sport 4", "LOCAL port 3", "ipv6", "srtt>5ms", "known pid"] {
            assert!(begins(text), "{text}");
        }
        for text in ["", "nginx", ":443", "10.0.0.1", "ports", "and"] {
            assert!(!begins(text), "{text}");
        }
    }

    #[test]
    fn users_are_those_of_the_host() {
        assert_eq!(uid_of("root"), Some(0));
        assert_eq!(uid_of("no-such-user-here"), None);
    }
}
