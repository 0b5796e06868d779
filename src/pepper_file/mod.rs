//! A file that keeps the peppers of a service, for those without a secret manager.

mod text;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use zeroize::Zeroizing;

use self::text::{Fault, Peppers};
use crate::core::pepper::{Pepper, PepperRing};
use crate::core::text::PepperId;
use crate::entropy::{Entropy, EntropyError, SystemEntropy};

/// Some hundred peppers. A judgement: whatever is longer is another file.
const MAX_LEN: usize = 64 * 1024;

/// A file of peppers, readable by its owner alone. Only on Unix, whose file modes it relies on.
///
/// Keep it where a copy of the store does not take it along: whoever has both can try out secrets.
/// Whoever loses it loses every key, so keep a copy of it too, elsewhere.
///
/// The text is one line for the version, and one for each pepper:
///
/// ```text
/// keyward-pepper v1
/// current p81c… <64 hexadecimal digits>
/// live p5a0… <64 hexadecimal digits>
/// audit p317… <64 hexadecimal digits>
/// ```
///
/// `current` digests new secrets, `live` verifies those it digested, `audit` only proves the audit
/// entries it sealed. To take a pepper out of service, change its `live` to `audit`.
///
/// # Rotation
///
/// A process goes on with the peppers that it read: nothing reads the file again by itself. To take
/// up what changed, start the process again, or let it build another [`Keyward`](crate::Keyward) over
/// the same store with what [`read`](Self::read) returns now, and use that one from then on, once
/// [`run_upkeep`](crate::Keyward::run_upkeep) of the one before has returned.
///
/// A process that has not done so refuses, as [`UnknownPepper`](crate::Rejection::UnknownPepper),
/// every key that another one created under the new pepper or moved to it. So that no key is refused
/// on the way, rotate in two steps, and let every process take up the file after each:
/// [`prepare`](Self::prepare), which lets all verify under the new pepper, then
/// [`rotate`](Self::rotate), which puts it to use.
///
/// # Examples
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("pepper");
/// use keyward::PepperFile;
///
/// let first = PepperFile::open_or_create(&path)?;
/// let again = PepperFile::open_or_create(&path)?;
/// assert_eq!(first.current().id(), again.current().id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub enum PepperFile {}

