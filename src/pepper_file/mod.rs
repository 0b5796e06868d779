//! A file of peppers, for a service without a secret manager.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use zeroize::Zeroizing;

use crate::core::pepper::{PepperRing, PepperState};
use crate::core::pepper_document::{MAX_LEN, PepperDocument, PepperKey};
use crate::core::text::PepperId;
use crate::entropy::{Entropy, EntropyError, SystemEntropy};
use crate::observe::WithSources;

/// A file of peppers that no other user may read. Only on Unix, because it relies on file modes.
///
/// Store the file separately from the store and from the store's backups: an attacker with a pepper and a
/// copy of the store can test guesses of secrets. Keep a backup of the file in another place: without the
/// file, no key with a digest under its peppers can be verified.
///
/// # Access
///
/// The file belongs to root or to the user of this process, and nobody else may write it or read it. There is
/// one exception, because Kubernetes and Docker mount secrets with mode 0440. The group may read a file that
/// belongs to root and that this process may not write. The path may contain symbolic links, because
/// Kubernetes mounts a secret as a link. Only the owner and the mode of the file at the end of the path are
/// checked. [`PepperRing::from_json`] parses peppers that are not in a file.
///
/// The file is a JSON document:
///
/// ```json
/// {
///   "keyward_pepper_file": 1,
///   "peppers": [
///     { "state": "current", "id": "p81c…", "key": "<64 hexadecimal digits>" },
///     { "state": "live", "id": "p5a0…", "key": "<64 hexadecimal digits>" },
///     { "state": "audit", "id": "p317…", "key": "<64 hexadecimal digits>" }
///   ]
/// }
/// ```
///
/// The `current` pepper digests new secrets. A `live` pepper verifies the secrets that it digested, and an `audit`
/// pepper only verifies the audit entries that were sealed under it. A `next` pepper verifies secrets, and becomes
/// the current one at the next rotation.
///
/// # Rotation
///
/// A process does not notice changes to the file. To load a change, restart the process. Alternatively, open
/// the file again and build another [`Keyward`](crate::Keyward) over the same store with its
/// [`ring`](Self::ring). Switch to the new one as soon as
/// [`run_maintenance`](crate::Keyward::run_maintenance) of the old one has returned.
///
/// A process that has not loaded a new pepper refuses every key whose digest another process made under that
/// pepper, as [`UnknownPepper`](crate::VerifyError::UnknownPepper). To avoid these refusals, rotate in two
/// steps, and let every process load the file after each step:
///
/// 1. [`prepare`](Self::prepare) adds a pepper that all processes can verify with.
/// 2. [`rotate`](Self::rotate) makes that pepper the current one.
/// 3. Once [no live key](crate::Keyward::keys_by_pepper) needs the previous pepper, [`retire`](Self::retire) takes
///    that pepper out of service. To use the pepper again, for example for an old backup, change its state from
///    `audit` to `live`.
///
/// # Examples
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("pepper");
/// use keyward::PepperFile;
///
/// let created = PepperFile::open_or_create(&path)?.ring();
/// let mut file = PepperFile::open(&path)?;
/// assert_eq!(file.ring().current().id(), created.current().id());
///
/// file.prepare()?; // now every process loads the file
/// file.rotate()?; // and again
/// assert_ne!(file.ring().current().id(), created.current().id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PepperFile {
    path: PathBuf,
    ring: PepperRing,
}

