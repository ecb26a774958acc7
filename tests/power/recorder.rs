//! Builds the recorder (`recorder.c`), runs children under it, and reads what it noted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// One change of the disk, in the order in which they happened.
#[derive(Debug)]
pub(crate) enum Event {
    Create {
        inode: u64,
        path: PathBuf,
    },
    Write {
        inode: u64,
        at: u64,
        data: Vec<u8>,
    },
    Truncate {
        inode: u64,
        len: u64,
    },
    SyncBegins {
        inode: u64,
        id: u64,
        path: PathBuf,
    },
    SyncEnded {
        id: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Exchange {
        from: PathBuf,
        to: PathBuf,
    },
    /// A hard link: another name of the same file.
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    Mkdir {
        path: PathBuf,
    },
    Rmdir {
        path: PathBuf,
    },
    Mark(String),
    /// `sync_file_range`, which is no sync.
    Range,
}

/// The shared object, built once per process.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/power/recorder.c");
        let name = format!("recorder-{}.so", std::process::id());
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let status = Command::new(cc)
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&built, &source])
            .args(["-ldl", "-lpthread"])
            .status()
            .expect("a C compiler (`cc`) is needed, as for the crate itself");
        assert!(status.success(), "the recorder does not compile");
        built
    })
}

/// This test binary as a child that runs the test `name` under the recorder.
pub(crate) fn child(name: &str, watched: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env("LD_PRELOAD", library())
        .env("BYOKV_RECORD_DIR", watched);
    command
}

/// Notes `text` in the record, in order with everything else.
pub(crate) fn mark(text: &str) {
    // The recorder takes names that begin so for marks.
    let nothing_to_remove = std::fs::remove_file(format!("@mark/{text}"));
    assert!(nothing_to_remove.is_err());
}

pub(crate) fn read(log: &Path) -> Vec<Event> {
    const HEAD: usize = 21;
    let bytes = std::fs::read(log).unwrap();
    let mut rest = &bytes[..];
    let mut events = Vec::new();
    while rest.len() >= HEAD {
        let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().unwrap());
        let (a, b) = (number(1), number(9));
        let len = u32::from_le_bytes(rest[17..HEAD].try_into().unwrap()) as usize;
        let data = &rest[HEAD..HEAD + len];
        let text = |data: &[u8]| String::from_utf8(data.to_vec()).unwrap();
        let path = || PathBuf::from(text(data));
        let paths = || {
            let both = text(data);
            let (from, to) = both.split_once('\0').unwrap();
            (PathBuf::from(from), PathBuf::from(to))
        };
        events.push(match rest[0] {
            1 => Event::Create { inode: a, path: path() },
            2 => Event::Write { inode: a, at: b, data: data.to_vec() },
            3 => Event::Truncate { inode: a, len: b },
            4 => Event::SyncBegins { inode: a, id: b, path: path() },
            5 => Event::SyncEnded { id: b },
            6 => {
                let (from, to) = paths();
                Event::Rename { from, to }
            }
            7 => {
                let (from, to) = paths();
                Event::Exchange { from, to }
            }
            8 => Event::Unlink { path: path() },
            9 => Event::Mkdir { path: path() },
            10 => Event::Rmdir { path: path() },
            11 => Event::Mark(text(data)),
            12 => {
                let (from, to) = paths();
                Event::Link { from, to }
            }
            13 => Event::Range,
            other => panic!("the recorder noted {other}, which no state can be built from"),
        });
        rest = &rest[HEAD + len..];
    }
    assert!(rest.is_empty(), "the record is torn");
    events
}
