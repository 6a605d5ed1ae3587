//! The terminal: raw mode that is always left again, keys, signals, and the loop around them.

use std::io;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::client::Client;

use super::app::{App, Effect, Input, Key};
use super::view::{self, Theme};

/// How often the daemon is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Leaves the alternate screen and raw mode when it goes; a panic does so by the hook that `try_init` installs.
struct Screen(ratatui::DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        let _terminal_gone = ratatui::try_restore();
    }
}

/// What comes from the keyboard.
enum Typed {
    Key(Key),
    Quit,
    Redraw,
}

/// Shows the view until somebody ends it.
pub(super) async fn show(mut app: App, client: Client, colour: bool) -> io::Result<()> {
    let mut signals = mpsc::channel::<()>(1);
    for kind in [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()] {
        let (mut end, to) = (signal(kind)?, signals.0.clone());
        tokio::spawn(async move {
            end.recv().await;
            let _ending_already = to.send(()).await;
        });
    }
    let mut screen = Screen(ratatui::try_init()?);
    let mut keys = keyboard();
    let (ask, answers) = mpsc::channel(1);
    let (answered, mut news) = mpsc::channel(1);
    // Asking takes as long as it takes; keys are answered meanwhile.
    tokio::spawn(follow(client, answers, answered));
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        screen.0.draw(|frame| view::draw(frame, &app, Theme { colour }))?;
        let effect = tokio::select! {
            _ = signals.1.recv() => Effect::Quit,
            typed = keys.recv() => match typed {
                Some(Typed::Key(key)) => app.update(Input::Key(key)),
                Some(Typed::Redraw) => Effect::Draw,
                Some(Typed::Quit) | None => Effect::Quit,
            },
            Some(input) = news.recv() => app.update(input),
            _ = tick.tick() => {
                let _still_busy = ask.try_send((app.column.name, app.limit()));
                continue;
            }
        };
        if effect == Effect::Quit {
            return Ok(());
        }
    }
}

/// Asks the daemon whenever it is told to, by this column and for at most so many connections.
async fn follow(
    mut client: Client,
    mut asked: mpsc::Receiver<(&'static str, Option<usize>)>,
    answered: mpsc::Sender<Input>,
) {
    while let Some((column, limit)) = asked.recv().await {
        let input = match super::picture(&mut client, column, limit, None).await {
            Ok(picture) => Input::Picture(Box::new(picture)),
            Err(error) => Input::Trouble(error.to_string()),
        };
        if answered.send(input).await.is_err() {
            return;
        }
    }
}

/// Reads keys on a thread of its own, for reading them blocks; it ends with the process.
fn keyboard() -> mpsc::Receiver<Typed> {
    let (typed, keys) = mpsc::channel(16);
    std::thread::spawn(move || {
        // A terminal that cannot be read any more ends the view: the channel closes.
        while let Ok(event) = event::read() {
            let meant = match event {
                Event::Key(key) if key.kind != KeyEventKind::Release => key_of(key),
                Event::Resize(..) => Some(Typed::Redraw),
                _ => None,
            };
            if let Some(meant) = meant
                && typed.blocking_send(meant).is_err()
            {
                return;
            }
        }
    });
    keys
}

fn key_of(key: KeyEvent) -> Option<Typed> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Some(Typed::Quit),
            KeyCode::Char('l') => Some(Typed::Redraw),
            _ => None,
        };
    }
    Some(Typed::Key(match key.code {
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    }))
}