/// Why a pepper file was not read or written. Never holds what is in the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PepperFileError {
    /// There is no such file.
    #[error("there is no pepper file {}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// There is a file already; it was left as it is.
    #[error("{} exists already, and was left as it is", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// Others than the file's owner may use it.
    #[error(
        "pepper file {} has mode {mode:04o}, open to others than its owner; run: chmod 600 {}",
        path.display(), path.display()
    )]
    OpenToOthers {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is something else than a file.
    #[error("{} is {what}; name the pepper file itself", path.display())]
    NotAFile {
        /// Where.
        path: PathBuf,
        /// What is there, in words.
        what: &'static str,
    },
    /// There is nothing in it.
    #[error("pepper file {} is empty; put a copy of it back", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// It is no pepper file.
    #[error("{} is no pepper file: it must begin with \"keyward-pepper v1\"", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// It has a version that is not known here.
    #[error("pepper file {} has another version than v1, the only one known here", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
    },
    /// A line of it is not what it should be.
    #[error("pepper file {}, line {line}: must be {expected}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What would be right, in words.
        expected: &'static str,
    },
    /// The file system refused.
    #[error("{doing} {} failed", path.display())]
    Io {
        /// What was being done, in words.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no randomness for a new pepper.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

type Answer<T> = Result<T, PepperFileError>;

impl PepperFile {
    /// Reads the file, or creates it with one new pepper if there is none. Of several that create it
    /// at once one wins, and all return that one's pepper.
    ///
    /// For setting a service up. One that has keys already calls [`read`](Self::read): a new pepper
    /// in place of a lost one verifies none of them.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`].
    pub fn open_or_create(path: impl AsRef<Path>) -> Answer<PepperRing> {
        let path = path.as_ref();
        match Self::read(path) {
            Err(PepperFileError::Missing { .. }) => match Self::create(path) {
                Err(PepperFileError::Exists { .. }) => Self::read(path),
                created => created,
            },
            read => {
                clear_drafts(path);
                read
            }
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`]; [`Missing`](PepperFileError::Missing) if there is none,
    /// [`OpenToOthers`](PepperFileError::OpenToOthers) if group or others may use it.
    pub fn read(path: impl AsRef<Path>) -> Answer<PepperRing> {
        let path = path.as_ref();
        let peppers = peppers(&mut open(path)?, path)?;
        peppers.ring().map_err(|fault| at_fault(fault, path))
    }

    /// Creates the file with one new pepper, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`]; [`Exists`](PepperFileError::Exists) if there is anything of this name.
    pub fn create(path: impl AsRef<Path>) -> Answer<PepperRing> {
        let path = path.as_ref();
        let (id, key) = draw()?;
        let peppers = Peppers::one(id, key);
        let ring = peppers.ring().map_err(|fault| at_fault(fault, path))?;
        let written = Draft::write(path, &peppers)?;
        // A link, unlike a rename, never takes the place of another file.
        fs::hard_link(&written.path, path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => PepperFileError::Exists { path: path.into() },
            _ => failed("creating pepper file", path)(error),
        })?;
        drop(written);
        sync_folder(path)?;
        Ok(ring)
    }

    /// Adds a new pepper, under which secrets verify and which the next [`rotate`](Self::rotate) makes
    /// the current one. Where there is such a pepper already, nothing changes.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`]; the file is as it was then, or prepared, and never in between.
    pub fn prepare(path: impl AsRef<Path>) -> Answer<PepperRing> {
        Self::change(path.as_ref(), |_| ())
    }

    /// Makes the prepared pepper, or else a new one, the current one; the one before stays live. The
    /// file is replaced as a whole, and rotations wait for each other.
    ///
    /// A process goes on with the peppers that it read: see [Rotation](Self#rotation). Where nothing
    /// was [prepared](Self::prepare), restart all of a service's processes together.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`]; the file is as it was then, or rotated, and never in between.
    pub fn rotate(path: impl AsRef<Path>) -> Answer<PepperRing> {
        Self::change(path.as_ref(), Peppers::rotate)
    }

    /// Changes peppers that have a next one.
    fn change(path: &Path, change: impl FnOnce(&mut Peppers)) -> Answer<PepperRing> {
        let mut locked = lock(path)?;
        let mut peppers = peppers(&mut locked, path)?;
        peppers.ring().map_err(|fault| at_fault(fault, path))?;
        if !peppers.has_next() {
            let (id, key) = draw()?;
            peppers.add_next(id, key);
        }
        change(&mut peppers);
        let ring = peppers.ring().map_err(|fault| at_fault(fault, path))?;
        let written = Draft::write(path, &peppers)?;
        fs::rename(&written.path, path).map_err(failed("replacing pepper file", path))?;
        sync_folder(path)?;
        Ok(ring)
    }
}

/// A new pepper under an id of its own.
fn draw() -> Answer<(PepperId, Zeroizing<Vec<u8>>)> {
    let mut mark = [0; 8];
    SystemEntropy.fill(&mut mark)?;
    let id =
        PepperId::new(format!("p{:016x}", u64::from_be_bytes(mark))).map_err(|_| EntropyError)?;
    let mut key = Zeroizing::new(vec![0; Pepper::MIN_LEN]);
    SystemEntropy.fill(&mut key)?;
    Ok((id, key))
}

/// Opens a file that only its owner may use. What is checked is what was opened, so that nothing can
/// take its place in between.
fn open(path: &Path) -> Answer<File> {
    let not_a_file = |what| PepperFileError::NotAFile {
        path: path.into(),
        what,
    };
    // Without NONBLOCK a pipe of this name would have to be written to first.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PepperFileError::Missing { path: path.into() },
            _ if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) => {
                not_a_file("a symbolic link")
            }
            _ => failed("opening pepper file", path)(error),
        })?;
    let found = file
        .metadata()
        .map_err(failed("looking at pepper file", path))?;
    if found.is_dir() {
        return Err(not_a_file("a folder"));
    }
    if !found.is_file() {
        return Err(not_a_file("no regular file"));
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PepperFileError::OpenToOthers {
            path: path.into(),
            mode,
        });
    }
    Ok(file)
}

