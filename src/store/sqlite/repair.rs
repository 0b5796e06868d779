//! Opens a damaged file, to check it or to save its rows. If the header or the definitions of tables are damaged,
//! repairs them in a copy of the file.
//!
//! A store never uses another header, page size or definition than those of a new file. So a copy gets those, and only
//! the rows are read from the damaged file. The copy serves no other purpose: it has no list of free pages.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::access::with_end;
use super::fault::{OpenError, SqliteFault};
use super::file::{DraftStore, StoreFile};
use super::schema::{self, Definitions};
use super::unlocked::ReadConnection;

/// 4096 bytes: the size of a page, which SQLite has used for new files since 3.12.
const PAGE: u16 = 4096;

/// An open damaged file.
pub(super) struct DamagedFile {
    pub(super) opened: ReadConnection,
    /// The repaired copy that `opened` reads. `None` if it reads the file itself. The connection closes first.
    copy: Option<DraftStore>,
    /// The parts that were repaired in the copy.
    pub(super) repaired: Vec<String>,
}

impl DamagedFile {
    /// Returns whether the connection reads a repaired copy.
    pub(super) const fn is_copy(&self) -> bool {
        self.copy.is_some()
    }

    /// Fails if a process changed the file during the reads.
    pub(super) fn check_unchanged(&self, file: &StoreFile) -> Result<(), OpenError> {
        match self.is_copy() {
            true => Ok(()),
            false => self.opened.check_unchanged(file),
        }
    }
}

