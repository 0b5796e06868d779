//! SQLite's own check of a file, with its findings as sentences that name the table, the index or the page.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use super::fault::SqliteFault;
use super::rows::each;
use super::schema;
use crate::store::IntegrityReport;

/// Runs a `PRAGMA integrity_check`, and adds its findings to the report. Findings that a page or an index repeats for
/// each of its rows are one sentence.
pub(super) fn check_pages(
    conn: &Connection,
    pragma: &str,
    report: &mut IntegrityReport,
) -> Result<(), SqliteFault> {
    let names = schema::names_by_root(conn)?;
    let mut known = BTreeSet::new();
    each(conn, pragma, [], |row| {
        let text: String = row.get(0)?;
        for line in text.lines() {
            let Some(finding) = Finding::of(line, &names) else {
                continue;
            };
            if known.insert(finding.subject.clone()) {
                report.add(finding.sentence());
            }
        }
        Ok(true)
    })
}

/// A finding of SQLite about one subject.
#[derive(Debug, Eq, PartialEq)]
struct Finding {
    /// The damaged part of the file, or a whole sentence about it.
    subject: String,
    /// The end of the sentence. Empty if the subject is a sentence.
    end: &'static str,
    /// The words of SQLite, if they say more than the sentence.
    words: Option<String>,
}

impl Finding {
    /// Parses a line of the check. `None` for a line that names no fault.
    fn of(line: &str, names: &BTreeMap<i64, String>) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line == "ok" || line.starts_with("*** in database") {
            return None;
        }
        let found = Self::of_page(line, names).or_else(|| Self::of_index(line));
        let found = found.or_else(|| Self::of_row(line));
        Some(found.unwrap_or_else(|| match line {
            "database disk image is malformed" => Self::damaged("a page".to_owned(), None),
            line => Self::whole(format!("SQLite reports {line:?}")),
        }))
    }

    fn damaged(subject: String, words: Option<&str>) -> Self {
        // An operator cannot act on the number of an error.
        let words = words.filter(|words| !words.contains("error code"));
        Self {
            subject,
            end: " is damaged",
            words: words.map(str::to_owned),
        }
    }

    const fn whole(subject: String) -> Self {
        Self {
            subject,
            end: "",
            words: None,
        }
    }

    /// Parses a line about a page, such as `Tree ROOT page PAGE cell CELL: …`, or about the list of free pages.
    fn of_page(line: &str, names: &BTreeMap<i64, String>) -> Option<Self> {
        let (place, words) = line.split_once(": ").unwrap_or((line, line));
        if place.to_ascii_lowercase().ends_with("freelist") {
            let subject = "the list of free pages".to_owned();
            return Some(Self::damaged(subject, Some(words)));
        }
        let number_after = |word: &str| -> Option<i64> {
            let mut parts = place.split_whitespace();
            parts.find(|part| part.eq_ignore_ascii_case(word))?;
            parts.next()?.parse().ok()
        };
        let page = number_after("page")?;
        if words.ends_with("never used") {
            return Some(Self::whole("pages belong to no table".to_owned()));
        }
        let tree = number_after("tree").and_then(|root| names.get(&root));
        let subject = match tree {
            Some(name) => format!("page {page} of {name}"),
            None => format!("page {page}"),
        };
        Some(Self::damaged(subject, Some(words)))
    }

    /// Parses `… index NAME`.
    fn of_index(line: &str) -> Option<Self> {
        let (what, index) = line.rsplit_once(" index ")?;
        let what = match what {
            "wrong # of entries in" => "has more or fewer entries than its table has rows",
            "non-unique entry in" => "has a value twice",
            what if what.ends_with(" missing from") => "lacks rows of its table",
            what if what.ends_with(" differ from") => "differs from rows of its table",
            what if what.starts_with("rowid not at end-of-record") => "has damaged entries",
            _ => return None,
        };
        Some(Self::whole(format!("index {index} {what}")))
    }

    /// Parses a line about rows of a table or about values in a column.
    fn of_row(line: &str) -> Option<Self> {
        let of_column = |text: &str, what: &str| {
            let (table, column) = text.rsplit_once('.')?;
            let sentence = format!("column {column} of table {table} {what}");
            Some(Self::whole(sentence))
        };
        if let Some(column) = line.strip_prefix("NULL value in ") {
            return of_column(column, "lacks values");
        }
        if let Some((_, column)) = line.split_once(" value in ") {
            return of_column(column, "has values of another type");
        }
        if let Some(table) = line.strip_prefix("CHECK constraint failed in ") {
            return Some(Self::whole(format!("table {table} has impossible values")));
        }
        let table = line.strip_prefix("row not in PRIMARY KEY order for ")?;
        Some(Self::whole(format!("table {table} has rows out of order")))
    }

    fn sentence(&self) -> String {
        let Self {
            subject,
            end,
            words,
        } = self;
        match words {
            Some(words) => format!("{subject}{end} (SQLite: {words:?})"),
            None => format!("{subject}{end}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_of_sqlite_becomes_a_sentence_that_names_the_damaged_part() {
        let names = BTreeMap::from([(5, "table rows".to_owned())]);
        let sentence = |line| Finding::of(line, &names).map(|finding| finding.sentence());
        for line in ["ok", "", "*** in database main ***"] {
            assert_eq!(sentence(line), None);
        }
        for (line, expected) in [
            (
                "Tree 5 page 9: btreeInitPage() returns error code 11",
                "page 9 of table rows is damaged",
            ),
            (
                "Tree 5 page 9 cell 3: Rowid 7 out of order",
                "page 9 of table rows is damaged (SQLite: \"Rowid 7 out of order\")",
            ),
            (
                "Tree 6 page 9 right child: Child page depth differs",
                "page 9 is damaged (SQLite: \"Child page depth differs\")",
            ),
            (
                "Multiple uses for byte 7 of page 9",
                "page 9 is damaged (SQLite: \"Multiple uses for byte 7 of page 9\")",
            ),
            ("Page 4: never used", "pages belong to no table"),
            (
                "Freelist: 2nd reference to page 8",
                "the list of free pages is damaged (SQLite: \"2nd reference to page 8\")",
            ),
            (
                "non-unique entry in index rows_by_id",
                "index rows_by_id has a value twice",
            ),
            (
                "wrong # of entries in index rows_by_id",
                "index rows_by_id has more or fewer entries than its table has rows",
            ),
            (
                "row 12 missing from index rows_by_id",
                "index rows_by_id lacks rows of its table",
            ),
            (
                "row 12 values differ from index rows_by_id",
                "index rows_by_id differs from rows of its table",
            ),
            (
                "rowid not at end-of-record for row 1 of index rows_by_id",
                "index rows_by_id has damaged entries",
            ),
            (
                "NULL value in rows.body",
                "column body of table rows lacks values",
            ),
            (
                "non-BLOB value in rows.body",
                "column body of table rows has values of another type",
            ),
            (
                "CHECK constraint failed in store",
                "table store has impossible values",
            ),
            (
                "row not in PRIMARY KEY order for gone",
                "table gone has rows out of order",
            ),
            ("database disk image is malformed", "a page is damaged"),
            (
                "of a later version",
                "SQLite reports \"of a later version\"",
            ),
        ] {
            assert_eq!(sentence(line).as_deref(), Some(expected), "{line}");
        }
    }
}
