//! The live view as a state machine: keys and pictures in, what to do out. No terminal, no clock, no I/O.

use crate::api::connection::Connection;
use crate::api::resets::Reset;
use crate::api::service::ServiceTotals;
use crate::api::status::Status;
use crate::explain::Explained;

use super::ask::{Focus, Picture, Position, Question, Rows, Table};
use super::columns::{NoColumn, Row as _};
use super::history::{History, Rates, Trend};
use super::list::{Arrange, List};
use super::view;

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Tab,
    BackTab,
    Left,
    Right,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
}

/// What happens to the view.
#[derive(Debug)]
pub(crate) enum Input {
    /// A key was pressed.
    Key(Key),
    /// The mouse was pressed at this column and row.
    Click(u16, u16),
    /// The terminal has this width and height.
    Size(u16, u16),
    /// It is time for another picture.
    Tick,
    /// The daemon answered.
    Picture(Box<Picture>),
    /// It did not, for this reason.
    Trouble(String),
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Draw.
    Draw,
    /// Draw, and ask for another picture.
    Ask,
    /// End.
    Quit,
}

/// What has the screen, and the keys.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mode {
    /// A table.
    Rows,
    /// Its filter, which is being typed.
    Filter,
    /// The help, which the next key closes.
    Help,
    /// A connection.
    Connection(u64),
    /// A reset.
    Reset(Box<Reset>),
}

/// A connection that stays in sight.
#[derive(Debug)]
pub(crate) struct Kept {
    /// As it was seen last.
    pub(crate) connection: Connection,
    /// It is not there any more.
    pub(crate) gone: bool,
}

/// The view.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) connections: List<Connection>,
    pub(crate) services: List<ServiceTotals>,
    pub(crate) resets: List<Reset>,
    /// Which of them has the screen.
    pub(crate) table: Table,
    /// The host and the daemon.
    pub(crate) status: Option<Status>,
    /// Of the host, each second.
    pub(crate) trend: Trend,
    /// Of the connections near the screen.
    pub(crate) history: History,
    /// What has the screen.
    pub(crate) mode: Mode,
    /// How many lines of it are above the screen.
    pub(crate) scrolled: u16,
    /// The connection that is looked at, or that was frozen.
    pub(crate) kept: Option<Kept>,
    /// It was frozen: it stays above the others.
    pub(crate) frozen: Option<u64>,
    /// What is said of the connection that is looked at.
    pub(crate) explained: Option<Explained>,
    /// The picture stays as it is.
    pub(crate) paused: bool,
    /// The mouse is ours.
    pub(crate) mouse: bool,
    /// Why there is no newer picture.
    pub(crate) trouble: Option<String>,
    /// Of a recording.
    pub(crate) position: Option<Position>,
    /// The snapshot of a recording that is to come next.
    at: u64,
    size: (u16, u16),
    shown: Option<Question>,
}

impl App {
    /// An empty view of a table, sorted by the column `sort` where one is named.
    pub(crate) fn new(table: Table, sort: Option<&str>) -> Result<Self, NoColumn> {
        let by = |of: Table, usual| sort.filter(|_| table == of).unwrap_or(usual);
        Ok(Self {
            connections: List::by(by(Table::Connections, Connection::DEFAULT))?,
            services: List::by(by(Table::Services, ServiceTotals::DEFAULT))?,
            resets: List::by(by(Table::Resets, Reset::DEFAULT))?,
            table,
            status: None,
            trend: Trend::default(),
            history: History::default(),
            mode: Mode::Rows,
            scrolled: 0,
            kept: None,
            frozen: None,
            explained: None,
            paused: false,
            mouse: false,
            trouble: None,
            position: None,
            at: 1,
            size: (80, 24),
            shown: None,
        })
    }

    /// The same with a filter from the beginning.
    pub(crate) fn filtered(mut self, typed: &str) -> Self {
        typed.clone_into(self.list().typed());
        self.list().refilter();
        self
    }

    /// What is to be asked.
    pub(crate) fn question(&self) -> Question {
        let rows = self.rows();
        let order = |table| match table {
            Table::Connections => self.connections.order(rows),
            Table::Services => self.services.order(rows),
            Table::Resets => self.resets.order(rows),
        };
        let looked_at = match self.mode {
            Mode::Connection(cookie) => Some(cookie),
            _ => None,
        };
        Question {
            rows: (!matches!(self.mode, Mode::Connection(_) | Mode::Reset(_))).then(|| (self.table, order(self.table))),
            focus: looked_at.or(self.frozen),
            verdicts: looked_at.is_some(),
            at: self.at,
        }
    }