impl StoreFile {
    /// Opens a file that may be damaged. If its header or its definitions are damaged, opens a repaired copy, for
    /// which `draft` creates the file. No process may write the file meanwhile.
    pub(super) fn open_damaged(
        &self,
        draft: impl FnOnce() -> Result<DraftStore, OpenError>,
    ) -> Result<DamagedFile, OpenError> {
        self.check_length()?;
        match self.open_whole() {
            Ok(opened) => Ok(DamagedFile {
                opened,
                copy: None,
                repaired: Vec::new(),
            }),
            Err(OpenError::Corrupt { .. } | OpenError::Foreign { .. }) => {
                let copy = draft()?;
                let (opened, repaired) = self.repair_copy(&copy.path)?;
                Ok(DamagedFile {
                    opened,
                    copy: Some(copy),
                    repaired,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a file whose header and definitions are undamaged.
    fn open_whole(&self) -> Result<ReadConnection, OpenError> {
        let fail = |fault: SqliteFault| OpenError::of(&self.path, fault);
        // A tolerant connection overlooks some damage of the header.
        if let Err(error @ OpenError::Corrupt { .. }) = self.open_to_read() {
            return Err(error);
        }
        let opened = self.open_tolerant()?;
        let conn = &opened.conn;
        let number = |name| -> Result<i64, SqliteFault> {
            Ok(conn.pragma_query_value(None, name, |row| row.get(0))?)
        };
        let read = || -> Result<_, SqliteFault> {
            let size = (number("page_size")?, number("page_count")?);
            let is_store = schema::application(conn)? == schema::APPLICATION_ID;
            Ok((is_store, size, schema::definitions(conn, |_| None)?))
        };
        let (is_store, (page, pages), definitions) = read().map_err(fail)?;
        let len = self.len()?;
        let is_cut = self.log_bytes() == 0 && pages.unsigned_abs() * u64::from(PAGE) < len;
        match is_store && page == i64::from(PAGE) && !is_cut && definitions.damaged().is_empty() {
            true => Ok(opened),
            false => Err(fail(SqliteFault::Corrupt(
                "its header or a definition is damaged".to_owned(),
            ))),
        }
    }

    fn len(&self) -> Result<u64, OpenError> {
        let meta = std::fs::metadata(&self.path);
        Ok(meta
            .map_err(|error| OpenError::io(&self.path, error))?
            .len())
    }

    /// Connects to a file. Reads a table even if another table or index is damaged.
    fn open_tolerant(&self) -> Result<ReadConnection, OpenError> {
        let opened = ReadConnection::connect(self)?;
        let conn = &opened.conn;
        let tolerate = || -> Result<(), SqliteFault> {
            conn.pragma_update(None, "cell_size_check", false)?;
            conn.pragma_update(None, "writable_schema", true)?;
            Ok(conn.pragma_update(None, "query_only", true)?)
        };
        tolerate().map_err(|fault| OpenError::of(&self.path, fault))?;
        Ok(opened)
    }

    /// Copies the file to `to`, repairs the copy, and opens it. Also returns the parts that were damaged.
    fn repair_copy(&self, to: &Path) -> Result<(ReadConnection, Vec<String>), OpenError> {
        let copy = Self {
            path: to.to_owned(),
            ..self.clone()
        };
        let mut has_log = false;
        let mut copied = || -> io::Result<bool> {
            for end in ["", "-wal", "-journal"] {
                let mut from = match File::open(with_end(&self.path, end)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    opened => opened?,
                };
                let len = io::copy(&mut from, &mut File::create(with_end(to, end))?)?;
                has_log |= end == "-wal" && len > 0;
            }
            write_header(to, has_log)
        };
        let whole_header = copied().map_err(|error| OpenError::io(&self.path, error))?;
        let definitions = copy.definitions(has_log)?;
        let fail = |fault: SqliteFault| OpenError::of(&self.path, fault);
        let cleared = write_header(to, false).and_then(|_| remove_definitions(to));
        cleared.map_err(|error| OpenError::io(&self.path, error))?;
        let empty = copy.open_tolerant()?;
        let define = || -> Result<(), SqliteFault> {
            empty.conn.pragma_update(None, "query_only", false)?;
            schema::define(&empty.conn, &definitions)
        };
        define().map_err(fail)?;
        drop(empty);
        let mut damaged = Vec::new();
        damaged.extend(definitions.damaged());
        // A file that needs a copy has a damaged header, even if none of the fixed bytes differs.
        if !whole_header || damaged.is_empty() {
            damaged.insert(0, "the header of the file is damaged".to_owned());
        }
        Ok((copy.open_tolerant()?, damaged))
    }

    /// Reads the definitions of a copy. First moves the commits of its log into its main file, because the log may
    /// have newer pages.
    fn definitions(&self, has_log: bool) -> Result<Definitions, OpenError> {
        let opened = self.open_tolerant()?;
        let read = || {
            if has_log {
                opened.conn.pragma_update(None, "query_only", false)?;
                Self::checkpoint(&opened.conn)?;
            }
            schema::definitions(&opened.conn, |root| first_byte(&self.path, root).ok())
        };
        read().map_err(|fault| OpenError::of(&self.path, fault))
    }
}

/// Writes the header of a new store into a file, and returns whether the file had it already. The number of pages, the
/// list of free pages and the counters of changes are zero: SQLite then reads all pages, and uses no free page.
fn write_header(path: &Path, has_log: bool) -> io::Result<bool> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut before = [0; 100];
    file.read_exact(&mut before)?;
    let mut header = [0; 100];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"SQLite format 3\0");
    put(16, &PAGE.to_be_bytes());
    // The versions that write and read the file: 2 with a write-ahead log.
    put(18, &[1 + u8::from(has_log); 2]);
    // The fractions of a page that its entries may use.
    put(21, &[64, 32, 32]);
    put(44, &4_u32.to_be_bytes()); // the format of definitions
    put(56, &1_u32.to_be_bytes()); // UTF-8
    put(68, &schema::APPLICATION_ID.to_be_bytes());
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&header)?;
    // The ranges in which headers of undamaged files differ are not compared.
    let fixed = [0..18, 20..24, 44..48, 52..60, 64..92];
    Ok(fixed
        .into_iter()
        .all(|range| before[range.clone()] == header[range]))
}

/// Returns the first byte of a page, which is its type.
fn first_byte(path: &Path, page: i64) -> io::Result<u8> {
    let mut file = File::open(path)?;
    let before = page.unsigned_abs().saturating_sub(1);
    file.seek(SeekFrom::Start(before * u64::from(PAGE)))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Makes the first page, where the definitions begin, an empty one.
fn remove_definitions(path: &Path) -> io::Result<()> {
    const EMPTY_LEAF: u8 = 13;
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(100))?;
    let [high, low] = PAGE.to_be_bytes();
    file.write_all(&[EMPTY_LEAF, 0, 0, 0, 0, high, low, 0])
}
