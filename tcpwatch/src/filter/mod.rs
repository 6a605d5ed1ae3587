//! The filter language, EXPR: `port 443 and not state TIME_WAIT`.
//!
//! `facts` is the table of what can be asked, `parse` reads an expression, `expr` is one and decides about a
//! [`Subject`], `subjects` are the things it is asked of. Evaluation has three values: what a subject does not know
//! makes a term neither true nor false, and `not` leaves it so. Only what is true is selected; `not pid 812` does
//! therefore not select a connection whose process is unknown, and `not known pid` does.

pub(crate) mod docs;
mod expr;
mod facts;
mod parse;
#[cfg(test)]
mod props;
mod subjects;

use std::borrow::Cow;
use std::net::IpAddr;
use std::str::FromStr;

use self::expr::{Expr, Op, Term};
pub(crate) use self::facts::{Fact, kinds};
pub(crate) use self::parse::FilterError;
pub(crate) use self::subjects::{ConnFacts, of_key};

/// Something that filters are asked about.
pub(crate) trait Subject {
    /// What it knows of a fact; `None` when it does not know it.
    fn fact(&self, fact: Fact) -> Option<Value<'_>>;
}

/// The value of a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A count, a port, an identifier; times are in µs, sizes in bytes.
    Number(u64),
    /// A name.
    Text(Cow<'a, str>),
    /// An address.
    Address(IpAddr),
}

impl From<&'static str> for Value<'_> {
    fn from(name: &'static str) -> Self {
        Self::Text(Cow::Borrowed(name))
    }
}

/// A filter that somebody gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter(Expr);

impl Filter {
    /// The filter that `words` are; none at all select everything.
    pub(crate) fn of_words(words: &[String]) -> Result<Option<Self>, FilterError> {
        if words.is_empty() { Ok(None) } else { words.join(" ").parse().map(Some) }
    }

    /// The socket with this cookie.
    pub(crate) fn of_cookie(cookie: u64) -> Self {
        Self(Expr::Term(Term::Number(Fact::Cookie, Op::Equal, cookie)))
    }

    /// Whether it selects `subject`.
    pub(crate) fn selects(&self, subject: &impl Subject) -> bool {
        self.0.about(subject) == Some(true)
    }

    /// Whether `text` is meant as an expression: its first word is one of the language.
    pub(crate) fn is_meant(text: &str) -> bool {
        parse::begins(text)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        parse::parse(text, &parse::uid_of).map(Self)
    }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
