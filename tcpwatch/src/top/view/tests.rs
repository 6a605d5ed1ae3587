//! Golden frames: what is on the screen, at several sizes.

use std::net::Ipv6Addr;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Modifier;

use super::*;
use crate::api::connection::Connection;
use crate::api::connection::tests::{busy, shown};
use crate::api::status::Status;
use crate::api::status::tests::full;
use crate::explain::Explained;
use crate::top::app::{Effect, Input, Key};
use crate::top::ask::{Focus, Page, Picture, Position, Rows};

/// An answer to what `app` asks, at a second.
pub(in crate::top) fn answered(app: &App, second: u64, rows: Rows, focus: Option<Focus>) -> Input {
    let mut status = full();
    status.ktime_ns = second * 1_000_000_000;
    status.totals.sent_bytes += 1_250_000 * second * second;
    status.totals.sent_segments += 1000 * second;
    status.storms.clear();
    *status.totals.retransmitted_segments.get_mut("fast").unwrap() += second * (second % 4);
    status.own.cpu_seconds = Some(1.0 + second as f64 * 0.0007);
    Input::Picture(Box::new(Picture { question: app.question(), status, rows, focus, position: None }))
}

fn page<T>(rows: Vec<T>) -> Page<T> {
    Page { total: rows.len(), rows, offset: 0 }
}

fn app_with(connections: &[Connection]) -> App {
    let mut app = App::new(Table::Connections, None).unwrap();
    for second in 1..=3 {
        let input = answered(&app, second, Rows::Connections(page(connections.to_vec())), None);
        app.update(input);
    }
    app
}

fn frame(app: &mut App, width: u16, height: u16) -> String {
    app.update(Input::Size(width, height));
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app, Theme { colour: true })).unwrap();
    let buffer = terminal.backend().buffer();
    let rows = buffer.content().chunks(usize::from(width));
    rows.map(|cells| cells.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned() + "\n")
        .collect()
}

fn golden(name: &str, app: &mut App) {
    for (width, height) in [(80, 24), (120, 40), (200, 50)] {
        crate::golden::check(&format!("tests/golden/top/{name}_{width}x{height}.txt"), &frame(app, width, height));
    }
}

fn many() -> Vec<Connection> {
    (0..60)
        .map(|i| {
            let mut record = busy(i);
            record.bytes_sent = (60 - i) * 100_000;
            record.key.remote_port = 40_000 + i as u16;
            record.state = 1 + (i % 9) as u8;
            shown(&record)
        })
        .collect()
}

fn press(app: &mut App, keys: &str) -> Effect {
    keys.chars().map(|c| app.update(Input::Key(Key::Char(c)))).last().unwrap()
}

#[test]
fn frames_are_as_agreed() {
    golden("waiting", &mut App::new(Table::Connections, None).unwrap());
    golden("empty", &mut app_with(&[]));
    golden("one", &mut app_with(&[shown(&busy(1))]));
    golden("many", &mut app_with(&many()));
    let mut record = busy(1);
    record.key.ip_version = 6;
    let address: Ipv6Addr = "2001:db8:1234:5678:9abc:def0:1234:5678".parse().unwrap();
    (record.key.local, record.key.remote) = (address.octets(), address.octets());
    record.comm = *b"a-very-long-name";
    let mut hostile = record;
    (hostile.cookie, hostile.comm) = (2, *b"\x1b[2Jx\r\n\xe2\x80\xae\xff\x07xyz!");
    hostile.bytes_sent = u64::MAX;
    (hostile.srtt_us, hostile.snd_cwnd, hostile.total_retrans) = (u32::MAX - 1, u32::MAX, u32::MAX);
    golden("ipv6_and_long_names", &mut app_with(&[shown(&record), shown(&hostile)]));
}

#[test]
fn services_and_resets_have_tables_of_their_own() {
    let mut app = app_with(&[]);
    press(&mut app, "2");
    let input = answered(&app, 4, Rows::Services(page(crate::api::service::tests::busy())), None);
    app.update(input);
    golden("services", &mut app);
    app.update(Input::Key(Key::Tab));
    let input = answered(&app, 5, Rows::Resets(page(crate::resets::view::tests::resets().newest)), None);
    app.update(input);
    golden("resets", &mut app);
    app.update(Input::Key(Key::Enter));
    golden("reset", &mut app);
}

#[test]
fn what_the_keys_do_is_seen() {
    let mut app = app_with(&many());
    press(&mut app, "/prot 443");
    golden("filter", &mut app);
    app.update(Input::Key(Key::Escape));
    press(&mut app, "fjjp");
    app.update(Input::Trouble("the daemon\nbroke off".to_owned()));
    golden("paused_in_trouble", &mut app);
    press(&mut app, "?");
    golden("help", &mut app);
    assert_eq!(app.update(Input::Key(Key::Down)), Effect::Draw);
    assert!(app.mode == Mode::Help && app.scrolled == 1);
}

#[test]
fn a_connection_is_shown_over_time_with_its_verdicts() {
    let mut app = app_with(&[shown(&busy(1))]);
    app.update(Input::Key(Key::Enter));
    let lines = crate::explain::tests::lines();
    let explained: Explained = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    for second in 4..60_u64 {
        let mut record = busy(1);
        record.snd_cwnd = 10 + (second % 16) as u32 * 4;
        record.srtt_us = 30_000 + (second as u32 % 7) * 5_000;
        (record.total_retrans, record.bytes_sent) = ((second / 9) as u32, second * second * 10_000);
        let focus = Focus { connection: Some(shown(&record)), explained: Some(explained.clone()) };
        let input = answered(&app, second, Rows::None, Some(focus));
        app.update(input);
    }
    golden("connection", &mut app);
    let input = answered(&app, 60, Rows::None, Some(Focus::default()));
    app.update(input);
    golden("connection_gone", &mut app);
}

#[test]
fn a_recording_tells_where_it_is_and_a_storm_that_there_is_one() {
    let mut app = app_with(&many());
    let Input::Picture(mut picture) = answered(&app, 4, Rows::Connections(page(many())), None) else { panic!("none") };
    picture.position = Some(Position { at: 17, ended: true });
    picture.status.storms = Status { ..full() }.storms;
    assert!(!picture.status.storms.is_empty(), "the sample has a storm");
    app.update(Input::Picture(picture));
    golden("storm_in_a_recording", &mut app);
}

#[test]
fn without_colours_there_are_none() {
    let mut app = app_with(&many());
    for keys in ["", "\n"] {
        if !keys.is_empty() {
            app.update(Input::Key(Key::Enter));
        }
        let mut terminal = Terminal::new(TestBackend::new(120, 40)).unwrap();
        terminal.draw(|frame| draw(frame, &app, Theme { colour: false })).unwrap();
        let cells = terminal.backend().buffer().content();
        assert!(cells.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
        assert!(cells.iter().any(|cell| cell.modifier.contains(Modifier::BOLD)));
    }
}

#[test]
fn any_size_can_be_drawn() {
    let mut app = app_with(&many());
    let reset = crate::resets::view::tests::resets().newest.remove(0);
    for mode in [Mode::Rows, Mode::Filter, Mode::Help, Mode::Connection(0), Mode::Reset(Box::new(reset))] {
        app.mode = mode;
        for (width, height) in [(1, 1), (2, 3), (10, 4), (5, 9), (79, 23), (300, 2), (20, 200), (400, 100)] {
            frame(&mut app, width, height);
        }
    }
}