    /// Rows of the table that has the screen, without the frozen one.
    pub(crate) fn rows(&self) -> usize {
        view::rows_shown(self.size.1).saturating_sub(usize::from(self.has_frozen_row()))
    }

    /// Whether a connection stands above the others.
    pub(crate) fn has_frozen_row(&self) -> bool {
        self.table == Table::Connections && self.frozen.is_some()
    }

    fn list(&mut self) -> &mut dyn Arrange {
        match self.table {
            Table::Connections => &mut self.connections,
            Table::Services => &mut self.services,
            Table::Resets => &mut self.resets,
        }
    }

    /// Takes what happened.
    pub(crate) fn update(&mut self, input: Input) -> Effect {
        let asked = self.question();
        match input {
            Input::Key(key) if self.mode == Mode::Filter => self.type_filter(key),
            Input::Key(Key::Char('q')) => return Effect::Quit,
            Input::Key(key) => self.press(key),
            Input::Click(x, y) => self.click(x, y),
            Input::Size(width, height) => self.size = (width, height),
            Input::Tick if self.paused => {}
            Input::Tick => {
                self.at = match self.position {
                    Some(Position { at, ended: false }) => at + 1,
                    _ => self.at,
                };
                // What nothing can change any more need not be asked for.
                let over = self.position.is_some_and(|position| position.ended) && self.trouble.is_none();
                return if over && self.shown.as_ref() == Some(&self.question()) { Effect::Draw } else { Effect::Ask };
            }
            Input::Picture(picture) => {
                self.trouble = None;
                self.show(*picture);
                return Effect::Draw;
            }
            Input::Trouble(why) => self.trouble = Some(why),
        }
        if self.question() == asked { Effect::Draw } else { Effect::Ask }
    }

    fn show(&mut self, picture: Picture) {
        let Picture { question, status, rows, focus, position } = picture;
        if self.paused && self.shown.as_ref() == Some(&question) {
            return;
        }
        self.trend.add(self.status.as_ref().and_then(|before| Rates::between(before, &status)));
        if let Some(position) = position {
            (self.position, self.at) = (Some(position), position.at.max(1));
        }
        let now = self.question();
        let shown = self.rows();
        let mut newer = false;
        if question.rows == now.rows {
            match rows {
                Rows::None => {}
                Rows::Connections(page) => {
                    self.connections.take(page, shown);
                    newer = true;
                }
                Rows::Services(page) => self.services.take(page, shown),
                Rows::Resets(page) => self.resets.take(page, shown),
            }
        }
        if question.focus == now.focus {
            self.keep(focus);
        }
        let kept = self.kept.iter().filter(|kept| !kept.gone).map(|kept| &kept.connection);
        self.history.add(status.ktime_ns, kept);
        if newer {
            self.history.add(status.ktime_ns, &self.connections.page.rows);
            self.history.forget_before(status.ktime_ns);
        }
        self.status = Some(status);
        self.shown = Some(Question { at: self.at, ..question });
    }

    fn keep(&mut self, focus: Option<Focus>) {
        let Some(Focus { connection, explained }) = focus else {
            self.kept = None;
            return;
        };
        match (connection, &mut self.kept) {
            (Some(connection), kept) => *kept = Some(Kept { connection, gone: false }),
            (None, Some(kept)) => kept.gone = true,
            (None, None) => {}
        }
        self.explained = explained.or(self.explained.take());
    }

    fn press(&mut self, key: Key) {
        match &self.mode {
            Mode::Help => match key {
                Key::Up => self.scrolled = self.scrolled.saturating_sub(1),
                Key::Down => self.scrolled = self.scrolled.saturating_add(1).min(60),
                _ => (self.mode, self.scrolled) = (Mode::Rows, 0),
            },
            Mode::Connection(_) | Mode::Reset(_) => self.press_in_detail(key),
            Mode::Rows | Mode::Filter => self.press_in_rows(key),
        }
    }