/// Opens the file for a rotation that no other runs beside.
fn lock(path: &Path) -> Answer<File> {
    let failed = || failed("locking pepper file", path);
    loop {
        let file = open(path)?;
        let lock = || rustix::fs::flock(&file, FlockOperation::LockExclusive);
        rustix::io::retry_on_intr(lock).map_err(|error| failed()(error.into()))?;
        let own = file.metadata().map_err(failed())?;
        let now = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found.map_err(failed())?,
        };
        // The rotation that had the lock before put another file in this one's place.
        if (own.dev(), own.ino()) == (now.dev(), now.ino()) {
            return Ok(file);
        }
    }
}

fn peppers(file: &mut File, path: &Path) -> Answer<Peppers> {
    // Of one size from the start: growing would leave copies behind.
    let mut bytes = Zeroizing::new(vec![0; MAX_LEN + 1]);
    let mut len = 0;
    loop {
        match file.read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("reading pepper file", path)(error)),
        }
    }
    if len > MAX_LEN {
        return Err(at_fault(Fault::Foreign, path));
    }
    Peppers::parse(&bytes[..len]).map_err(|fault| at_fault(fault, path))
}

fn at_fault(fault: Fault, path: &Path) -> PepperFileError {
    let path = path.into();
    match fault {
        Fault::Empty => PepperFileError::Empty { path },
        Fault::Foreign => PepperFileError::Foreign { path },
        Fault::Version => PepperFileError::Version { path },
        Fault::Line { line, expected } => PepperFileError::Line {
            path,
            line,
            expected,
        },
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PepperFileError {
    move |source| PepperFileError::Io {
        doing,
        path: path.into(),
        source,
    }
}

/// A complete file beside the one to be, under a name that nobody reads. Removed when dropped, and
/// if the process was killed before that, by the next to write or create the file.
struct Draft {
    path: PathBuf,
    /// Locked, which says that the draft is somebody's.
    file: File,
}

impl Draft {
    fn write(beside: &Path, peppers: &Peppers) -> Answer<Self> {
        let Some(name) = beside.file_name() else {
            let what = "a folder";
            return Err(PepperFileError::NotAFile {
                path: beside.into(),
                what,
            });
        };
        clear_drafts(beside);
        let failed = || failed("writing pepper file", beside);
        loop {
            let mut mark = [0; 8];
            SystemEntropy.fill(&mut mark)?;
            let mut hidden = draft_prefix(name);
            hidden.push(format!("{:016x}", u64::from_be_bytes(mark)));
            let path = beside.with_file_name(hidden);
            let mut options = OpenOptions::new();
            let file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(failed())?;
            let taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
            if taken || !path.exists() {
                // Cleared away before it was locked.
                continue;
            }
            let mut draft = Self { path, file };
            let file = &mut draft.file;
            file.write_all(peppers.text().as_bytes())
                .map_err(failed())?;
            file.sync_all().map_err(failed())?;
            return Ok(draft);
        }
    }
}

fn draft_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    prefix
}

/// Removes drafts of `path` whose processes were killed: they hold peppers. Whatever stands in the way
/// is left for the next to try.
fn clear_drafts(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let prefix = draft_prefix(name);
    let Ok(entries) = fs::read_dir(folder_of(path)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let mark = name.as_bytes().strip_prefix(prefix.as_bytes());
        let named =
            mark.is_some_and(|mark| mark.len() == 16 && mark.iter().all(u8::is_ascii_hexdigit));
        if !named {
            continue;
        }
        // Locked for as long as its process lives.
        if let Ok(file) = open(&entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a rename there is nothing left, which is as it should be.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes a new name last through a loss of power.
fn sync_folder(path: &Path) -> Answer<()> {
    let synced = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
    synced.map_err(failed("making durable pepper file", path))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests;
