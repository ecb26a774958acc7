//! How a key comes from a file, a pipe or a variable, and from whom it may come.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::material::KeyMaterial;

/// More than any form of a key takes, so that what is wrong with it can be told.
const LIMIT: usize = 4096;

/// A file of one key in base64, or a pipe that one comes through.
///
/// A file that its owner alone may read and write is taken from anywhere. One that others may read,
/// but not write, is taken as systemd (`LoadCredential=`), Kubernetes and Docker secrets deliver it:
/// root or the user of this process owns the file, its directory and all directories above it; in
/// its directory no others may write, and in those above only where the sticky bit keeps them from
/// exchanging what is not theirs. All else is refused; [`allow_group_read`](Self::allow_group_read)
/// and [`allow_any_mode`](Self::allow_any_mode) allow more. On systems without Unix modes nothing
/// is checked.
///
/// Named pipes, `/dev/fd/N` and the `<(…)` of shells are waited for, but not longer than
/// [`deadline`](Self::deadline).
///
/// ```no_run
/// use byokv::{KeyFile, RootKey, Store};
///
/// let key = KeyFile::new("/run/secrets/root.key").allow_group_read().read()?;
/// let store = Store::open("data", RootKey::from_material(key))?;
/// # Ok::<(), byokv::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
    others: Others,
    deadline: Duration,
}

/// Who may use the file beside its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    /// Readers where it was delivered safely.
    Delivered,
    /// The group may read, wherever the file is.
    GroupReads,
    Any,
}

