//! A recording as `top` shows it: snapshot by snapshot, forwards, and backwards by beginning anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::aggregate::snapshot::Snapshot;
use crate::api::resets::Resets;
use crate::api::service::services;
use crate::api::status::Status;
use crate::explain::Sight;
use crate::filter::Filter;
use crate::metrics::process::Process;
use crate::recording::{Recording, RecordingError};
use crate::replay::Playback;

use super::ask::{self, AskError, Focus, Page, Picture, Position, Question, Rows, Table};

/// A recording, at one of its snapshots.
pub(crate) struct Player {
    path: PathBuf,
    playback: Playback,
    at: u64,
    snapshot: Option<Arc<Snapshot>>,
    /// Earlier pictures for rates: the older is from 10 to 20 s old.
    past: [Option<Arc<Snapshot>>; 2],
    ended: bool,
}

/// Length of the window of rates, at least, once there is so much.
const WINDOW_NS: u64 = 10_000_000_000;

impl Player {
    /// Before the first snapshot.
    pub(crate) fn open(path: &Path) -> Result<Self, RecordingError> {
        let playback = Playback::of(Recording::open(path)?);
        Ok(Self { path: path.to_owned(), playback, at: 0, snapshot: None, past: [None, None], ended: false })
    }

    /// Goes to a snapshot, or to the last when there are fewer. What is before a break in the file can be looked at.
    fn go_to(&mut self, wanted: u64) -> Result<(), RecordingError> {
        if wanted < self.at {
            *self = Self::open(&self.path)?;
        }
        while self.at < wanted && !self.ended {
            match self.playback.next() {
                Ok(Some(snapshot)) => {
                    self.at += 1;
                    self.remember(&snapshot);
                    self.snapshot = Some(snapshot);
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn remember(&mut self, snapshot: &Arc<Snapshot>) {
        let [_, newer] = &self.past;
        if newer.as_ref().is_none_or(|newer| snapshot.ktime_ns.saturating_sub(newer.ktime_ns) >= WINDOW_NS) {
            self.past.rotate_left(1);
            let [_, newest] = &mut self.past;
            *newest = Some(Arc::clone(snapshot));
        }
    }

    /// What there was at the end, or where the file breaks off, and that it does.
    pub(super) fn last(&mut self, question: Question) -> Result<(Picture, Option<RecordingError>), AskError> {
        let broken = self.go_to(u64::MAX).err();
        Ok((self.picture(question)?, broken))
    }

    /// What there was at the snapshot that the question names.
    pub(super) fn answer(&mut self, question: Question) -> Result<Picture, AskError> {
        self.go_to(question.at.max(1))?;
        self.picture(question)
    }

    fn picture(&mut self, question: Question) -> Result<Picture, AskError> {
        let aggregator = self.playback.aggregator();
        let Some(snapshot) = &self.snapshot else {
            let (status, rows) = (Status::default(), Rows::None);
            return Ok(Picture {
                question,
                status,
                rows,
                focus: None,
                position: Some(Position { at: 0, ended: true }),
            });
        };
        let ticks = snapshot.facts.ticks_per_second;
        let rows = match &question.rows {
            None => Rows::None,
            Some((Table::Connections, order)) => {
                let listing = aggregator.listing(snapshot.ktime_ns);
                let (page, total) = listing.page(ticks, &order.selection()?);
                let rows = page.into_iter().map(|kept| listing.connection(&kept.record(), ticks)).collect();
                Rows::Connections(Page { rows, offset: order.offset, total })
            }
            Some((Table::Services, order)) => {
                let [older, newer] = &self.past;
                Rows::Services(order.page(services(snapshot, older.as_ref().or(newer.as_ref()).map(|s| &**s)))?)
            }
            Some((Table::Resets, order)) => {
                Rows::Resets(order.page(Resets::new(snapshot, &aggregator.resets()).newest)?)
            }
        };
        let focus = question.focus.map(|cookie| {
            let only = Filter::of_cookie(cookie);
            let explained = question.verdicts.then(|| {
                let now = aggregator.picture(snapshot.ktime_ns, snapshot.namespaces.clone());
                let sight = Sight { now, before: None, ticks_per_second: ticks };
                sight.connections(|record| record.cookie == cookie).into_iter().find(|e| ask::is_of(e, cookie))
            });
            let connection = aggregator.listing(snapshot.ktime_ns).connections(ticks, Some(&only)).pop();
            Focus { connection, explained: explained.flatten() }
        });
        let status = Status::new(snapshot, Process::default(), 0);
        let position = Some(Position { at: self.at, ended: self.ended });
        Ok(Picture { question, status, rows, focus, position })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::ask::{Kept, Order};
    use crate::top::columns::Row as _;

    fn question(table: Table, sort: &'static str, at: u64) -> Question {
        Question { rows: Some((table, Order::by(sort, Kept::All))), focus: None, verdicts: false, at }
    }

    fn player() -> Player {
        Player::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay/lossy_v4.twr")).unwrap()
    }

    #[test]
    fn a_recording_can_be_turned_back_and_is_the_same_again() {
        let mut player = player();
        let mut shown = |at| {
            let picture = player.answer(question(Table::Connections, "sent", at)).unwrap();
            let Rows::Connections(page) = picture.rows else { panic!("other rows") };
            (picture.position.unwrap(), picture.status.ktime_ns, page.rows)
        };
        let (first, last) = (shown(1), shown(u64::MAX));
        assert!(!first.0.ended && last.0.ended && last.1 > first.1, "{:?} {:?}", first.0, last.0);
        assert_eq!(shown(1), first);
        assert_eq!(shown(u64::MAX), last);
    }

    #[test]
    fn every_table_and_the_verdicts_are_there() {
        let mut player = player();
        let Rows::Connections(page) = player.answer(question(Table::Connections, "sent", 2)).unwrap().rows else {
            panic!("other rows")
        };
        let cookie = page.rows[0].id();
        let focus = Question { rows: None, focus: Some(cookie), verdicts: true, at: 2 };
        let focus = player.answer(focus).unwrap().focus.unwrap();
        assert_eq!(focus.connection.unwrap().cookie, cookie);
        assert!(!focus.explained.unwrap().verdicts.is_empty());
        let Rows::Services(page) = player.answer(question(Table::Services, "out", u64::MAX)).unwrap().rows else {
            panic!("other rows")
        };
        assert!(page.rows.iter().any(|service| service.totals.opened > 0) && page.total == page.rows.len());
        let Rows::Resets(page) = player.answer(question(Table::Resets, "ago", u64::MAX)).unwrap().rows else {
            panic!("other rows")
        };
        assert!(page.rows.is_sorted_by_key(|reset| reset.ago_ms));
    }

    #[test]
    fn a_recording_that_breaks_off_shows_what_there_was() {
        let folder = tempfile::tempdir().unwrap();
        let cut = folder.path().join("cut.twr");
        let whole = std::fs::read(player().path).unwrap();
        std::fs::write(&cut, &whole[..whole.len() - 3]).unwrap();
        let mut player = Player::open(&cut).unwrap();
        let (picture, broken) = player.last(question(Table::Connections, "sent", 1)).unwrap();
        assert!(picture.position.unwrap().ended && picture.status.ktime_ns > 0);
        assert!(broken.unwrap().to_string().contains("breaks off"));
    }
}
