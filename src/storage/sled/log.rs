//! What we read of sled's log (0.34.7, `pagecache/`): headers of segments, and where a segment
//! stops being whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// crc32 ‖ lsn ‖ stable lsn, little-endian, each number inverted.
pub(super) const SEGMENT_HEADER: usize = 20;
/// No message begins in that many last bytes of a segment.
const RED_ZONE: usize = 32;
const INVERTED: i64 = i64::MAX;

/// Where each segment with a header lies in the file, by its place in the log.
pub(super) fn segments(log: &File, size: usize) -> io::Result<BTreeMap<i64, u64>> {
    let len = log.metadata()?.len();
    let mut segments = BTreeMap::new();
    for offset in (0..len).step_by(size) {
        let mut header = [0; SEGMENT_HEADER];
        match log.read_exact_at(&mut header, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e),
        }
        let (crc, numbers) = header.split_at(4);
        if crc != (!crc32fast::hash(numbers)).to_le_bytes() {
            continue;
        }
        if let Some(lsn) = numbers.first_chunk() {
            segments.insert(i64::from_le_bytes(*lsn) ^ INVERTED, offset);
        }
    }
    Ok(segments)
}

/// What the file has of a segment.
pub(super) fn read_segment(log: &File, offset: u64, size: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match log.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Full: the log goes on in the next one.
    Full,
    /// What stands here was not, or not wholly, written.
    Torn(usize),
    /// The message here points to a large page that is not there or not whole.
    NoBlob(usize),
    /// A batch begins here that failed in the middle.
    FailedBatch(usize),
}

/// Walks over the messages of the segment `number` that begin at `first` or behind it; `is_there`
/// tells of large pages.
pub(super) fn walk(
    segment: &[u8],
    first: usize,
    size: usize,
    number: u64,
    mut is_there: impl FnMut(i64) -> io::Result<bool>,
) -> io::Result<End> {
    const CANCELED: u8 = 1;
    const CAP: u8 = 2;
    const LAST_KIND: u8 = 11;
    /// Of what sled writes before a batch, and cancels where that fails (`BATCH_MANIFEST_PID`).
    const BATCHES: u64 = u64::MAX - 666;

    let mut at = first.max(SEGMENT_HEADER);
    while at <= size - RED_ZONE {
        let Some(message) = segment.get(at..).and_then(Message::read) else {
            return Ok(End::Torn(at));
        };
        if message.segment != number || message.kind == 0 || message.kind > LAST_KIND {
            return Ok(End::Torn(at));
        }
        if message.kind == CAP {
            return Ok(End::Full);
        }
        if message.kind == CANCELED && message.page == BATCHES {
            return Ok(End::FailedBatch(at));
        }
        if let Some(blob) = message.blob
            && !is_there(blob)?
        {
            return Ok(End::NoBlob(at));
        }
        at += message.len;
    }
    Ok(End::Full)
}

struct Message {
    kind: u8,
    segment: u64,
    page: u64,
    /// Header and body.
    len: usize,
    blob: Option<i64>,
}

impl Message {
    /// crc32 ‖ kind ‖ length ‖ number of the segment ‖ page ‖ body; `None` if the checksum, over
    /// the body and then what follows it in the header, is another.
    fn read(bytes: &[u8]) -> Option<Self> {
        const BLOBS: [u8; 3] = [7, 9, 11];

        let (crc, rest) = bytes.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first()?;
        let (body, rest) = number(rest)?;
        let (segment, rest) = number(rest)?;
        let (page, rest) = number(rest)?;
        let header = bytes.len() - rest.len();
        let body = rest.get(..usize::try_from(body).ok()?)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(body);
        hasher.update(&bytes[4..header]);
        if !hasher.finalize() != u32::from_le_bytes(*crc) {
            return None;
        }
        let blob = match BLOBS.contains(kind) {
            true => Some(i64::from_le_bytes(*body.first_chunk()?)),
            false => None,
        };
        Some(Self { kind: *kind, segment, page, len: header + body.len(), blob })
    }
}

/// sled's numbers of 1 to 9 bytes.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let next = || rest.first().map(|&byte| u64::from(byte));
    Some(match first {
        0..=240 => (u64::from(first), rest),
        241..=248 => (240 + 256 * (u64::from(first) - 241) + next()?, &rest[1..]),
        249 => (2288 + 256 * next()? + u64::from(*rest.get(1)?), &rest[2..]),
        _ => {
            let (number, rest) = rest.split_at_checked(usize::from(first) - 247)?;
            let mut bytes = [0; 8];
            bytes[..number.len()].copy_from_slice(number);
            (u64::from_le_bytes(bytes), rest)
        }
    })
}

/// crc32 ‖ kind ‖ body, the checksum over what follows it. Of nothing it is zero, as bytes are that
/// a power cut took.
pub(super) fn is_whole(blob: &Path) -> io::Result<bool> {
    match fs::read(blob) {
        Ok(bytes) => Ok(bytes.split_first_chunk::<4>().is_some_and(|(crc, rest)| {
            !rest.is_empty() && crc32fast::hash(rest).to_le_bytes() == *crc
        })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
