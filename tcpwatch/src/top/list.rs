//! One of the tables as the user has arranged it: its order, its filter, and which row is chosen.

use super::app::Key;
use super::ask::{Kept, Order, Page};
use super::columns::{Column, NoColumn, Row, find};

/// Rows are asked for in steps of so many: a key that is held down does not ask anew for each row.
const STEP: usize = 100;

/// A table.
#[derive(Debug)]
pub(crate) struct List<T: Row> {
    /// The rows around those on the screen.
    pub(crate) page: Page<T>,
    /// Sorted by.
    pub(crate) column: &'static Column<T>,
    /// From the other end.
    pub(crate) reversed: bool,
    /// What is typed as a filter.
    pub(crate) filter: String,
    /// What is wrong with it as an expression; the rows are those of the last one that was right.
    pub(crate) mistake: Option<String>,
    kept: Kept,
    /// The first row on the screen, of all.
    pub(crate) first: usize,
    /// The chosen row, of all.
    pub(crate) selected: usize,
    /// The chosen row is this one, wherever it goes; none while nobody has moved.
    followed: Option<T::Id>,
}

impl<T: Row> List<T> {
    /// Sorted by the column of this name.
    pub(crate) fn by(name: &str) -> Result<Self, NoColumn> {
        Ok(Self {
            page: Page::default(),
            column: find(name)?,
            reversed: false,
            filter: String::new(),
            mistake: None,
            kept: Kept::All,
            first: 0,
            selected: 0,
            followed: None,
        })
    }

    /// Row number `at` of all, when it is among those at hand.
    pub(crate) fn row(&self, at: usize) -> Option<&T> {
        self.page.rows.get(at.checked_sub(self.page.offset)?)
    }

    /// The chosen row.
    pub(crate) fn chosen(&self) -> Option<&T> {
        self.row(self.selected)
    }

    /// The rows on a screen of so many.
    pub(crate) fn on_screen(&self, rows: usize) -> impl Iterator<Item = (usize, &T)> {
        (self.first..self.first + rows).filter_map(|at| Some((at, self.row(at)?)))
    }

    /// Takes newer rows for a screen of so many.
    pub(crate) fn take(&mut self, page: Page<T>, rows: usize) {
        self.page = page;
        let found = self.followed.as_ref().and_then(|id| self.page.rows.iter().position(|row| row.id() == *id));
        if let Some(at) = found {
            let line = self.selected.saturating_sub(self.first);
            self.selected = self.page.offset + at;
            self.first = self.selected.saturating_sub(line);
        }
        self.settle(rows);
        if self.followed.is_some() && found.is_none() {
            // It is gone, or far away: who has taken its place is chosen.
            self.followed = self.chosen().map(Row::id);
        }
    }

    /// Keeps the chosen row among all, and on the screen.
    fn settle(&mut self, rows: usize) {
        let last = self.page.total.saturating_sub(1);
        self.selected = self.selected.min(last);
        let lowest = (self.selected + 1).saturating_sub(rows.max(1));
        self.first = self.first.clamp(lowest, self.selected).min((last + 1).saturating_sub(rows.max(1)));
    }

    /// Chooses the row that is so many lines from the top of the screen.
    pub(crate) fn choose_line(&mut self, line: usize, rows: usize) {
        self.choose(self.first + line, rows);
    }

    fn choose(&mut self, at: usize, rows: usize) {
        self.selected = at;
        self.settle(rows);
        self.followed = self.chosen().map(Row::id);
    }
}

/// What keys do to a table, whatever is in it.
pub(crate) trait Arrange {
    /// What is to be asked for, for a screen of so many rows.
    fn order(&self, rows: usize) -> Order;
    /// What is typed as a filter.
    fn typed(&mut self) -> &mut String;
    /// Takes up what is typed.
    fn refilter(&mut self);
    /// Sorts by the next column to the right, or to the left; round and round.
    fn sort_by_next(&mut self, to_the_left: bool);
    /// Sorts by the column that is at `x` on a terminal of that width.
    fn sort_at(&mut self, x: u16, width: u16);
    /// Sorts from the other end.
    fn reverse(&mut self);
    /// Moves on a screen of so many rows; false when the key is none of these.
    fn go(&mut self, key: Key, rows: usize) -> bool;
    /// Chooses a line of the screen.
    fn point(&mut self, line: usize, rows: usize);
}

impl<T: Row> Arrange for List<T> {
    fn order(&self, rows: usize) -> Order {
        let offset = (self.first / STEP).saturating_sub(1) * STEP;
        let (sort, reversed, kept) = (self.column.name, self.reversed, self.kept.clone());
        Order { sort, reversed, kept, offset, limit: 3 * STEP + rows.div_ceil(STEP) * STEP }
    }

    fn typed(&mut self) -> &mut String {
        &mut self.filter
    }

    fn refilter(&mut self) {
        match Kept::of(&self.filter) {
            Ok(kept) => (self.kept, self.mistake) = (kept, None),
            Err(error) => self.mistake = Some(error.what().to_owned()),
        }
        (self.first, self.selected, self.followed) = (0, 0, None);
    }

    fn sort_by_next(&mut self, to_the_left: bool) {
        let now = T::COLUMNS.iter().position(|column| column.name == self.column.name).unwrap_or(0);
        let step = if to_the_left { T::COLUMNS.len() - 1 } else { 1 };
        self.column = T::COLUMNS.iter().cycle().nth(now + step).unwrap_or(self.column);
    }

    fn sort_at(&mut self, x: u16, width: u16) {
        let mut end = 0;
        for (column, width) in super::columns::fitting::<T>(width) {
            end += width + 1;
            if x < end {
                self.reversed = column.name == self.column.name && !self.reversed;
                self.column = column;
                return;
            }
        }
    }

    fn reverse(&mut self) {
        self.reversed = !self.reversed;
    }

    fn go(&mut self, key: Key, rows: usize) -> bool {
        let page = rows.saturating_sub(1).max(1);
        let to = match key {
            Key::Up | Key::Char('k') => self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected + 1,
            Key::PageUp => self.selected.saturating_sub(page),
            Key::PageDown => self.selected + page,
            Key::Home | Key::Char('g') => 0,
            Key::End | Key::Char('G') => usize::MAX,
            _ => return false,
        };
        self.choose(to, rows);
        if to == 0 {
            // At the top one wants to see who is there.
            self.followed = None;
        }
        true
    }

    fn point(&mut self, line: usize, rows: usize) {
        self.choose_line(line, rows);
    }
}
