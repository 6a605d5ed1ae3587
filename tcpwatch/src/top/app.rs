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
mod tests {
    use super::super::ask::Page;
    use super::*;
    use crate::api::Listing;
    use crate::api::connection::tests::{busy, shown};
    use crate::api::service;
    use crate::top::view::tests::answered;
    use std::sync::Arc;

    /// A daemon with so many connections, which answers what is asked.
    struct Daemon {
        listing: Listing,
        second: u64,
    }

    impl Daemon {
        fn with(count: u64) -> Self {
            let records = (0..count).map(|cookie| {
                let mut record = busy(cookie);
                record.bytes_sent = cookie;
                record.key.remote_port = 1000 + cookie as u16;
                Arc::new(record)
            });
            Self { listing: Listing { records: records.collect(), ..Listing::default() }, second: 0 }
        }

        fn answer(&mut self, app: &mut App) {
            self.second += 1;
            let question = app.question();
            let rows = match &question.rows {
                Some((Table::Connections, order)) => {
                    let (page, total) = self.listing.page(250, &order.selection().unwrap());
                    let rows = page.into_iter().map(|record| shown(record)).collect();
                    Rows::Connections(Page { rows, offset: order.offset, total })
                }
                Some((Table::Services, order)) => Rows::Services(order.page(service::tests::busy()).unwrap()),
                _ => Rows::None,
            };
            let focus = question.focus.map(|cookie| Focus {
                connection: self.listing.records.iter().find(|r| r.cookie == cookie).map(|r| shown(r)),
                explained: None,
            });
            let input = answered(app, self.second, rows, focus);
            assert_eq!(app.update(input), Effect::Draw);
        }

        /// Presses keys, and answers whatever is asked.
        fn press(&mut self, app: &mut App, keys: impl IntoIterator<Item = Key>) {
            for key in keys {
                if app.update(Input::Key(key)) == Effect::Ask {
                    self.answer(app);
                }
            }
        }

        fn type_in(&mut self, app: &mut App, keys: &str) {
            self.press(app, keys.chars().map(Key::Char));
        }
    }

    fn started(count: u64) -> (Daemon, App) {
        let (mut daemon, mut app) = (Daemon::with(count), App::new(Table::Connections, None).unwrap());
        app.update(Input::Size(80, 24));
        daemon.answer(&mut app);
        (daemon, app)
    }

    fn chosen(app: &App) -> u64 {
        app.connections.chosen().unwrap().cookie
    }

    #[test]
    fn q_ends_unless_it_is_part_of_a_filter() {
        let (_, mut app) = started(1);
        app.update(Input::Key(Key::Char('/')));
        app.update(Input::Key(Key::Char('q')));
        assert_eq!(app.connections.filter, "q");
        app.update(Input::Key(Key::Enter));
        assert_eq!(app.update(Input::Key(Key::Char('q'))), Effect::Quit);
    }

    #[test]
    fn a_filter_keeps_what_contains_it_and_escape_brings_all_back() {
        let (mut daemon, mut app) = started(20);
        daemon.type_in(&mut app, "/:1007");
        assert_eq!(app.connections.page.total, 1);
        daemon.press(&mut app, [Key::Backspace]);
        assert_eq!(app.connections.page.total, 10);
        daemon.press(&mut app, [Key::Escape]);
        assert_eq!((app.connections.page.total, &app.mode), (20, &Mode::Rows));
        daemon.type_in(&mut app, "/NGINX");
        assert_eq!(app.connections.page.total, 20);
    }

    #[test]
    fn an_expression_selects_and_a_wrong_one_says_why() {
        let (mut daemon, app) = started(20);
        let mut app = app.filtered("peer port 1007");
        daemon.answer(&mut app);
        assert_eq!(app.connections.page.total, 1);
        daemon.type_in(&mut app, "/ or sent > 17");
        let found = (app.connections.page.total, app.connections.mistake.is_some());
        assert_eq!(found, (1, true), "the last right one holds");
        daemon.type_in(&mut app, "B");
        assert_eq!((app.connections.page.total, &app.connections.mistake), (3, &None));
        daemon.press(&mut app, [Key::Escape]);
        daemon.type_in(&mut app, "/peer prot");
        let why = app.connections.mistake.clone();
        assert!(why.as_ref().is_some_and(|why| why.contains("`prot` is not an address")), "{why:?}");
    }

    #[test]
    fn sorting_goes_round_and_turns() {
        let (mut daemon, mut app) = started(3);
        let order = |app: &App| app.connections.page.rows.iter().map(|c| c.cookie).collect::<Vec<_>>();
        assert_eq!(order(&app), [2, 1, 0]);
        daemon.type_in(&mut app, "r");
        assert_eq!(order(&app), [0, 1, 2]);
        daemon.type_in(&mut app, "rs");
        assert_eq!(app.connections.column.name, "received");
        daemon.type_in(&mut app, "sS");
        assert_eq!(app.connections.column.name, "received");
        daemon.type_in(&mut app, &"s".repeat(Connection::COLUMNS.len()));
        assert_eq!(app.connections.column.name, "received");
    }

    #[test]
    fn a_paused_view_stays_but_shows_what_is_asked_of_it() {
        let (mut daemon, mut app) = started(3);
        daemon.type_in(&mut app, "p");
        assert_eq!(app.update(Input::Tick), Effect::Draw, "nothing is asked");
        daemon.listing = Daemon::with(1).listing;
        daemon.answer(&mut app);
        assert_eq!(app.connections.page.total, 3);
        app.update(Input::Trouble("gone".to_owned()));
        assert_eq!(app.trouble.as_deref(), Some("gone"));
        daemon.type_in(&mut app, "s");
        assert_eq!((app.connections.page.total, &app.trouble), (1, &None), "a new order");
        daemon.listing = Daemon::with(2).listing;
        daemon.type_in(&mut app, "p");
        assert_eq!(app.update(Input::Tick), Effect::Ask);
        daemon.answer(&mut app);
        assert_eq!(app.connections.page.total, 2);
    }

