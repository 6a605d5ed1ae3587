//! What the view asks for, and who answers: a daemon, or a recording. Both give finished pages: filtered, sorted, cut.

use crate::api::Selection;
use crate::api::connection::Connection;
use crate::api::resets::Reset;
use crate::api::service::ServiceTotals;
use crate::api::status::Status;
use crate::client::{Client, ClientError};
use crate::explain::{Explained, Subject};
use crate::filter::{Filter, FilterError};
use crate::recording::RecordingError;

use super::columns::{self, Key, Row};
use super::playback::Player;

/// A table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Table {
    /// Connections.
    #[default]
    Connections,
    /// Services.
    Services,
    /// The resets that evidence is kept of.
    Resets,
}

impl Table {
    /// All, in the order of their keys.
    pub(crate) const ALL: [Self; 3] = [Self::Connections, Self::Services, Self::Resets];

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Services => "services",
            Self::Resets => "resets",
        }
    }
}

/// Which rows are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kept {
    #[default]
    All,
    /// Those that an expression selects.
    Selected(Filter),
    /// Those with this text in them, which is in lower case.
    Containing(String),
}

impl Kept {
    /// By what somebody typed: an expression when it begins with a word of the language, else a text.
    pub(crate) fn of(typed: &str) -> Result<Self, FilterError> {
        if typed.trim().is_empty() {
            Ok(Self::All)
        } else if Filter::is_meant(typed) {
            typed.parse().map(Self::Selected)
        } else {
            Ok(Self::Containing(typed.to_lowercase()))
        }
    }

    fn has(&self, row: &impl Row) -> bool {
        match self {
            Self::All => true,
            Self::Selected(filter) => filter.selects(row),
            Self::Containing(text) => columns::contains(row, text),
        }
    }
}

/// Which rows, in what order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// The name of a column of that table.
    pub(crate) sort: &'static str,
    /// From the other end.
    pub(crate) reversed: bool,
    /// Those that are kept.
    pub(crate) kept: Kept,
    /// Go past so many.
    pub(crate) offset: usize,
    /// At most so many.
    pub(crate) limit: usize,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// A table, and which rows of it; none while something else has the screen.
    pub(crate) rows: Option<(Table, Order)>,
    /// This connection as well, wherever it is in the order.
    pub(crate) focus: Option<u64>,
    /// And what is said of it.
    pub(crate) verdicts: bool,
    /// Of a recording: the number of the snapshot, from 1.
    pub(crate) at: u64,
}

/// A page of a table.
#[derive(Clone, Debug)]
pub(crate) struct Page<T> {
    /// The rows.
    pub(crate) rows: Vec<T>,
    /// How many come before them.
    pub(crate) offset: usize,
    /// How many there are on all pages.
    pub(crate) total: usize,
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), offset: 0, total: 0 }
    }
}

/// Rows of one of the tables.
#[derive(Clone, Debug)]
pub(crate) enum Rows {
    None,
    Connections(Page<Connection>),
    Services(Page<ServiceTotals>),
    Resets(Page<Reset>),
}

/// What there is to be said of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Focus {
    /// The connection; none when it is not there any more.
    pub(crate) connection: Option<Connection>,
    /// Verdicts, when they were asked for.
    pub(crate) explained: Option<Explained>,
}

/// Where a recording is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The number of the snapshot that is shown.
    pub(crate) at: u64,
    /// There is none after it.
    pub(crate) ended: bool,
}

/// What the daemon says at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// What it answers.
    pub(crate) question: Question,
    /// How the daemon is.
    pub(crate) status: Status,
    /// The rows.
    pub(crate) rows: Rows,
    /// The connection that was asked for.
    pub(crate) focus: Option<Focus>,
    /// Of a recording.
    pub(crate) position: Option<Position>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The daemon does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The recording is not whole.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// There is no such column.
    #[error(transparent)]
    Column(#[from] columns::NoColumn),
}

/// Who answers.
pub(crate) enum Source {
    /// A daemon, or programs of our own.
    Daemon(Box<Client>),
    /// A recording.
    Recording(Box<Player>),
}

impl Source {
    /// The answer.
    pub(crate) async fn answer(&mut self, question: Question) -> Result<Picture, AskError> {
        match self {
            Self::Daemon(client) => of_daemon(client, question).await,
            Self::Recording(player) => player.answer(question),
        }
    }
}

async fn of_daemon(client: &mut Client, question: Question) -> Result<Picture, AskError> {
    let status = client.status().await?;
    let rows = match &question.rows {
        None => Rows::None,
        Some((Table::Connections, order)) => {
            let (rows, total) = client.connections(&order.selection()?).await?;
            Rows::Connections(Page { rows, offset: order.offset, total })
        }
        Some((Table::Services, order)) => Rows::Services(order.page(client.services().await?)?),
        Some((Table::Resets, order)) => Rows::Resets(order.page(client.resets().await?.newest)?),
    };
    let focus = match question.focus {
        None => None,
        Some(cookie) => {
            let only = Filter::of_cookie(cookie);
            let explained = if question.verdicts {
                client.explain(Some(&only), None, true).await?.into_iter().find(|e| is_of(e, cookie))
            } else {
                None
            };
            let selection = Selection { filter: Some(only), ..Selection::default() };
            Some(Focus { connection: client.connections(&selection).await?.0.pop(), explained })
        }
    };
    Ok(Picture { question, status, rows, focus, position: None })
}

/// Whether something is said of this connection.
pub(super) fn is_of(explained: &Explained, of: u64) -> bool {
    matches!(explained.subject, Subject::Connection { cookie, .. } if cookie == of)
}

impl Order {
    /// Every row by a column.
    pub(crate) fn by(sort: &'static str, kept: Kept) -> Self {
        Self { sort, reversed: false, kept, offset: 0, limit: usize::MAX }
    }

    /// The same of connections.
    pub(super) fn selection(&self) -> Result<Selection, columns::NoColumn> {
        let (filter, contains) = match &self.kept {
            Kept::All => (None, None),
            Kept::Selected(filter) => (Some(filter.clone()), None),
            Kept::Containing(text) => (None, Some(text.clone())),
        };
        let sort = Some(columns::find(self.sort)?);
        Ok(Selection { filter, contains, sort, reversed: self.reversed, offset: self.offset, limit: self.limit })
    }

    /// A page of rows that are few.
    pub(super) fn page<T>(&self, mut rows: Vec<T>) -> Result<Page<T>, columns::NoColumn>
    where
        T: Row<Key = for<'a> fn(&'a T) -> Key<'a>>,
    {
        rows.retain(|row| self.kept.has(row));
        columns::sort(&mut rows, columns::find(self.sort)?, self.reversed);
        let total = rows.len();
        Ok(Page { rows: rows.into_iter().skip(self.offset).take(self.limit).collect(), offset: self.offset, total })
    }
}
