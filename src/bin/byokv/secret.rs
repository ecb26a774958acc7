//! Secrets on their way in and out: never in arguments, wiped from our own buffers.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use byokv::{KeyFile, KeyMaterial, MAX_VALUE_LEN, text};
use rand::TryRng;
use zeroize::{Zeroize, Zeroizing};

use super::failure::{Failure, Result};
use super::json;
use super::ui::Ui;

pub(super) type Secret = Zeroizing<Vec<u8>>;

/// As much at once as makes `Stdin` read into our buffer and not into one of its own.
const CHUNK: usize = 64 << 10;

/// A key in base64, from a file, a pipe or stdin.
pub(super) fn key(ui: Ui, file: Option<&Path>) -> Result<KeyMaterial> {
    const LIMIT: u64 = 4096;
    let Some(path) = file.filter(|path| *path != Path::new("-")) else {
        if io::stdin().is_terminal() {
            let how = "the key is read from stdin, which is a terminal that would show it; \
                       give --file FILE, or redirect stdin";
            return Err(Failure::Usage(how.to_owned()));
        }
        return Ok(KeyMaterial::from_base64_bytes(&read(None, LIMIT)?)?);
    };
    let file = KeyFile::new(path);
    if let Some(why) = file.exposure()? {
        ui.warn(format_args!("{}: {why}", text::path(path)));
    }
    Ok(file.allow_any_mode().read()?)
}

/// A value, byte for byte.
pub(super) fn value(file: Option<&Path>) -> Result<Secret> {
    let value = read(file, MAX_VALUE_LEN as u64 + 1)?;
    if value.len() > MAX_VALUE_LEN {
        let why = format!("a value has at most {MAX_VALUE_LEN} bytes; nothing was written");
        return Err(Failure::Usage(why));
    }
    Ok(value)
}

/// The bytes of a file, or of stdin for `None` and `-`, at most `limit`.
pub(super) fn read(file: Option<&Path>, limit: u64) -> Result<Secret> {
    match file.filter(|path| *path != Path::new("-")) {
        None => read_all(io::stdin().lock().take(limit))
            .map_err(|e| Failure::Failed(format!("reading stdin: {e}"))),
        Some(path) => File::open(path)
            .and_then(|file| read_all(file.take(limit)))
            .map_err(|e| Failure::Failed(format!("reading {}: {e}", path.display()))),
    }
}

/// Like `read_to_end`, which would leave copies behind where the vector grows.
fn read_all(mut from: impl Read) -> io::Result<Secret> {
    let mut buffer = Zeroizing::new(vec![0; 2 * CHUNK]);
    let mut len = 0;
    loop {
        if buffer.len() - len < CHUNK {
            let mut larger = Zeroizing::new(vec![0; 2 * buffer.len()]);
            larger[..len].copy_from_slice(&buffer[..len]);
            buffer = larger;
        }
        match from.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buffer.truncate(len);
    Ok(buffer)
}

/// A new key: as text, and as material.
pub(super) fn generate() -> Result<(Zeroizing<String>, KeyMaterial)> {
    let mut bytes = Zeroizing::new([0; KeyMaterial::LEN]);
    rand::rngs::SysRng
        .try_fill_bytes(&mut *bytes)
        .map_err(|e| Failure::Failed(format!("the system's random source failed: {e}")))?;
    let text = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
    let material = KeyMaterial::from_base64(&text)?;
    Ok((text, material))
}

/// Writes a new key into a new file of mode 0600, durably.
pub(super) fn generate_file(path: &Path) -> Result<KeyMaterial> {
    let (mut text, material) = generate()?;
    let failed = |e: io::Error| {
        let file = path.display();
        Failure::Failed(match e.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("the file {file} exists already; nothing was changed")
            }
            _ => format!("writing the key file {file}: {e}"),
        })
    };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).map_err(failed)?;
    text.zeroize();
    file.sync_all().map_err(failed)?;
    // Until the folder is synced too, a power cut may take the file away, and the store with it.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    Ok(material)
}

/// Stdout with a buffer that is wiped.
pub(super) struct Output {
    to: Raw,
    buffer: Secret,
}

#[cfg(unix)]
type Raw = File;
#[cfg(not(unix))]
type Raw = io::Stdout;

#[cfg(unix)]
fn raw() -> io::Result<Raw> {
    use std::os::fd::AsFd;
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

#[cfg(not(unix))]
fn raw() -> io::Result<Raw> {
    Ok(io::stdout())
}

impl Output {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { to: raw()?, buffer: Zeroizing::new(Vec::with_capacity(CHUNK)) })
    }

    pub(super) fn json(&mut self, value: &impl serde::Serialize) -> Result {
        json::write(&mut *self, value)?;
        Ok(self.write_all(b"\n")?)
    }

    pub(super) fn finish(mut self) -> Result {
        Ok(self.flush()?)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > self.buffer.capacity() {
            self.flush()?;
        }
        if bytes.len() > self.buffer.capacity() {
            return self.to.write(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.buffer)?;
        // Also sets the length to 0.
        self.buffer.zeroize();
        self.to.flush()
    }
}