    #[test]
    fn an_answer_to_an_older_question_moves_no_rows() {
        let (mut daemon, mut app) = started(3);
        let old = answered(&app, 9, Rows::Connections(Page::default()), None);
        assert_eq!(app.update(Input::Key(Key::Char('r'))), Effect::Ask);
        app.update(old);
        assert_eq!(app.connections.page.total, 3);
        daemon.answer(&mut app);
        assert_eq!(chosen(&app), 0);
    }

    #[test]
    fn moving_stays_within_the_rows_and_the_chosen_one_stays_on_the_screen() {
        let (mut daemon, mut app) = started(1000);
        let rows = app.rows();
        for (key, at) in [
            (Key::Up, 0),
            (Key::Down, 1),
            (Key::PageDown, rows),
            (Key::End, 999),
            (Key::PageUp, 1000 - rows),
            (Key::Home, 0),
        ] {
            daemon.press(&mut app, [key]);
            assert_eq!(app.connections.selected, at, "{key:?}");
            assert_eq!(chosen(&app), 999 - at as u64, "{key:?}");
            assert!(app.connections.on_screen(rows).any(|(shown, _)| shown == at), "{key:?}");
            assert_eq!(app.connections.on_screen(rows).count(), rows, "{key:?}");
        }
    }

    #[test]
    fn the_chosen_row_stays_chosen_where_the_order_puts_it() {
        let (mut daemon, mut app) = started(50);
        daemon.press(&mut app, [Key::Down, Key::Down]);
        assert_eq!((chosen(&app), app.connections.selected), (47, 2));
        for record in &mut daemon.listing.records {
            let record = Arc::get_mut(record).unwrap();
            record.bytes_sent = if record.cookie == 47 { 1 } else { record.bytes_sent + 100 };
        }
        daemon.answer(&mut app);
        assert_eq!((chosen(&app), app.connections.selected), (47, 49));
        daemon.listing.records.retain(|record| record.cookie != 47);
        daemon.answer(&mut app);
        assert_eq!((chosen(&app), app.connections.selected), (0, 48), "who stands there now");
    }

    #[test]
    fn a_frozen_connection_stays_in_sight_after_its_end() {
        let (mut daemon, mut app) = started(500);
        daemon.type_in(&mut app, "f");
        daemon.press(&mut app, [Key::End]);
        let kept = app.kept.as_ref().unwrap();
        assert!(kept.connection.cookie == 499 && !kept.gone);
        daemon.listing.records.retain(|record| record.cookie != 499);
        daemon.answer(&mut app);
        assert!(app.kept.as_ref().unwrap().gone);
        daemon.type_in(&mut app, "f");
        assert!(app.kept.is_none() && app.frozen.is_none());
    }

    #[test]
    fn a_service_leads_to_its_connections_and_a_connection_to_its_detail() {
        let (mut daemon, mut app) = started(5);
        daemon.press(&mut app, [Key::Tab, Key::Down, Key::Enter]);
        let filter = app.connections.filter.clone();
        assert!(app.table == Table::Connections && filter.starts_with("direction "), "{filter}");
        assert!(app.connections.mistake.is_none(), "{:?}", app.connections.mistake);
        daemon.press(&mut app, [Key::Escape, Key::Down, Key::Enter]);
        assert_eq!(app.mode, Mode::Connection(3));
        let question = app.question();
        assert!(question.rows.is_none() && question.verdicts && question.focus == Some(3));
        daemon.answer(&mut app);
        assert!(app.history.of(3).len() > 1, "it was on the screen before");
        daemon.press(&mut app, [Key::Escape]);
        assert!(app.mode == Mode::Rows && app.kept.is_none());
    }

    #[test]
    fn the_mouse_sorts_and_chooses() {
        let (mut daemon, mut app) = started(9);
        let titles = view::header_rows(24);
        assert_eq!(app.update(Input::Click(1, titles)), Effect::Ask);
        daemon.answer(&mut app);
        assert_eq!((app.connections.column.name, app.connections.reversed), ("local", false));
        app.update(Input::Click(1, titles));
        assert!(app.connections.reversed);
        app.update(Input::Click(1, titles + 4));
        assert_eq!(app.connections.selected, 3);
        app.update(Input::Click(1, 0));
        app.update(Input::Click(1, 23));
    }

    #[test]
    fn a_recording_goes_on_by_itself_and_can_be_turned_back() {
        let (_, mut app) = started(1);
        let answer = |app: &mut App, at, ended| {
            let Input::Picture(mut picture) = answered(app, at, Rows::None, None) else { panic!("no picture") };
            picture.position = Some(Position { at, ended });
            app.update(Input::Picture(picture));
        };
        answer(&mut app, 1, false);
        assert_eq!((app.update(Input::Tick), app.question().at), (Effect::Ask, 2));
        answer(&mut app, 2, false);
        assert_eq!((app.update(Input::Key(Key::Right)), app.question().at), (Effect::Ask, 12));
        answer(&mut app, 7, true);
        assert_eq!((app.update(Input::Tick), app.question().at), (Effect::Draw, 7));
        assert_eq!((app.update(Input::Key(Key::Left)), app.question().at), (Effect::Ask, 1));
    }
}