/// The reason why a pepper file was not read or written. Never contains content of the file.
///
/// `Debug` prints the message with its causes, because Rust prints an error that `main` returns with `Debug`.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PepperFileError {
    /// The file does not exist.
    #[error("there is no pepper file {path:?}: mount it, or create it with `keyctl init`")]
    Missing {
        /// The path that was opened.
        path: PathBuf,
    },
    /// A file of this name already exists. The file was not changed.
    #[error("{} exists already, and was left as it is", path.display())]
    Exists {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file's mode gives access to its group or to other users.
    #[error(
        "pepper file {} has mode {mode:04o}, which lets other users access it; mount it with mode 0440, or \
         run: chmod 600 {}",
        path.display(), path.display()
    )]
    OpenToOthers {
        /// The path of the file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The file belongs to a user who is neither root nor the user of this process. That user could change
    /// the file.
    #[error(
        "pepper file {} belongs to user {owner}, not to root or to the user of this process; run: chown {user} {}",
        path.display(), path.display()
    )]
    Owner {
        /// The path of the file.
        path: PathBuf,
        /// The user id of the file's owner.
        owner: u32,
        /// The effective user id of this process.
        user: u32,
    },
    /// The path is not a regular file.
    #[error("{} is {what}; name the pepper file itself", path.display())]
    NotAFile {
        /// The path that was opened.
        path: PathBuf,
        /// The kind of thing at the path, in words.
        what: &'static str,
    },
    /// The file is not a valid pepper file.
    #[error("pepper file {}: {problem}", path.display())]
    Malformed {
        /// The path of the file.
        path: PathBuf,
        /// The problem and its place, in words.
        problem: String,
    },
    /// The file has no prepared pepper that a rotation could make current. A pepper that no process has loaded
    /// must not become the current one. The file was not changed.
    #[error(
        "pepper file {} has no prepared pepper: prepare one, restart each process, and then rotate",
        path.display()
    )]
    NotPrepared {
        /// The path of the file.
        path: PathBuf,
    },
    /// The pepper cannot be retired, because it is the current or the prepared one, or is not in the file. The
    /// file was not changed.
    #[error("pepper {pepper} of pepper file {} cannot be retired: {why}", path.display())]
    NotRetired {
        /// The path of the file.
        path: PathBuf,
        /// The id of the pepper.
        pepper: PepperId,
        /// The reason, in words.
        why: &'static str,
    },
    /// A file system call failed.
    #[error("{doing} {} failed", path.display())]
    Io {
        /// The action that failed, in words.
        doing: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The operating system could not provide random bytes for a new pepper.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl fmt::Debug for PepperFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&WithSources(self), f)
    }
}

type PepperFileResult<T> = Result<T, PepperFileError>;

impl PepperFile {
    /// Opens the file, or creates it with one new pepper if it is missing. If several processes create the
    /// file concurrently, one of them wins, and all return that process's pepper.
    ///
    /// Call this function only at the first start of a service. Once the service has keys, call
    /// [`open`](Self::open): if the file was lost, a new pepper would verify none of those keys.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`].
    pub fn open_or_create(path: impl AsRef<Path>) -> PepperFileResult<Self> {
        let path = path.as_ref();
        match Self::open(path) {
            Err(PepperFileError::Missing { .. }) => match Self::create(path) {
                Err(PepperFileError::Exists { .. }) => Self::open(path),
                created => created,
            },
            opened => {
                remove_stale_temps(path);
                opened
            }
        }
    }

    /// Opens the file and reads its peppers.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`]; [`Missing`](PepperFileError::Missing) if there is no file,
    /// [`OpenToOthers`](PepperFileError::OpenToOthers) or [`Owner`](PepperFileError::Owner) if other users
    /// have [access](Self#access).
    pub fn open(path: impl AsRef<Path>) -> PepperFileResult<Self> {
        let path = path.as_ref();
        let (_, ring) = read(&mut open(path, Links::Followed)?, path)?;
        let path = path.into();
        Ok(Self { path, ring })
    }

