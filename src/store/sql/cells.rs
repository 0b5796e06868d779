//! The cells of a result row, independent of the database driver.

use super::RowFault;

/// The value of one cell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::store) enum Cell<'a> {
    Null,
    /// An integer, or a boolean as 0 or 1.
    Number(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// A value of any other type, or text that is not UTF-8.
    Other,
}

impl<'a> Cell<'a> {
    /// Returns the number, or `None` for null. Sets `typed` to false for a value of another type.
    pub(super) const fn number(self, typed: &mut bool) -> Option<i64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Null => None,
            _ => {
                *typed = false;
                None
            }
        }
    }

    /// Returns the text, or `None` for null. Sets `typed` to false for a value of another type.
    pub(super) const fn text(self, typed: &mut bool) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null => None,
            _ => {
                *typed = false;
                None
            }
        }
    }

    /// Returns the bytes, or `None` for null. Sets `typed` to false for a value of another type.
    pub(super) const fn bytes(self, typed: &mut bool) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Null => None,
            _ => {
                *typed = false;
                None
            }
        }
    }
}

/// The cells of one result row, by column index.
///
/// The typed getters fail for null and for a value of another type. Their error message is "`what` is
/// damaged".
pub(in crate::store) trait Cells {
    /// Returns the cell of a column; [`Cell::Other`] if the column does not exist.
    fn cell(&self, column: usize) -> Cell<'_>;

    fn number(&self, column: usize, what: &str) -> Result<i64, RowFault> {
        match self.cell(column) {
            Cell::Number(number) => Ok(number),
            _ => Err(is_damaged(what)),
        }
    }

    fn text(&self, column: usize, what: &str) -> Result<&str, RowFault> {
        match self.cell(column) {
            Cell::Text(text) => Ok(text),
            _ => Err(is_damaged(what)),
        }
    }

    fn bytes(&self, column: usize, what: &str) -> Result<&[u8], RowFault> {
        match self.cell(column) {
            Cell::Bytes(bytes) => Ok(bytes),
            _ => Err(is_damaged(what)),
        }
    }

    /// Returns exactly `N` bytes. Another length is an error.
    fn exactly<const N: usize>(&self, column: usize, what: &str) -> Result<[u8; N], RowFault> {
        let bytes = self.bytes(column, what)?;
        bytes.try_into().map_err(|_| is_damaged(what))
    }

    /// Returns exactly `N` bytes, or `None` for null.
    fn exactly_or_null<const N: usize>(
        &self,
        column: usize,
        what: &str,
    ) -> Result<Option<[u8; N]>, RowFault> {
        match self.cell(column) {
            Cell::Null => Ok(None),
            _ => self.exactly(column, what).map(Some),
        }
    }
}

pub(super) fn is_damaged(what: &str) -> RowFault {
    RowFault::corrupt(format!("{what} is damaged"))
}
