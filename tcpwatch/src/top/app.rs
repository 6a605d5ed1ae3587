//! The live view as a state machine: keys and pictures in, what to do out. No terminal, no clock, no I/O.

use crate::api::connection::Connection;
use crate::api::status::{Status, Totals};
use crate::filter::{Filter, FilterError};

use super::columns::{self, COLUMNS, Column};

/// What the daemon says at a moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picture {
    /// How it is.
    pub(crate) status: Status,
    /// Its connections.
    pub(crate) connections: Vec<Connection>,
}

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
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
    /// End.
    Quit,
}

/// Connections that are asked for while all of them need not be looked through.
const MOST_ROWS: usize = 5000;
/// Rows of a page, for keys: what is on the screen is the view's business.
const PAGE: usize = 10;

/// What keys go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The rows.
    Rows,
    /// The filter, which is being typed.
    Filter,
    /// The help, which the next one closes.
    Help,
}

/// The view.
#[derive(Debug)]
pub(crate) struct App {
    /// What is shown; sorted and filtered.
    pub(crate) rows: Vec<Connection>,
    /// The host and the daemon.
    pub(crate) status: Option<Status>,
    /// Of the host, each second.
    pub(crate) rates: Option<Rates>,
    /// Sorted by.
    pub(crate) column: &'static Column,
    /// From the other end.
    pub(crate) reversed: bool,
    /// What is typed as a filter.
    pub(crate) filter: String,
    /// What is wrong with it as an expression; the rows are those of the last one that was right.
    pub(crate) mistake: Option<String>,
    /// What keys go to.
    pub(crate) mode: Mode,
    /// The picture stays as it is.
    pub(crate) paused: bool,
    /// The first row on the screen.
    pub(crate) first: usize,
    /// Why there is no newer picture.
    pub(crate) trouble: Option<String>,
    kept: Kept,
    all: Vec<Connection>,
}

/// Which rows are kept.
#[derive(Debug, Default)]
enum Kept {
    #[default]
    All,
    /// Those that an expression selects.
    Selected(Filter),
    /// Those with this text in them.
    Containing(String),
}

impl Kept {
    /// By what somebody typed: an expression when it begins with a word of the language, else a text.
    fn of(typed: &str) -> Result<Self, FilterError> {
        if typed.trim().is_empty() {
            Ok(Self::All)
        } else if Filter::is_meant(typed) {
            typed.parse().map(Self::Selected)
        } else {
            Ok(Self::Containing(typed.to_lowercase()))
        }
    }

    fn has(&self, connection: &Connection) -> bool {
        match self {
            Self::All => true,
            Self::Selected(filter) => filter.selects(connection),
            Self::Containing(text) => {
                COLUMNS.iter().any(|column| (column.text)(connection).to_lowercase().contains(text))
            }
        }
    }
}

/// Of the host, each second between the last two pictures.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Connections opened.
    pub(crate) opened: f64,
    /// Connections closed.
    pub(crate) closed: f64,
    /// Bytes sent.
    pub(crate) sent_bytes: f64,
    /// Bytes received.
    pub(crate) received_bytes: f64,
    /// Segments sent again, of a hundred with payload.
    pub(crate) retransmitted_percent: f64,
}

impl App {
    /// An empty view, sorted by `column`.
    pub(crate) fn new(column: &'static Column) -> Self {
        Self {
            rows: Vec::new(),
            status: None,
            rates: None,
            column,
            reversed: false,
            filter: String::new(),
            mistake: None,
            kept: Kept::All,
            mode: Mode::Rows,
            paused: false,
            first: 0,
            trouble: None,
            all: Vec::new(),
        }
    }

    /// The same with a filter from the beginning.
    pub(crate) fn filtered(mut self, typed: &str) -> Self {
        typed.clone_into(&mut self.filter);
        self.arrange();
        self
    }

    /// How many connections the next picture needs; none is all of them.
    pub(crate) fn limit(&self) -> Option<usize> {
        (self.filter.is_empty() && !self.reversed).then_some(MOST_ROWS)
    }