    /// Creates the file with one new pepper, atomically.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`]; [`Exists`](PepperFileError::Exists) if the path leads to anything.
    pub fn create(path: impl AsRef<Path>) -> PepperFileResult<Self> {
        let path = path.as_ref();
        let (id, key) = draw()?;
        let document = PepperDocument::new(id, key);
        let ring = document.ring().map_err(malformed(path))?;
        let written = TempPepperFile::write(path, &document)?;
        // A link, unlike a rename, never replaces another file.
        fs::hard_link(&written.path, path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => PepperFileError::Exists { path: path.into() },
            _ => failed("creating pepper file", path)(error),
        })?;
        drop(written);
        sync_folder(path)?;
        let path = path.into();
        Ok(Self { path, ring })
    }

    /// Returns the peppers of the file, as of the last call that read or changed it.
    #[must_use]
    pub fn ring(&self) -> PepperRing {
        self.ring.clone()
    }

    /// Adds a new pepper that secrets can be verified with. The next [`rotate`](Self::rotate) makes it the
    /// current pepper. Changes nothing if the file already has a prepared pepper.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`]. The file is then unchanged or prepared, never partly written.
    pub fn prepare(&mut self) -> PepperFileResult<()> {
        self.change(|document, _| {
            if !document.has_next() {
                let (id, key) = draw()?;
                document.add_next(id, key);
            }
            Ok(())
        })
    }

    /// Makes the prepared pepper the current one. The previous pepper stays live. Replaces the file atomically.
    /// Concurrent rotations wait for each other.
    ///
    /// Running processes do not notice the change: see [Rotation](Self#rotation). First let every process load the
    /// [prepared](Self::prepare) pepper. A process that has not loaded this pepper refuses the keys that are
    /// created under it.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`]; [`NotPrepared`](PepperFileError::NotPrepared) if no pepper is prepared. The file is
    /// then unchanged or rotated, never partly written.
    pub fn rotate(&mut self) -> PepperFileResult<()> {
        self.change(|document, path| {
            if !document.has_next() {
                return Err(PepperFileError::NotPrepared { path: path.into() });
            }
            document.rotate();
            Ok(())
        })
    }

    /// Takes a live pepper out of service. From then on the pepper verifies only the audit entries that were
    /// sealed under it. Changes nothing if the pepper is already out of service.
    ///
    /// Call this method only if no live key needs the pepper: see
    /// [`Keyward::keys_by_pepper`](crate::Keyward::keys_by_pepper). A process that loads the file refuses such
    /// keys.
    ///
    /// # Errors
    ///
    /// [`PepperFileError`]; [`NotRetired`](PepperFileError::NotRetired) if the pepper is the current or the
    /// prepared one, or is not in the file.
    pub fn retire(&mut self, pepper: &PepperId) -> PepperFileResult<()> {
        self.change(|document, path| {
            let why = match document.retire(pepper) {
                Some(PepperState::Live | PepperState::Audit) => return Ok(()),
                Some(PepperState::Current) => "it is the current one; rotate to another one first",
                Some(PepperState::Next) => "it is prepared for the next rotation",
                None => "the file does not have it",
            };
            let (path, pepper) = (path.into(), pepper.clone());
            Err(PepperFileError::NotRetired { path, pepper, why })
        })
    }

    /// Reads the file again under its lock, applies `change`, and replaces the file.
    fn change(
        &mut self,
        change: impl FnOnce(&mut PepperDocument, &Path) -> PepperFileResult<()>,
    ) -> PepperFileResult<()> {
        let path = self.path.as_path();
        let mut locked = lock(path)?;
        let (mut document, _) = read(&mut locked, path)?;
        change(&mut document, path)?;
        let ring = document.ring().map_err(malformed(path))?;
        let written = TempPepperFile::write(path, &document)?;
        fs::rename(&written.path, path).map_err(failed("replacing pepper file", path))?;
        sync_folder(path)?;
        self.ring = ring;
        Ok(())
    }
}

/// Draws the id and the key of a new pepper.
fn draw() -> PepperFileResult<(PepperId, PepperKey)> {
    let mut mark = [0; 8];
    SystemEntropy.fill(&mut mark)?;
    let id = format!("p{:016x}", u64::from_be_bytes(mark));
    let id = PepperId::new(id).expect("p and 16 hexadecimal digits are an id");
    let mut key = PepperKey::default();
    SystemEntropy.fill(&mut **key.0)?;
    Ok((id, key))
}

/// The treatment of a symbolic link at the end of the path.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Links {
    /// Follows the link. Used for reading.
    Followed,
    /// Refuses the link. Used for changes, because a rename would replace the link and leave the linked file
    /// unchanged.
    Refused,
}

/// Opens a file that no other user has access to. Checks the opened file, not the path, so that no other file
/// can take its place between the check and the read.
fn open(path: &Path, links: Links) -> PepperFileResult<File> {
    let not_a_file = |what| PepperFileError::NotAFile {
        path: path.into(),
        what,
    };
    // Without NONBLOCK, opening a named pipe would block until the pipe has a writer.
    let flags = match links {
        Links::Followed => OFlags::NONBLOCK,
        Links::Refused => OFlags::NONBLOCK | OFlags::NOFOLLOW,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| {
            let is_link = || fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
            match (error.kind(), links) {
                (io::ErrorKind::NotFound, _) if is_link() => {
                    not_a_file("a symbolic link to a missing file")
                }
                (io::ErrorKind::NotFound, _) => PepperFileError::Missing { path: path.into() },
                (_, Links::Refused) if is_link() => not_a_file("a symbolic link"),
                _ => failed("opening pepper file", path)(error),
            }
        })?;
    let found = file
        .metadata()
        .map_err(failed("reading metadata of pepper file", path))?;
    if found.is_dir() {
        return Err(not_a_file("a folder"));
    }
    if !found.is_file() {
        return Err(not_a_file("not a regular file"));
    }
    let user = rustix::process::geteuid().as_raw();
    check_access(path, found.uid(), found.mode() & 0o7777, user)?;
    Ok(file)
}

