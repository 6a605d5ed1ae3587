//! The terminal: raw mode that is always left again, keys, signals, and the loop around them.

use std::io;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::crossterm::event::{
    self, DisableMouseCapture, EnableMouseCapture, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton,
    MouseEventKind,
};
use ratatui::crossterm::execute;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::app::{App, Effect, Input, Key};
use super::ask::{Question, Source};
use super::view::{self, Theme};

/// How often the daemon is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Leaves the alternate screen and raw mode when it goes; a panic anywhere does so by the hook that `try_init` installs.
struct Screen {
    terminal: ratatui::DefaultTerminal,
    mouse: bool,
    /// A panic has given the terminal back, and says why on it: it is not touched any more.
    lost: Arc<AtomicBool>,
}

impl Screen {
    /// Takes the terminal. A panic anywhere, which gives it back, ends the view by `end`.
    fn take(end: mpsc::Sender<End>) -> io::Result<Self> {
        let (before, lost) = (panic::take_hook(), Arc::<AtomicBool>::default());
        let told = Arc::clone(&lost);
        panic::set_hook(Box::new(move |info| {
            told.store(true, Ordering::Release);
            let _ending_already = end.try_send(End::Panic);
            before(info);
        }));
        Ok(Self { terminal: ratatui::try_init()?, mouse: false, lost })
    }

    fn draw(&mut self, app: &App, theme: Theme) -> io::Result<()> {
        if self.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.mouse != app.mouse {
            self.mouse = app.mouse;
            let out = self.terminal.backend_mut();
            if self.mouse { execute!(out, EnableMouseCapture) } else { execute!(out, DisableMouseCapture) }?;
        }
        self.terminal.draw(|frame| view::draw(frame, app, theme)).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.lost.load(Ordering::Acquire) {
            return;
        }
        if self.mouse {
            let _terminal_gone = execute!(self.terminal.backend_mut(), DisableMouseCapture);
        }
        let _terminal_gone = ratatui::try_restore();
    }
}

/// Why the view ends before its user wants that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Signal,
    Panic,
}

/// What comes from the keyboard.
enum Typed {
    Input(Input),
    Quit,
    Redraw,
}

/// Shows the view until somebody ends it.
pub(super) async fn show(mut app: App, source: Source, colour: bool) -> io::Result<()> {
    let (end, mut ends) = mpsc::channel(1);
    for kind in [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()] {
        let (mut came, end) = (signal(kind)?, end.clone());
        tokio::spawn(async move {
            came.recv().await;
            let _ending_already = end.send(End::Signal).await;
        });
    }
    let mut screen = Screen::take(end)?;
    let (width, height) = ratatui::crossterm::terminal::size()?;
    app.update(Input::Size(width, height));
    let mut keys = keyboard();
    let (ask, questions) = watch::channel(app.question());
    let (answered, mut news) = mpsc::channel(1);
    // Asking takes as long as it takes; keys are answered meanwhile.
    tokio::spawn(follow(source, questions, answered));
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + INTERVAL, INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        screen.draw(&app, Theme { colour })?;
        let effect = tokio::select! {
            Some(end) = ends.recv() => match end {
                End::Signal => Effect::Quit,
                End::Panic => return Err(io::Error::other("a mistake of tcpwatch; what it says is above")),
            },
            typed = keys.recv() => match typed {
                Some(Typed::Input(input)) => app.update(input),
                Some(Typed::Redraw) => {
                    screen.terminal.clear()?;
                    Effect::Draw
                }
                Some(Typed::Quit) | None => Effect::Quit,
            },
            Some(input) = news.recv() => app.update(input),
            _ = tick.tick() => app.update(Input::Tick),
        };
        match effect {
            Effect::Quit => return Ok(()),
            Effect::Ask => drop(ask.send_replace(app.question())),
            Effect::Draw => {}
        }
    }
}

/// Asks whenever there is a question; of those that came meanwhile, the newest.
async fn follow(mut source: Source, mut questions: watch::Receiver<Question>, answered: mpsc::Sender<Input>) {
    questions.mark_changed();
    while questions.changed().await.is_ok() {
        let question = questions.borrow_and_update().clone();
        let input = match source.answer(question).await {
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
            if let Some(meant) = meant(&event)
                && typed.blocking_send(meant).is_err()
            {
                return;
            }
        }
    });
    keys
}

fn meant(event: &Event) -> Option<Typed> {
    let input = match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => return key_of(*key),
        Event::Resize(width, height) => Input::Size(*width, *height),
        Event::Mouse(mouse) => match mouse.kind {
            MouseEventKind::Down(MouseButton::Left) => Input::Click(mouse.column, mouse.row),
            MouseEventKind::ScrollUp => Input::Key(Key::Up),
            MouseEventKind::ScrollDown => Input::Key(Key::Down),
            _ => return None,
        },
        _ => return None,
    };
    Some(Typed::Input(input))
}

fn key_of(key: KeyEvent) -> Option<Typed> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Some(Typed::Quit),
            KeyCode::Char('l') => Some(Typed::Redraw),
            _ => None,
        };
    }
    Some(Typed::Input(Input::Key(match key.code {
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::top::ask::Table;
    use tcpwatch_lab::Pty;

    const PLAY: &str = "TCPWATCH_TEST_PANIC";

    /// Takes its terminal and panics, here or in another thread.
    fn panic_with_the_terminal_in_its_hands(place: &str) {
        let (end, mut ends) = mpsc::channel(1);
        let mut screen = Screen::take(end).unwrap();
        let app = App::new(Table::Connections, None).unwrap();
        screen.draw(&app, Theme { colour: true }).unwrap();
        assert!(place != "here", "on purpose");
        std::thread::spawn(|| panic!("on purpose")).join().unwrap_err();
        assert_eq!(ends.try_recv(), Ok(End::Panic));
    }

    /// Starts itself again, with a terminal of its own.
    #[test]
    fn a_panic_gives_the_terminal_back() {
        if let Ok(place) = std::env::var(PLAY) {
            return panic_with_the_terminal_in_its_hands(&place);
        }
        for place in ["here", "elsewhere"] {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--nocapture", "--exact"]);
            command.arg(concat!(module_path!(), "::a_panic_gives_the_terminal_back").split_once("::").unwrap().1);
            command.env(PLAY, place);
            let pty = Pty::spawn(&command, 80, 24).unwrap();
            pty.wait_for("on purpose", Duration::from_secs(60)).unwrap();
            let output = pty.end(Duration::from_secs(60)).unwrap();
            let text = output.text;
            let left =
                text.rfind("\x1b[?1049l").unwrap_or_else(|| panic!("{place}: the screen was not left: {text:?}"));
            assert!(left < text.rfind("on purpose").unwrap(), "{place}: said where nobody sees it: {text:?}");
            assert!(output.as_before, "{place}: the terminal is not as it was: {text:?}");
        }
    }
}