    /// Takes what happened.
    pub(crate) fn update(&mut self, input: Input) -> Effect {
        match input {
            Input::Key(key) if self.mode == Mode::Filter => self.type_filter(key),
            Input::Key(Key::Char('q')) => return Effect::Quit,
            Input::Key(key) => self.press(key),
            Input::Picture(picture) => {
                self.trouble = None;
                if !self.paused {
                    self.show(*picture);
                }
            }
            Input::Trouble(why) => self.trouble = Some(why),
        }
        Effect::Draw
    }

    fn show(&mut self, picture: Picture) {
        self.rates = self.status.as_ref().and_then(|before| Rates::between(before, &picture.status));
        self.status = Some(picture.status);
        self.all = picture.connections;
        self.arrange();
    }

    fn arrange(&mut self) {
        match Kept::of(&self.filter) {
            Ok(kept) => (self.kept, self.mistake) = (kept, None),
            Err(error) => self.mistake = Some(error.what().to_owned()),
        }
        self.rows = self.all.iter().filter(|c| self.kept.has(c)).cloned().collect();
        columns::sort(&mut self.rows, self.column, self.reversed);
        self.first = self.first.min(self.rows.len().saturating_sub(1));
    }

    fn press(&mut self, key: Key) {
        if self.mode == Mode::Help {
            self.mode = Mode::Rows;
            return;
        }
        let last = self.rows.len().saturating_sub(1);
        match key {
            Key::Char('?' | 'h') => self.mode = Mode::Help,
            Key::Char('p' | ' ') => self.paused = !self.paused,
            Key::Char('/') => self.mode = Mode::Filter,
            Key::Char('s') => self.sort_by_next(1),
            Key::Char('S') => self.sort_by_next(COLUMNS.len() - 1),
            Key::Char('r') => self.reversed = !self.reversed,
            Key::Escape => self.filter.clear(),
            Key::Up | Key::Char('k') => self.first = self.first.saturating_sub(1),
            Key::Down | Key::Char('j') => self.first = (self.first + 1).min(last),
            Key::PageUp => self.first = self.first.saturating_sub(PAGE),
            Key::PageDown => self.first = (self.first + PAGE).min(last),
            Key::Home => self.first = 0,
            Key::End => self.first = last,
            _ => {}
        }
        if matches!(key, Key::Char('s' | 'S' | 'r') | Key::Escape) {
            self.arrange();
        }
    }

    fn sort_by_next(&mut self, step: usize) {
        let now = COLUMNS.iter().position(|column| column.name == self.column.name).unwrap_or(0);
        self.column = COLUMNS.iter().cycle().nth(now + step).unwrap_or(self.column);
    }

    fn type_filter(&mut self, key: Key) {
        match key {
            Key::Char(c) => self.filter.push(c),
            Key::Backspace => drop(self.filter.pop()),
            Key::Enter => self.mode = Mode::Rows,
            Key::Escape => {
                self.mode = Mode::Rows;
                self.filter.clear();
            }
            _ => return,
        }
        self.first = 0;
        self.arrange();
    }
}