impl KeyFile {
    /// Names the file. Nothing is read yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), others: Others::Delivered, deadline: Duration::from_secs(10) }
    }

    /// Takes a file that its group may read (mode 0640 or 0440), whoever owns it and wherever it
    /// lies. Everyone in the group can read the key.
    #[must_use]
    pub fn allow_group_read(mut self) -> Self {
        self.others = Others::GroupReads;
        self
    }

    /// Takes a file of any mode. [`exposure`](Self::exposure) tells what is wrong with it.
    #[must_use]
    pub fn allow_any_mode(mut self) -> Self {
        self.others = Others::Any;
        self
    }

    /// Sets how long a pipe is waited for until all of the key has come, 10 seconds if it is not
    /// set. Files are not waited for.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Reads the key.
    ///
    /// # Errors
    /// [`Error::KeyFile`] if it cannot be read, is no file or pipe, comes too late, or if others may
    /// use it; [`Error::KeyMaterial`] if what it holds is no key: then it tells what it looks like.
    pub fn read(&self) -> Result<KeyMaterial> {
        let bytes = self.bytes().map_err(|why| self.unusable(why))?;
        KeyMaterial::from_base64_bytes(&bytes)
    }

    /// Returns who may use the file beside its owner, as the end of a sentence that begins with its
    /// path; `None` if that is allowed. Does not open the file.
    ///
    /// # Errors
    /// [`Error::KeyFile`] if it is not there or cannot be looked at.
    pub fn exposure(&self) -> Result<Option<String>> {
        // A pipe's writer would be cut off if it was opened and closed.
        let meta = fs::metadata(&self.path).map_err(|error| self.unusable(error.to_string()))?;
        Ok(unix::exposure(&self.path, &meta, self.others))
    }

    pub(super) fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, String> {
        let (file, meta) = unix::open(&self.path).map_err(|error| error.to_string())?;
        if !(meta.is_file() || unix::is_pipe(&meta)) {
            return Err("it is neither a file nor a pipe".to_owned());
        }
        if let Some(why) = unix::exposure(&self.path, &meta, self.others) {
            return Err(format!(
                "{why}; run `chmod 600` on it, and consider whether the key is still secret"
            ));
        }
        if meta.is_file() {
            let mut buffer = Buffer::new();
            while buffer.fill(&file).map_err(|error| error.to_string())? > 0 {
                buffer.check()?;
            }
            return Ok(buffer.into_bytes());
        }
        unix::read_pipe(&file, self.deadline)
    }

    fn unusable(&self, why: String) -> Error {
        Error::KeyFile { file: self.path.clone(), why }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// What was read, wiped when dropped. Never grows, which would leave copies behind.
struct Buffer {
    bytes: Zeroizing<Vec<u8>>,
    len: usize,
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: Zeroizing::new(vec![0; LIMIT + 1]), len: 0 }
    }

    fn fill(&mut self, mut from: impl Read) -> io::Result<usize> {
        loop {
            match from.read(&mut self.bytes[self.len..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.inspect(|read| self.len += read),
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.len > LIMIT {
            return Err(format!("it is not a file of one key: it has more than {LIMIT} bytes"));
        }
        Ok(())
    }

    fn into_bytes(mut self) -> Zeroizing<Vec<u8>> {
        self.bytes.truncate(self.len);
        self.bytes
    }
}

#[cfg(unix)]
mod unix {
    use std::fs::{self, File, Metadata};
    use std::io;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::path::Path;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{Mode, OFlags};
    use zeroize::Zeroizing;

    use super::{Buffer, Others};

    /// Opens without waiting: a named pipe that nobody writes would keep us.
    pub(super) fn open(path: &Path) -> io::Result<(File, Metadata)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let meta = file.metadata()?;
        Ok((file, meta))
    }

    pub(super) fn is_pipe(meta: &Metadata) -> bool {
        meta.file_type().is_fifo()
    }

    pub(super) fn exposure(path: &Path, meta: &Metadata, others: Others) -> Option<String> {
        let mode = meta.mode() & 0o777;
        if mode & 0o077 == 0 || others == Others::Any {
            return None;
        }
        let shown = |what: &str| format!("{what} (mode {mode:03o})");
        if mode & 0o022 != 0 {
            return Some(shown("others than its owner may write it"));
        }
        if others == Others::GroupReads && mode & 0o007 == 0 {
            return None;
        }
        let what = if mode & 0o007 == 0 { "its group may read it" } else { "others may read it" };
        let why = delivered(path, meta).err()?;
        Some(format!("{}, and {why}", shown(what)))
    }

    /// Checks that nobody but root and us could have put the file there.
    fn delivered(path: &Path, meta: &Metadata) -> Result<(), String> {
        const STICKY: u32 = 0o1000;
        let owned =
            |meta: &Metadata| meta.uid() == 0 || meta.uid() == rustix::process::geteuid().as_raw();
        if !owned(meta) {
            return Err("it is owned neither by root nor by this user".to_owned());
        }
        let unknown = |error: io::Error| format!("its directory cannot be told: {error}");
        let real = fs::canonicalize(path).map_err(unknown)?;
        let found = fs::metadata(&real).map_err(unknown)?;
        if (found.dev(), found.ino()) != (meta.dev(), meta.ino()) {
            return Err("it was just replaced".to_owned());
        }
        for (above, dir) in real.ancestors().skip(1).enumerate() {
            let meta = fs::metadata(dir).map_err(unknown)?;
            let shown = crate::text::path(dir);
            if !owned(&meta) {
                return Err(format!("{shown} is owned neither by root nor by this user"));
            }
            let is_kept = above > 0 && meta.mode() & STICKY != 0;
            if meta.mode() & 0o022 != 0 && !is_kept {
                return Err(format!("others than its owner may write in {shown}"));
            }
        }
        Ok(())
    }

    /// Reads until the last writer closes the pipe.
    pub(super) fn read_pipe(file: &File, deadline: Duration) -> Result<Zeroizing<Vec<u8>>, String> {
        // A pipe whose writer came and went counts as hung up, for which `poll` does not wait.
        const AGAIN: Duration = Duration::from_millis(20);
        let waited = format!("within {}", humantime::format_duration(deadline));
        let began = Instant::now();
        let mut buffer = Buffer::new();
        loop {
            match buffer.fill(file) {
                // Only a pipe that somebody wrote has an end.
                Ok(0) if buffer.len > 0 => return Ok(buffer.into_bytes()),
                Ok(0) => {}
                Ok(_) => {
                    buffer.check()?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.to_string()),
            }
            let left = deadline.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(match buffer.len {
                    0 => format!("nobody wrote a key into the pipe {waited}"),
                    _ => format!("the writer of the pipe did not close it {waited}"),
                });
            }
            let timeout = Timespec::try_from(left).map_err(|error| error.to_string())?;
            let mut fds = [PollFd::new(file, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) if !fds[0].revents().contains(PollFlags::IN) && buffer.len == 0 => {
                    let again = Timespec::try_from(AGAIN.min(left));
                    let again = again.map_err(|error| error.to_string())?;
                    let _ = poll(&mut [], Some(&again));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

#[cfg(not(unix))]
mod unix {
    use std::fs::{File, Metadata};
    use std::io;
    use std::path::Path;
    use std::time::Duration;

    use zeroize::Zeroizing;

    use super::Others;

    pub(super) fn open(path: &Path) -> io::Result<(File, Metadata)> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        Ok((file, meta))
    }

    pub(super) fn is_pipe(_: &Metadata) -> bool {
        false
    }

    pub(super) fn exposure(_: &Path, _: &Metadata, _: Others) -> Option<String> {
        None
    }

    pub(super) fn read_pipe(_: &File, _: Duration) -> Result<Zeroizing<Vec<u8>>, String> {
        Err("pipes are not known on this system".to_owned())
    }
}