/// Checks that only root and `user` can change the file, and that no other user can read it. If root owns the
/// file and `user` cannot write it, the file's group may read it.
fn check_access(path: &Path, owner: u32, mode: u32, user: u32) -> PepperFileResult<()> {
    const ROOT: u32 = 0;
    let path = || path.to_owned();
    if owner != ROOT && owner != user {
        let path = path();
        return Err(PepperFileError::Owner { path, owner, user });
    }
    let is_provided = owner == ROOT && (user != ROOT || mode & 0o222 == 0);
    let allowed = if is_provided { 0o740 } else { 0o700 };
    if mode & 0o777 & !allowed != 0 {
        let path = path();
        return Err(PepperFileError::OpenToOthers { path, mode });
    }
    Ok(())
}

/// Opens the file and locks it, so that only one process at a time changes the file.
fn lock(path: &Path) -> PepperFileResult<File> {
    let failed = || failed("locking pepper file", path);
    loop {
        let file = open(path, Links::Refused)?;
        let lock = || rustix::fs::flock(&file, FlockOperation::LockExclusive);
        rustix::io::retry_on_intr(lock).map_err(|error| failed()(error.into()))?;
        let own = file.metadata().map_err(failed())?;
        let now = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found.map_err(failed())?,
        };
        // The files differ if the previous holder of the lock replaced the file while this call waited. The
        // lock is then on the old file, so try again.
        if (own.dev(), own.ino()) == (now.dev(), now.ino()) {
            return Ok(file);
        }
    }
}

fn read(file: &mut File, path: &Path) -> PepperFileResult<(PepperDocument, PepperRing)> {
    // Allocated at full size, because a growing buffer would leave copies of the keys in memory.
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
    let document = PepperDocument::parse(&bytes[..len]).map_err(malformed(path))?;
    let ring = document.ring().map_err(malformed(path))?;
    Ok((document, ring))
}

fn malformed(path: &Path) -> impl FnOnce(String) -> PepperFileError {
    move |problem| PepperFileError::Malformed {
        path: path.into(),
        problem,
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PepperFileError {
    move |source| PepperFileError::Io {
        doing,
        path: path.into(),
        source,
    }
}

/// A temporary file next to the pepper file, with the new content. Removed on drop. If the process is killed
/// before that, the next process that writes the pepper file removes it.
struct TempPepperFile {
    path: PathBuf,
    /// The temporary file itself. It is locked while it is in use, so that no other process removes it.
    file: File,
}

impl TempPepperFile {
    fn write(beside: &Path, document: &PepperDocument) -> PepperFileResult<Self> {
        let Some(name) = beside.file_name() else {
            let what = "a folder";
            return Err(PepperFileError::NotAFile {
                path: beside.into(),
                what,
            });
        };
        let text = document.text().map_err(malformed(beside))?;
        remove_stale_temps(beside);
        let failed = || failed("writing pepper file", beside);
        loop {
            let mut mark = [0; 8];
            SystemEntropy.fill(&mut mark)?;
            let mut hidden = temp_prefix(name);
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
                // Another process removed the temporary file before this process locked it.
                continue;
            }
            let mut temp = Self { path, file };
            let file = &mut temp.file;
            file.write_all(&text).map_err(failed())?;
            file.sync_all().map_err(failed())?;
            return Ok(temp);
        }
    }
}

fn temp_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    prefix
}

/// Removes temporary files of killed processes next to `path`, because they hold peppers. Ignores failures:
/// the next call tries again.
fn remove_stale_temps(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let prefix = temp_prefix(name);
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
        // A live process keeps its temporary file locked. If this call gets the lock, the file's process was
        // killed.
        if let Ok(file) = open(&entry.path(), Links::Refused)
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Drop for TempPepperFile {
    fn drop(&mut self) {
        // After a successful rename, the temporary file no longer exists under this name, so an error is
        // expected.
        let _ = fs::remove_file(&self.path);
    }
}

/// Fsyncs the folder of `path`, which makes a new name in the folder durable.
fn sync_folder(path: &Path) -> PepperFileResult<()> {
    let synced = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
    synced.map_err(failed("syncing the folder of pepper file", path))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests;
