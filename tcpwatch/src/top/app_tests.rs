//! The view as a state machine, beside a daemon that answers what it asks.

use super::super::ask::Page;
use super::*;
use crate::aggregate::kept::Kept;
use crate::api::Listing;
use crate::api::connection::tests::{busy, shown};
use crate::api::service;
use crate::top::view::tests::answered;

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
            Kept::new(&record)
        });
        Self { listing: Listing { records: records.collect(), ..Listing::default() }, second: 0 }
    }

    fn answer(&mut self, app: &mut App) {
        self.second += 1;
        let question = app.question();
        let rows = match &question.rows {
            Some((Table::Connections, order)) => {
                let (page, total) = self.listing.page(250, &order.selection().unwrap());
                let rows = page.into_iter().map(|kept| shown(&kept.record())).collect();
                Rows::Connections(Page { rows, offset: order.offset, total })
            }
            Some((Table::Services, order)) => Rows::Services(order.page(service::tests::busy()).unwrap()),
            _ => Rows::None,
        };
        let focus = question.focus.map(|cookie| Focus {
            connection: self
                .listing
                .records
                .iter()
                .find(|kept| kept.cookie == cookie)
                .map(|kept| shown(&kept.record())),
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
    for kept in &mut daemon.listing.records {
        let mut record = kept.record();
        record.bytes_sent = if record.cookie == 47 { 1 } else { record.bytes_sent + 100 };
        *kept = Kept::new(&record);
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