impl Rates {
    fn between(before: &Status, now: &Status) -> Option<Self> {
        let seconds = now.ktime_ns.checked_sub(before.ktime_ns).filter(|ns| *ns > 0)? as f64 / 1e9;
        let change = |of: fn(&Totals) -> u64| of(&now.totals).saturating_sub(of(&before.totals)) as f64;
        let segments = change(|totals| totals.sent_segments);
        let again = change(|totals| totals.retransmitted_segments.values().sum());
        Some(Self {
            opened: change(|totals| totals.opened) / seconds,
            closed: change(|totals| totals.closed.values().sum()) / seconds,
            sent_bytes: change(|totals| totals.sent_bytes) / seconds,
            received_bytes: change(|totals| totals.received_bytes) / seconds,
            retransmitted_percent: if segments > 0.0 { again / segments * 100.0 } else { 0.0 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection::tests::{busy, shown};
    use crate::api::status::tests::full;

    fn app_with(count: u64) -> App {
        let mut app = App::new(columns::find(columns::DEFAULT).unwrap());
        let connections = (0..count)
            .map(|cookie| {
                let mut record = busy(cookie);
                record.bytes_sent = cookie;
                record.key.remote_port = 1000 + cookie as u16;
                shown(&record)
            })
            .collect();
        app.update(Input::Picture(Box::new(Picture { status: full(), connections })));
        app
    }

    fn press(app: &mut App, keys: &str) -> Effect {
        keys.chars().map(|c| app.update(Input::Key(Key::Char(c)))).last().unwrap()
    }

    #[test]
    fn q_ends_unless_it_is_part_of_a_filter() {
        let mut app = app_with(1);
        assert_eq!(press(&mut app, "/q"), Effect::Draw);
        assert_eq!(app.filter, "q");
        app.update(Input::Key(Key::Enter));
        assert_eq!(press(&mut app, "q"), Effect::Quit);
    }

    #[test]
    fn a_filter_keeps_what_contains_it_and_escape_brings_all_back() {
        let mut app = app_with(20);
        assert_eq!(app.limit(), Some(MOST_ROWS));
        press(&mut app, "/:1007");
        assert_eq!((app.rows.len(), app.limit()), (1, None));
        app.update(Input::Key(Key::Backspace));
        assert_eq!(app.rows.len(), 10);
        app.update(Input::Key(Key::Escape));
        assert_eq!((app.rows.len(), app.mode), (20, Mode::Rows));
        press(&mut app, "/NGINX");
        assert_eq!(app.rows.len(), 20);
    }

    #[test]
    fn an_expression_selects_and_a_wrong_one_says_why() {
        let mut app = app_with(20).filtered("peer port 1007");
        assert_eq!((app.rows.len(), app.limit()), (1, None));
        press(&mut app, "/ or sent > 17");
        assert_eq!((app.rows.len(), app.mistake.is_some()), (1, true), "the last right one holds");
        press(&mut app, "B");
        assert_eq!((app.rows.len(), &app.mistake), (3, &None));
        app.update(Input::Key(Key::Escape));
        press(&mut app, "/peer prot");
        assert!(app.mistake.as_ref().is_some_and(|why| why.contains("`prot` is not an address")), "{:?}", app.mistake);
        app.update(Input::Key(Key::Escape));
        assert_eq!((app.rows.len(), app.mistake), (20, None));
    }

    #[test]
    fn sorting_goes_round_and_turns() {
        let mut app = app_with(3);
        let order = |app: &App| app.rows.iter().map(|c| c.cookie).collect::<Vec<_>>();
        assert_eq!(order(&app), [2, 1, 0]);
        press(&mut app, "r");
        assert_eq!(order(&app), [0, 1, 2]);
        press(&mut app, "rs");
        assert_eq!(app.column.name, "received");
        press(&mut app, "sS");
        assert_eq!(app.column.name, "received");
        press(&mut app, &"s".repeat(COLUMNS.len()));
        assert_eq!(app.column.name, "received");
    }

    #[test]
    fn a_paused_view_stays_and_trouble_is_shown_until_it_is_over() {
        let mut app = app_with(3);
        press(&mut app, "p");
        app.update(Input::Picture(Box::default()));
        assert_eq!(app.rows.len(), 3);
        app.update(Input::Trouble("gone".to_owned()));
        assert_eq!(app.trouble.as_deref(), Some("gone"));
        press(&mut app, "p");
        app.update(Input::Picture(Box::default()));
        assert_eq!((app.rows.len(), app.trouble), (0, None));
    }

    #[test]
    fn moving_stays_within_the_rows() {
        let mut app = app_with(15);
        for (key, first) in [
            (Key::Up, 0),
            (Key::Down, 1),
            (Key::PageDown, 11),
            (Key::PageDown, 14),
            (Key::PageUp, 4),
            (Key::End, 14),
            (Key::Home, 0),
        ] {
            app.update(Input::Key(key));
            assert_eq!(app.first, first, "{key:?}");
        }
        app.update(Input::Key(Key::End));
        app.update(Input::Picture(Box::default()));
        assert_eq!(app.first, 0);
    }

    #[test]
    fn rates_are_differences_by_time() {
        let (mut before, mut now) = (full(), full());
        (before.ktime_ns, now.ktime_ns) = (1_000_000_000, 3_000_000_000);
        now.totals.opened += 10;
        now.totals.sent_segments += 200;
        *now.totals.retransmitted_segments.get_mut("fast").unwrap() += 5;
        let rates = Rates::between(&before, &now).unwrap();
        assert!((rates.opened - 5.0).abs() < 1e-9 && (rates.retransmitted_percent - 2.5).abs() < 1e-9, "{rates:?}");
        assert_eq!(Rates::between(&now, &now), None);
    }
}