    fn press_in_rows(&mut self, key: Key) {
        let rows = self.rows();
        match key {
            Key::Char('?' | 'h') => self.mode = Mode::Help,
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Char('m') => self.mouse = !self.mouse,
            Key::Char('/') => self.mode = Mode::Filter,
            Key::Char('s' | '>') => self.list().sort_by_next(false),
            Key::Char('S' | '<') => self.list().sort_by_next(true),
            Key::Char('r') => self.list().reverse(),
            Key::Char('f') => self.freeze(),
            Key::Char('1') => self.table = Table::Connections,
            Key::Char('2') => self.table = Table::Services,
            Key::Char('3') => self.table = Table::Resets,
            Key::Tab => self.turn(1),
            Key::BackTab => self.turn(2),
            Key::Enter => self.open(),
            Key::Escape => {
                self.list().typed().clear();
                self.list().refilter();
            }
            key => {
                if !self.list().go(key, rows) {
                    self.seek(key);
                }
            }
        }
    }

    fn press_in_detail(&mut self, key: Key) {
        match key {
            Key::Escape | Key::Backspace | Key::Enter => {
                if matches!(self.mode, Mode::Connection(_)) && self.frozen.is_none() {
                    self.kept = None;
                }
                (self.mode, self.scrolled, self.explained) = (Mode::Rows, 0, None);
            }
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Up | Key::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            Key::Down | Key::Char('j') => self.scrolled = self.scrolled.saturating_add(1),
            Key::PageUp => self.scrolled = self.scrolled.saturating_sub(10),
            Key::PageDown => self.scrolled = self.scrolled.saturating_add(10),
            Key::Home => self.scrolled = 0,
            key => self.seek(key),
        }
    }

    /// Ten snapshots forth or back in a recording.
    fn seek(&mut self, key: Key) {
        let Some(position) = self.position else { return };
        match key {
            Key::Right if !position.ended => self.at = position.at + 10,
            Key::Left => self.at = position.at.saturating_sub(10).max(1),
            _ => {}
        }
    }

    fn turn(&mut self, by: usize) {
        let now = Table::ALL.iter().position(|table| *table == self.table).unwrap_or(0);
        self.table = Table::ALL.into_iter().cycle().nth(now + by).unwrap_or_default();
    }

    /// Looks closer at the chosen row.
    fn open(&mut self) {
        match self.table {
            Table::Connections => {
                let Some(connection) = self.connections.chosen().cloned() else { return };
                (self.mode, self.explained) = (Mode::Connection(connection.cookie), None);
                self.kept = Some(Kept { connection, gone: false });
            }
            Table::Services => {
                let Some(service) = self.services.chosen() else { return };
                let filter = format!("direction {} and service {}", service.direction, service.service);
                (self.table, *self.connections.typed()) = (Table::Connections, filter);
                self.connections.refilter();
            }
            Table::Resets => {
                let Some(reset) = self.resets.chosen().cloned() else { return };
                self.mode = Mode::Reset(Box::new(reset));
            }
        }
        self.scrolled = 0;
    }

    /// Keeps the chosen connection above the others, or lets it go again.
    fn freeze(&mut self) {
        if self.frozen.take().is_some() {
            self.kept = None;
        } else if self.table == Table::Connections
            && let Some(connection) = self.connections.chosen().cloned()
        {
            self.frozen = Some(connection.cookie);
            self.kept = Some(Kept { connection, gone: false });
        }
    }

    fn click(&mut self, x: u16, y: u16) {
        if self.mode != Mode::Rows {
            return;
        }
        let (rows, width) = (self.rows(), self.size.0);
        let titles = view::header_rows(self.size.1) + u16::from(self.has_frozen_row());
        match y.checked_sub(titles) {
            Some(0) => self.list().sort_at(x, width),
            Some(line) if usize::from(line) <= rows => self.list().point(usize::from(line) - 1, rows),
            _ => {}
        }
    }

    fn type_filter(&mut self, key: Key) {
        match key {
            Key::Char(c) => self.list().typed().push(c),
            Key::Backspace => drop(self.list().typed().pop()),
            Key::Enter => self.mode = Mode::Rows,
            Key::Escape => {
                self.mode = Mode::Rows;
                self.list().typed().clear();
            }
            _ => return,
        }
        self.list().refilter();
    }
}

#[cfg(test)]
#[path = "app_tests.rs"]
mod tests;
